"""`shoal scale`, for running jobs on this machine."""

from __future__ import annotations

import sys
from pathlib import Path

from shoal.cli.errors import FAILED, CommandError
from shoal.cli.local.find import find_job
from shoal.local.control_socket import AskScale, ControlRefused, ask

__all__ = ["scale_job"]


def scale_job(name: str, named_state: Path | None, *, trainers: int | None, auto: bool) -> None:
    """Change the number of trainers of a running job.

    Raises:
        CommandError: None or both of the options are set, the job does not run, or it refuses.
    """
    if auto == (trainers is not None):
        raise CommandError("use either --trainers N or --auto")
    state = find_job(name, named_state)
    answer = ask(state, AskScale(trainers=trainers, by="shoal scale"))
    if answer is None:
        raise CommandError(f"job {name} does not run; start it with `shoal run`", code=FAILED)
    if isinstance(answer, ControlRefused):
        raise CommandError(f"job {name}: {answer.reason}")
    sys.stdout.write(f"{name}: trainers wanted now: {answer.trainers}\n")
