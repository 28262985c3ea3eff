"""What is known of a job on this machine: the master's progress and the runner's processes, put together. Pure."""

from __future__ import annotations

import math

import msgspec

from shoal.protocol.messages import JobAccount, JobProgress, Member, Samples

__all__ = ["JobStatus", "Row", "account_of", "is_good", "read_status", "rows_of"]

_NO_SAMPLES = Samples(expected=0, counted=0, lost=0, twice=0, skipped=0)
_ROLES = ("master", "pserver", "trainer", "etcd")


class Row(msgspec.Struct, frozen=True):
    """One process; ``seconds`` is how long it has run, or, with pid 0, until it starts again."""

    role: str
    index: int
    pid: int
    address: str
    state: str
    task: str
    seconds: float

    @property
    def name(self) -> str:
        """Role and index, as logs are named."""
        return f"{self.role}-{self.index}"


class JobStatus(msgspec.Struct, frozen=True):
    """A job, as ``shoal status`` shows it.

    Attributes:
        name: The job's.
        state: Starting, Running, Saving, Stopping (the processes are being ended), Complete, Failed or Stopped.
        reason: Why it failed.
        runner: Process number of `shoal run`; 0 when it does not run.
        trainers: How many are wanted.
        least: The fewest that the manifest allows.
        most: The most.
        members: The processes.
        progress: The master's last word; None before its first.
        account: At the end.
    """

    name: str
    state: str
    reason: str
    runner: int
    trainers: int
    least: int
    most: int
    members: list[Row]
    progress: JobProgress | None
    account: JobAccount | None


def read_status(content: bytes) -> JobStatus:
    """A status from its JSON, in which a logged value that is not a number is ``null``.

    Raises:
        msgspec.DecodeError: It is none.
    """
    found = msgspec.json.decode(content)
    progress = found.get("progress") if isinstance(found, dict) else None
    if isinstance(progress, dict) and isinstance(progress.get("values"), dict):
        values = progress["values"].items()
        progress["values"] = {name: math.nan if value is None else value for name, value in values}
    return msgspec.convert(found, JobStatus)


def rows_of(
    running: list[tuple[str, int, int, float, bool]],
    waiting: list[tuple[str, int, float]],
    members: list[Member],
    *,
    over: bool = False,
) -> list[Row]:
    """Every process with what the master knows of it.

    Args:
        running: Role, index, process number, seconds since its start, whether it was told to end.
        waiting: Role, index, seconds until it starts again.
        members: From the master.
        over: Whether the training is complete: who is no member any more has not long to go.
    """
    known = {(member.role, member.index, member.pid): member for member in members}
    rows = []
    for role, index, pid, seconds, draining in running:
        member = known.get((role, index, pid))
        new = "ending" if over else "starting"
        state = member.state if member is not None else (new if role in {"pserver", "trainer"} else "running")
        rows.append(
            Row(
                role=role,
                index=index,
                pid=pid,
                address=member.address if member is not None else "",
                state="leaving" if draining else state,
                task=member.task if member is not None else "",
                seconds=round(seconds, 1),
            )
        )
    rows += [
        Row(role=role, index=index, pid=0, address="", state="waits", task="", seconds=round(seconds, 1))
        for role, index, seconds in waiting
    ]
    return sorted(rows, key=lambda row: (_ROLES.index(row.role), row.index))


def account_of(state: str, progress: JobProgress | None, *, seconds: float) -> JobAccount:
    """The account of an end that the master did not record: what was committed until then."""
    if progress is None:
        return JobAccount(
            state=state,
            epochs=0,
            samples=_NO_SAMPLES,
            joins=0,
            leaves=0,
            deaths=0,
            replayed=0,
            seconds=round(seconds, 3),
        )
    samples = Samples(
        expected=progress.samples_expected,
        counted=progress.samples_total,
        lost=0,
        twice=0,
        skipped=progress.skipped,
    )
    return JobAccount(
        state=state,
        epochs=progress.epochs,
        samples=samples,
        joins=progress.joins,
        leaves=progress.leaves,
        deaths=progress.deaths,
        replayed=progress.replayed,
        seconds=round(seconds, 3),
    )


def is_good(account: JobAccount) -> bool:
    """Whether the job is complete and every sample counted exactly once per epoch."""
    return account.state == "Complete" and account.samples.lost == 0 and account.samples.twice == 0
