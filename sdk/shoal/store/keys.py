"""Schema of all keys of Shoal in etcd, shared by operator and master.

The keys are pure functions of names. Numbers are padded with zeros, so that the order of keys is the order of numbers.
The uid is part of the prefix, so that a job that is deleted and created again with the same name never reads the keys
of its predecessor.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

__all__ = ["ALL_JOBS", "EVERYTHING", "OPERATOR_KEY", "JobKeys"]

EVERYTHING: Final = "/shoal/v1/"
"""Prefix of every key of Shoal."""

ALL_JOBS: Final = f"{EVERYTHING}jobs/"
"""Prefix of the keys of all jobs; one watch on it covers all jobs."""

OPERATOR_KEY: Final = f"{EVERYTHING}authority/key"
"""Root key from which the operator derives the jobs' secrets; no job's user may read it.

It sorts before the keys of all jobs: in some versions of etcd a user that may watch a key can watch all keys that sort
after it (see the README).
"""

_USERS: Final = "shoal/"
"""Prefix of the names of jobs' users in etcd, which may have other users."""

_RECORDS: Final = re.compile(
    r"master|shape|schedule|begun|epoch|reached|stopped|saved|counters|progress|outcome|desired"
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
        uid: Unique id that distinguishes the job from others of the same name.

    Raises:
        ValueError: A part is empty or has characters that no Kubernetes name has (a slash would change the key's path).
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
        """Return the job that a key belongs to and the rest of the key; None if it is not the key of a job."""
        if not key.startswith(ALL_JOBS):
            return None
        parts = key.removeprefix(ALL_JOBS).split("/", 3)
        if len(parts) != 4 or not all(_PART.fullmatch(part) for part in parts[:3]):
            return None
        return cls(*parts[:3]), parts[3]

    @classmethod
    def of_user(cls, user: str) -> JobKeys | None:
        """Return the job that a user of etcd belongs to; None if it is not the user of a job."""
        parts = user.removeprefix(_USERS).split("/")
        if not user.startswith(_USERS) or len(parts) != 3 or not all(_PART.fullmatch(part) for part in parts):
            return None
        return cls(*parts)

    @staticmethod
    def knows(record: str) -> bool:
        """Return whether a name relative to the job's prefix is the name of a record."""
        return _RECORDS.fullmatch(record) is not None

    @property
    def user(self) -> str:
        """Name of the job's user and role in etcd."""
        return f"{_USERS}{self.namespace}/{self.name}/{self.uid}"

    @property
    def prefix(self) -> str:
        """Prefix of all keys of this job; ends with a slash."""
        return f"{ALL_JOBS}{self.namespace}/{self.name}/{self.uid}/"

    def at(self, record: str) -> str:
        """Return the key of a record from its name relative to the job's prefix."""
        return self.prefix + record

    def relative(self, key: str) -> str:
        """Return the name of a record, relative to the job's prefix, from its key.

        Raises:
            ValueError: The key belongs to another job.
        """
        if not key.startswith(self.prefix):
            raise ValueError(f"key {key!r} does not belong to the job {self.prefix!r}")
        return key.removeprefix(self.prefix)

    @property
    def master(self) -> str:
        """Election record: generation, nonce and address of the active master."""
        return self.at("master")

    @property
    def shape(self) -> str:
        """Model and data as registered by the first trainer: dataset, batch size, tables, slots."""
        return self.at("shape")

    @property
    def begun(self) -> str:
        """Marker that the initial parameters are saved; the master leases tasks only after that."""
        return self.at("begun")

    @property
    def epoch(self) -> str:
        """Number of the open epoch."""
        return self.at("epoch")

    @property
    def tasks(self) -> str:
        """Prefix of all records of finished tasks."""
        return self.at("tasks/")

    def tasks_of(self, epoch: int, number: int) -> str:
        """Return the key of one range of an epoch's tasks: one bit per task, set when committed."""
        return self.at(f"tasks/{epoch:08d}/{number:08d}")

    @property
    def members(self) -> str:
        """Prefix of all members' records."""
        return self.at("members/")

    def member(self, life: int) -> str:
        """Return the key of a joined trainer or parameter server, with the leases that it holds."""
        return self.at(f"members/{life:016x}")

    @property
    def evaluations(self) -> str:
        """Prefix of the scores of all evaluations."""
        return self.at("evaluations/")

    def evaluation(self, epoch: int, number: int) -> str:
        """Return the key of an evaluation's score; ``number`` counts the script's calls in the epoch, from 0."""
        return self.at(f"evaluations/{epoch:08d}/{number:04d}")

    @property
    def metrics(self) -> str:
        """Prefix of all metric values that learning-rate schedulers have used."""
        return self.at("metrics/")

    def metric(self, epoch: int, number: int) -> str:
        """Return the key of a metric value; ``number`` counts the script's calls in the epoch, from 0."""
        return self.at(f"metrics/{epoch:08d}/{number:08d}")

    @property
    def reached(self) -> str:
        """The highest task that was leased."""
        return self.at("reached")

    @property
    def stopped(self) -> str:
        """Early stop of the job by its script, with the reason."""
        return self.at("stopped")

    @property
    def saved(self) -> str:
        """Paths of the files that the job has saved for its users."""
        return self.at("saved")

    @property
    def counters(self) -> str:
        """Counters over the whole job."""
        return self.at("counters")

    @property
    def progress(self) -> str:
        """Reported state (`ReportedState`), which the operator writes into the status."""
        return self.at("progress")

    @property
    def outcome(self) -> str:
        """Outcome of the job, with its final account."""
        return self.at("outcome")

    @property
    def desired(self) -> str:
        """Desired state (`DesiredState`), written by the operator: trainers to drain, and suspension."""
        return self.at("desired")
