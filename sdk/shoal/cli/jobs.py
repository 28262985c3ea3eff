"""Finds jobs on this machine and reads their status, running or ended."""

from __future__ import annotations

from pathlib import Path

import msgspec

from shoal.cli.errors import CommandError
from shoal.local.control_socket import AskStatus, ask
from shoal.local.state_folder import StateFolder, base_folder, job_names
from shoal.local.view.status import JobStatus, read_status

__all__ = ["find_job", "status_of"]


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
