"""`shoal status` and `shoal scale`, for running and ended jobs on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import msgspec

from shoal.cli.errors import FAILED, CommandError
from shoal.local.control_socket import AskScale, AskStatus, ControlRefused, ask
from shoal.local.state_folder import StateFolder, base_folder, job_names
from shoal.local.view.formatting import account_lines, duration, evaluated, progress_line
from shoal.local.view.status import JobStatus, read_status

__all__ = ["find_job", "scale_job", "show_all", "show_status"]

_SCORES_SHOWN: Final = 3
"""Number of evaluations in a status, the latest ones; a job may have hundreds."""


def find_job(name: str, named_state: Path | None) -> StateFolder:
    """Return the state folder of a job.

    Raises:
        CommandError: The job does not exist; the message lists the existing jobs.
    """
    base = base_folder(named_state)
    state = StateFolder(base, name)
    if "/" not in name and name not in {"", ".", ".."} and state.exists:
        return state
    names = job_names(base)
    known = f"jobs here: {', '.join(names)}" if names else "there are no jobs here; start one with `shoal run`"
    raise CommandError(f"no job {name!r} in {base}; {known}")


def status_of(state: StateFolder) -> JobStatus:
    """Return a job's status from its runner, or from the state folder if it does not run."""
    answer = ask(state, AskStatus())
    if isinstance(answer, JobStatus):
        return answer
    try:
        last = read_status(state.last.read_bytes())
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        last = _nothing_known(state)
    end = state.end()
    runner = state.runner()
    if end is None:
        changed = {"state": "Starting" if runner else "Stopped", "reason": "" if runner else "its run was killed"}
        return msgspec.structs.replace(last, runner=runner or 0, members=[], **changed)
    return msgspec.structs.replace(last, runner=0, members=[], state=end.state, reason=end.reason, account=end.account)


def _nothing_known(state: StateFolder) -> JobStatus:
    trainer = state.job().spec.trainer
    return JobStatus(
        name=state.name,
        state="Starting",
        reason="",
        runner=0,
        trainers=trainer.replicas or trainer.min_replicas,
        least=trainer.min_replicas,
        most=trainer.most,
        members=[],
        progress=None,
        account=None,
    )


def show_status(name: str, named_state: Path | None, *, output: str) -> None:
    """Print a job's status."""
    status = status_of(find_job(name, named_state))
    if output == "json":
        sys.stdout.write(msgspec.json.encode(status).decode() + "\n")
        return
    sys.stdout.write("\n".join(status_lines(status)) + "\n")


def status_lines(status: JobStatus) -> list[str]:
    """Format a status as lines of text."""
    if status.runner == 0:
        lines = _ended_lines(status)
    else:
        bounds = f"{status.least}" if status.least == status.most else f"{status.least} to {status.most}"
        lines = [
            f"{status.name}: {status.state} (shoal run: pid {status.runner}; trainers: {status.trainers}, of {bounds})",
            f"  {progress_line(status)}",
        ]
    if status.progress is not None:
        evaluations = status.progress.evaluations[-_SCORES_SHOWN:]
        lines += [f"  {evaluated(evaluation, status.progress.epochs)}" for evaluation in evaluations]
        lines += [f"  model: {path}" for path in status.progress.saved]
    if status.members:
        lines += ["", *_table(status)]
    return lines


def _ended_lines(status: JobStatus) -> list[str]:
    if status.account is not None:
        lines = account_lines(status.name, status.account, reason=status.reason)
    else:
        lines = [f"{status.name}: {status.state}" + (f" ({status.reason})" if status.reason else "")]
    if status.state == "Stopped":
        lines.append("  `shoal run` with the same arguments resumes it")
    return lines


def _table(status: JobStatus) -> list[str]:
    rows = [("PROCESS", "PID", "STATE", "DOING", "FOR")]
    for row in status.members:
        when = f"in {duration(row.seconds)}" if row.pid == 0 else duration(row.seconds)
        rows.append((row.name, str(row.pid or "-"), row.state, row.task or "-", when))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def show_all(named_state: Path | None, *, output: str) -> None:
    """Print one line per job."""
    base = base_folder(named_state)
    statuses = [status_of(StateFolder(base, name)) for name in job_names(base)]
    if output == "json":
        sys.stdout.write(msgspec.json.encode(statuses).decode() + "\n")
        return
    if not statuses:
        sys.stdout.write(f"no jobs in {base}\n")
    width = max((len(status.name) for status in statuses), default=0)
    for status in statuses:
        # A reason ends with the script's last output, whose last line has the error.
        what = progress_line(status) if status.runner else status.reason.rpartition("\n")[2]
        sys.stdout.write(f"{status.name:{width}}  {status.state:8}  {what}".rstrip() + "\n")


def scale_job(name: str, named_state: Path | None, *, trainers: int | None, auto: bool) -> None:
    """Change the number of trainers of a running job.

    Raises:
        CommandError: None or both of the options are set, the job does not run, or it refuses.
    """
    if auto == (trainers is not None):
        raise CommandError("use either --trainers N or --auto")
    state = find_job(name, named_state)
    answer = ask(state, AskScale(trainers=trainers))
    if answer is None:
        raise CommandError(f"job {name} does not run; start it with `shoal run`", code=FAILED)
    if isinstance(answer, ControlRefused):
        raise CommandError(f"job {name}: {answer.reason}")
    sys.stdout.write(f"{name}: trainers wanted now: {answer.trainers}\n")
