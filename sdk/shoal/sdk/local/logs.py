"""The logs of a job's processes on this machine, merged: also of processes that join or restart while they are followed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from itertools import chain, islice
from pathlib import Path
from typing import Final

from shoal.local.state.logs import LogReader, log_files, previous_lines
from shoal.local.state.state_folder import StateFolder
from shoal.sdk.backend import LogOptions
from shoal.sdk.errors import NotFoundError, ShoalError
from shoal.sdk.types import LogLine

__all__ = ["last_lines", "read_logs"]

_LONGEST_LINE: Final = 64 << 10
"""Longest line, in bytes, as on a cluster; the rest of a longer one is dropped."""
_BATCH: Final = 1000
"""Number of lines that are read in one call of a thread."""
_PAUSE_SECONDS: Final = 0.1


async def read_logs(state: StateFolder, options: LogOptions, is_over: Callable[[], bool]) -> AsyncGenerator[LogLine]:
    """Yield the lines of the logs of a job.

    Args:
        state: The job's state folder.
        options: Which lines of which logs.
        is_over: Returns whether no process of the job will write any more; called in a thread.

    Raises:
        NotFoundError: The job has no such process.
        ShoalError: The lines are chosen by their time, which logs on one machine do not have.
    """
    if options.since_seconds is not None:
        raise ShoalError("since= needs the time of each line, which logs on one machine do not have; use tail=")
    files = await asyncio.to_thread(log_files, state)
    if options.process is not None and options.process not in files and not options.follow:
        known = ", ".join(files) or "none yet"
        raise NotFoundError(f"job {state.name} has no process {options.process!r}; there are: {known}")
    if options.previous:
        for process, path in _chosen(files, options).items():
            for line in await asyncio.to_thread(_previous, process, path):
                yield line
        return
    async with aclosing(_read(state, options, is_over)) as lines:
        async for line in lines:
            yield line


async def _read(state: StateFolder, options: LogOptions, is_over: Callable[[], bool]) -> AsyncGenerator[LogLine]:
    tail, readers = options.tail, dict[str, LogReader]()
    over = False
    while not over:
        # In this order: what was written before the end is read after it.
        over = not options.follow or await asyncio.to_thread(is_over)
        for process, path in _chosen(await asyncio.to_thread(log_files, state), options).items():
            if process not in readers:
                readers[process] = LogReader(path, tail=tail, longest=_LONGEST_LINE)
            reader = readers[process]
            async for line in _lines(process, chain(reader.read_new(), reader.read_rest() if over else ())):
                yield line
        tail = None  # the lines of a process that starts from now on are all new
        if not over:
            await asyncio.sleep(_PAUSE_SECONDS)


def _chosen(files: dict[str, Path], options: LogOptions) -> dict[str, Path]:
    return {process: path for process, path in files.items() if options.process in {None, process}}


async def _lines(process: str, lines: Iterator[bytes]) -> AsyncIterator[LogLine]:
    while batch := await asyncio.to_thread(lambda: list(islice(lines, _BATCH))):
        for line in batch:
            yield _line(process, line)


def _previous(process: str, path: Path) -> list[LogLine]:
    lines = previous_lines(path, longest=_LONGEST_LINE)
    if lines is None:
        return [LogLine(process, "[no log: the process has run once]")]
    return [_line(process, line) for line in lines]


def _line(process: str, line: bytes) -> LogLine:
    return LogLine(process, line.decode(errors="replace"))


def last_lines(state: StateFolder, process: str, count: int) -> tuple[str, ...]:
    """Return the last lines of the log of a process; none if it has no log."""
    path = log_files(state).get(process)
    if path is None:
        return ()
    reader = LogReader(path, tail=count, longest=_LONGEST_LINE)
    return tuple(line.decode(errors="replace") for line in (*reader.read_new(), *reader.read_rest()))
