"""`shoal logs`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from shoal.cli.errors import CommandError
from shoal.cli.local.find import find_job
from shoal.local.state.logs import LogReader, log_files

__all__ = ["show_logs"]

_PAUSE_SECONDS: Final = 0.2


def show_logs(name: str, named_state: Path | None, *, process: str | None, follow: bool, tail: int | None) -> None:
    """Print the logs of a job; without ``process`` the process's name precedes each line.

    Args:
        name: Name of the job.
        named_state: Folder of all jobs; None: the default.
        process: Name of one process, such as ``trainer-0``; None: all processes.
        follow: Whether to continue until the job ends.
        tail: Number of last lines of each log to start with; None: all.

    Raises:
        CommandError: The job does not exist, or has no log of the process.
    """
    state = find_job(name, named_state)
    files = log_files(state)
    if process is not None and process not in files:
        known = ", ".join(files) or "none yet"
        raise CommandError(f"job {name} has no log of {process!r}; there are: {known}")
    readers: dict[str, LogReader] = {}
    while True:
        over = state.runner() is None
        for title, path in log_files(state).items():
            if process is not None and title != process:
                continue
            if title not in readers:
                readers[title] = LogReader(path, tail=tail)
            _write(readers[title].read_new(), title, process)
        sys.stdout.flush()
        tail = None  # the lines of a process that starts from now on are all new
        if not follow or over:
            break
        time.sleep(_PAUSE_SECONDS)  # files that grow send no event
    for title, reader in readers.items():
        _write(reader.read_rest(), title, process)


def _write(lines: Iterable[bytes], title: str, process: str | None) -> None:
    prefix = "" if process is not None else f"{title} | "
    for line in lines:
        sys.stdout.write(f"{prefix}{line.decode(errors='replace')}\n")
