"""Finds jobs on this machine; a missing one is an error of the command line."""

from __future__ import annotations

from pathlib import Path

from shoal.cli.errors import CommandError
from shoal.local.state import jobs
from shoal.local.state.state_folder import StateFolder, base_folder

__all__ = ["find_job"]


def find_job(name: str, named_state: Path | None) -> StateFolder:
    """Return the state folder of a job.

    Raises:
        CommandError: The job does not exist; the message lists the existing jobs.
    """
    try:
        return jobs.find_job(name, base_folder(named_state))
    except jobs.NoSuchJobError as error:
        raise CommandError(str(error)) from None
