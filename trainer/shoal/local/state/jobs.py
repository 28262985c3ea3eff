"""Finds jobs on this machine and reads their status, running or ended."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from shoal.local.control_socket import AskStatus, ask
from shoal.local.state.state_folder import StateFolder, job_names
from shoal.local.view.status import RunStatus, read_status

__all__ = ["KILLED", "NoSuchJobError", "find_job", "status_of"]

KILLED: Final = "its run was killed"
"""Reason of a job whose `shoal run` ended without a graceful stop."""


class NoSuchJobError(Exception):
    """The job does not exist; the message lists the existing jobs."""


def find_job(name: str, base: Path) -> StateFolder:
    """Return the state folder of a job.

    Args:
        name: Name of the job.
        base: Folder of all jobs.

    Raises:
        NoSuchJobError: The job does not exist.
    """
    state = StateFolder(base, name)
    if "/" not in name and not name.startswith(".") and name and "\0" not in name and state.exists:
        return state
    names = job_names(base)
    known = f"jobs here: {', '.join(names)}" if names else "there are no jobs here; start one with `shoal run`"
    raise NoSuchJobError(f"no job {name!r} in {base}; {known}")


def status_of(state: StateFolder) -> RunStatus:
    """Return a job's status from its runner, or from the state folder if it does not run.

    Raises:
        ManifestError: The job's manifest was removed or is damaged.
    """
    answer = ask(state, AskStatus())
    if isinstance(answer, RunStatus):
        return answer
    try:
        last = read_status(state.last.read_bytes())
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        last = _nothing_known(state)
    # In this order: a run writes its end before it releases the lock. It removes the end of an earlier run after it has
    # taken the lock, so without an end the lock is read again.
    runner = state.runner()
    end = state.end()
    if end is not None:
        return msgspec.structs.replace(
            last, runner=0, members=[], state=end.state, reason=end.reason, account=end.account
        )
    runner = state.runner() if runner is None else runner
    if runner is not None and runner == last.runner:
        return last  # it is ending, or does not answer in time
    if runner is not None:
        return msgspec.structs.replace(last, runner=runner, members=[], state="Starting", reason="")
    reason = KILLED if state.started else ""
    return msgspec.structs.replace(last, runner=0, members=[], state="Stopped", reason=reason)


def _nothing_known(state: StateFolder) -> RunStatus:
    trainer = state.job().spec.trainer
    return RunStatus(
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
