"""`shoal status`, for running and ended jobs on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import msgspec

from shoal.cli.local.find import find_job
from shoal.cli.tables import print_table
from shoal.local.state.jobs import status_of
from shoal.local.state.state_folder import StateFolder, base_folder, job_names
from shoal.local.view.formatting import account_lines, duration, evaluated, progress_line
from shoal.local.view.status import ProcessStatus, RunStatus

__all__ = ["show_all", "show_status", "status_lines"]

_SCORES_SHOWN: Final = 3
"""Number of evaluations in a status, the latest ones; a job may have hundreds."""


def show_status(name: str, named_state: Path | None, *, output: str) -> None:
    """Print a job's status."""
    status = status_of(find_job(name, named_state))
    if output == "json":
        sys.stdout.write(msgspec.json.encode(status).decode() + "\n")
        return
    sys.stdout.write("\n".join(status_lines(status)) + "\n")
    if status.members:
        sys.stdout.write("\n")
        print_table(("PROCESS", "PID", "STATE", "DOING", "FOR"), map(_row, status.members))


def status_lines(status: RunStatus) -> list[str]:
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
    return lines


def _ended_lines(status: RunStatus) -> list[str]:
    if status.account is not None:
        lines = account_lines(status.name, status.account, reason=status.reason)
    else:
        lines = [f"{status.name}: {status.state}" + (f" ({status.reason})" if status.reason else "")]
    if status.state == "Stopped":
        lines.append("  `shoal run` with the same arguments resumes it")
    return lines


def _row(member: ProcessStatus) -> tuple[str, ...]:
    since = f"in {duration(member.seconds)}" if member.pid == 0 else duration(member.seconds)
    return member.name, str(member.pid or "-"), member.state, member.task or "-", since


def show_all(named_state: Path | None, *, output: str) -> None:
    """Print one line per job."""
    base = base_folder(named_state)
    statuses = [status_of(StateFolder(base, name)) for name in job_names(base)]
    if output == "json":
        sys.stdout.write(msgspec.json.encode(statuses).decode() + "\n")
        return
    if not statuses:
        sys.stdout.write(f"no jobs in {base}\n")
        return
    print_table(("NAME", "STATE", "PROGRESS"), [(each.name, each.state, _summary(each)) for each in statuses])


def _summary(status: RunStatus) -> str:
    # A reason ends with the script's last output, whose last line has the error.
    return progress_line(status) if status.runner else status.reason.rpartition("\n")[2]
