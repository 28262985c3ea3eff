"""The data of `shoal status`, from the master's progress report and the runner's processes; text: `cli/status.py`. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from shoal.protocol.messages import JobAccount, JobProgress, Member, Samples

__all__ = ["ProcessStatus", "RunStatus", "account_of", "is_good", "read_status", "rows_of"]

_NO_SAMPLES = Samples(expected=0, counted=0, lost=0, twice=0, skipped=0)
_ROLES = ("master", "pserver", "trainer", "etcd")


class ProcessStatus(msgspec.Struct, frozen=True):
    """One process; ``seconds`` is the time since its start, or, with pid 0, the time until its restart.

    ``restarts`` is the number of its restarts in this run of the job.
    """

    role: str
    index: int
    pid: int
    address: str
    state: str
    task: str
    seconds: float
    restarts: int = 0

    @property
    def name(self) -> str:
        """Name of the process and of its log: role and index."""
        return f"{self.role}-{self.index}"


class RunStatus(msgspec.Struct, frozen=True):
    """Status of a job, as printed by ``shoal status``.

    Attributes:
        name: Name of the job.
        state: Starting, Running, Saving, Stopping (processes are being terminated), Complete, Failed or Stopped.
        reason: Reason of the failure.
        runner: Process id of `shoal run`; 0 if it does not run.
        trainers: Desired number of trainers.
        least: Fewest trainers that the manifest allows.
        most: Most trainers that the manifest allows.
        members: The processes.
        progress: The master's last progress report; None before the first.
        account: Final account; None before the end.
    """

    name: str
    state: str
    reason: str
    runner: int
    trainers: int
    least: int
    most: int
    members: list[ProcessStatus]
    progress: JobProgress | None
    account: JobAccount | None


def read_status(content: bytes) -> RunStatus:
    """Decode a status from JSON, in which a logged NaN is ``null``.

    Raises:
        msgspec.DecodeError: The content is not a status.
    """
    found = msgspec.json.decode(content)
    progress = found.get("progress") if isinstance(found, dict) else None
    if isinstance(progress, dict) and isinstance(progress.get("values"), dict):
        values = progress["values"].items()
        progress["values"] = {name: math.nan if value is None else value for name, value in values}
    return msgspec.convert(found, RunStatus)


def rows_of(
    running: list[tuple[str, int, int, float, bool]],
    waiting: list[tuple[str, int, float]],
    members: list[Member],
    *,
    complete: bool = False,
    restarts: Mapping[tuple[str, int], int] | None = None,
) -> list[ProcessStatus]:
    """Return a row for every process, with its state in the master's list of members.

    Args:
        running: Role, index, process id, seconds since its start, whether it is being terminated.
        waiting: Role, index, seconds until its restart.
        members: Members in the master's progress report.
        complete: Whether the training is complete: a process that is not a member is then ending, not starting.
            Default: false.
        restarts: Number of restarts by role and index. Default: None, none.
    """
    restarts = restarts or {}
    known = {(member.role, member.index, member.pid): member for member in members}
    rows = []
    for role, index, pid, seconds, draining in running:
        member = known.get((role, index, pid))
        new = "ending" if complete else "starting"
        state = member.state if member is not None else (new if role in {"pserver", "trainer"} else "running")
        rows.append(
            ProcessStatus(
                role=role,
                index=index,
                pid=pid,
                address=member.address if member is not None else "",
                state="leaving" if draining else state,
                task=member.task if member is not None else "",
                seconds=round(seconds, 1),
                restarts=restarts.get((role, index), 0),
            )
        )
    for role, index, seconds in waiting:
        count = restarts.get((role, index), 0)
        row = ProcessStatus(role, index, 0, "", "waits", "", round(seconds, 1), count)
        rows.append(row)
    return sorted(rows, key=lambda row: (_ROLES.index(row.role), row.index))


def account_of(state: str, progress: JobProgress | None, *, seconds: float) -> JobAccount:
    """Return the account of an end that the master did not record, from the last progress report."""
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
    """Return whether the job is complete and every sample counted exactly once per epoch."""
    return account.state == "Complete" and account.samples.lost == 0 and account.samples.twice == 0
