"""`shoal logs` of a job on a cluster: the lines of all processes, each after the name of its process."""

from __future__ import annotations

import os
import sys
import zlib
from typing import Final

from shoal.sdk import Job, LogLine

__all__ = ["print_logs"]

_COLOURS: Final = (36, 33, 32, 35, 34, 31, 96, 93, 92, 95, 94)
"""Colours of the terminal, of which each process has one."""


def print_logs(
    job: Job, *, process: str | None, follow: bool, tail: int | None, since: str | None, previous: bool
) -> None:
    """Print lines of the logs of one process or of all.

    Args:
        job: The job.
        process: Name of the process; None: all, and the name precedes each line.
        follow: Whether to continue until the job ends.
        tail: Number of last lines of each log to begin with; None: all.
        since: Only lines of this time, such as 5m; None: all.
        previous: Whether to read the containers' last run.
    """
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for line in job.logs(process, follow=follow, tail=tail, since=since, previous=previous):
        sys.stdout.write(_text(line, with_process=process is None, coloured=coloured) + "\n")
        if follow:
            sys.stdout.flush()


def _text(line: LogLine, *, with_process: bool, coloured: bool) -> str:
    if not with_process:
        return line.text
    if not coloured:
        return f"{line.process} | {line.text}"
    colour = _COLOURS[zlib.crc32(line.process.encode()) % len(_COLOURS)]
    return f"\033[{colour}m{line.process} |\033[0m {line.text}"
