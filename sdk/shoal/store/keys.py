"""Where everything of a job lies in etcd: the one schema that operator and master share.

Pure functions of names, so that both sides (and the tests, and a person with ``etcdctl``) spell a key the same way.
Numbers are padded, hence the order of keys is the order of numbers. The uid is part of the prefix, so a job that was
deleted and made again under its old name never sees the keys of its former life.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

__all__ = ["ALL_JOBS", "EVERYTHING", "OPERATOR_KEY", "JobKeys"]

EVERYTHING: Final = "/shoal/v1/"
"""Every key of Shoal begins with this."""

ALL_JOBS: Final = f"{EVERYTHING}jobs/"
"""Every key of every job begins with this: one watch here serves all jobs."""

OPERATOR_KEY: Final = f"{EVERYTHING}authority/key"
"""What the operator derives jobs' secrets from; no job's user may read it.

It sorts before all jobs' keys: in many an etcd who may watch a key can watch all that come after it (see the README).
"""

_USERS: Final = "shoal/"
"""Names of jobs' users in etcd begin with this: an etcd may have others."""

_RECORDS: Final = re.compile(
    r"master|shape|schedule|begun|epoch|reached|stopped|saved|counters|progress|outcome|wanted"
    r"|members/[0-9a-f]{16}|tasks/\d{8,}/\d{8,}|metrics/\d{8,}/\d{8,}|evaluations/\d{8,}/\d{4,}",
    re.ASCII,
)
"""Names of all records of a job."""

_PART: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class JobKeys:
    """The keys of one job.

    Args:
        namespace: The job's namespace (``default`` on one machine).
        name: The job's name.
        uid: What tells this job from another one of the same name.

    Raises:
        ValueError: A part is empty or holds what no Kubernetes name may hold (a slash would change the meaning).
    """

    namespace: str
    name: str
    uid: str

    def __post_init__(self) -> None:
        for field in ("namespace", "name", "uid"):
            value = getattr(self, field)
            if not _PART.fullmatch(value):
                raise ValueError(
                    f"{field} {value!r} cannot be part of an etcd key: use letters, digits, '-', '_' and '.', "
                    "with a letter or digit at both ends"
                )

    @classmethod
    def parse(cls, key: str) -> tuple[JobKeys, str] | None:
        """The job that a key belongs to, and the rest of the key; None for a key of nobody's."""
        if not key.startswith(ALL_JOBS):
            return None
        parts = key.removeprefix(ALL_JOBS).split("/", 3)
        if len(parts) != 4 or not all(_PART.fullmatch(part) for part in parts[:3]):
            return None
        return cls(*parts[:3]), parts[3]

    @classmethod
    def of_user(cls, user: str) -> JobKeys | None:
        """The job that a user of etcd belongs to; None for somebody else's."""
        parts = user.removeprefix(_USERS).split("/")
        if not user.startswith(_USERS) or len(parts) != 3 or not all(_PART.fullmatch(part) for part in parts):
            return None
        return cls(*parts)

    @staticmethod
    def knows(record: str) -> bool:
        """Whether a key that is named relative to its job is one of Shoal's."""
        return _RECORDS.fullmatch(record) is not None

    @property
    def user(self) -> str:
        """The name of the job's user in etcd, and of its role."""
        return f"{_USERS}{self.namespace}/{self.name}/{self.uid}"

    @property
    def prefix(self) -> str:
        """Begins all keys of this job; ends with a slash."""
        return f"{ALL_JOBS}{self.namespace}/{self.name}/{self.uid}/"

    def at(self, record: str) -> str:
        """The key of a record that is named relative to the job."""
        return self.prefix + record

    def relative(self, key: str) -> str:
        """The other way round.

        Raises:
            ValueError: The key belongs to another job.
        """
        if not key.startswith(self.prefix):
            raise ValueError(f"key {key!r} is none of the job {self.prefix!r}")
        return key.removeprefix(self.prefix)

    @property
    def master(self) -> str:
        """The election record: generation, nonce and address of the one master."""
        return self.at("master")

    @property
    def shape(self) -> str:
        """The job as the first trainer registered it: dataset, batch size, tables, slots."""
        return self.at("shape")

    @property
    def begun(self) -> str:
        """Whether the initial parameters were saved, so that tasks may be handed out."""
        return self.at("begun")

    @property
    def epoch(self) -> str:
        """The latest epoch that was opened."""
        return self.at("epoch")

    @property
    def tasks(self) -> str:
        """Prefix of all records of finished tasks."""
        return self.at("tasks/")

    def tasks_of(self, epoch: int, number: int) -> str:
        """One range of an epoch's tasks: a bit each, set when done."""
        return self.at(f"tasks/{epoch:08d}/{number:08d}")

    @property
    def members(self) -> str:
        """Prefix of all members' records."""
        return self.at("members/")

    def member(self, life: int) -> str:
        """A trainer or parameter server that joined, and the leases it holds."""
        return self.at(f"members/{life:016x}")

    @property
    def evaluations(self) -> str:
        """Prefix of all scores."""
        return self.at("evaluations/")

    def evaluation(self, epoch: int, number: int) -> str:
        """The score of one evaluation: the number of the script's call within its epoch, from 0."""
        return self.at(f"evaluations/{epoch:08d}/{number:04d}")

    @property
    def metrics(self) -> str:
        """Prefix of all values that schedulers went by."""
        return self.at("metrics/")

    def metric(self, epoch: int, number: int) -> str:
        """One of these values: the number of the script's call within its epoch, from 0."""
        return self.at(f"metrics/{epoch:08d}/{number:08d}")

    @property
    def reached(self) -> str:
        """The last task that was begun."""
        return self.at("reached")

    @property
    def stopped(self) -> str:
        """That the script stopped the job early, and why."""
        return self.at("stopped")

    @property
    def saved(self) -> str:
        """Files that the job has written for its users."""
        return self.at("saved")

    @property
    def counters(self) -> str:
        """What is counted over the whole job."""
        return self.at("counters")

    @property
    def progress(self) -> str:
        """How far the job is: what the operator writes into the status."""
        return self.at("progress")

    @property
    def outcome(self) -> str:
        """How the job ended, with its final account."""
        return self.at("outcome")

    @property
    def wanted(self) -> str:
        """The operator's wishes: how many trainers, which of them drain, whether to suspend."""
        return self.at("wanted")
