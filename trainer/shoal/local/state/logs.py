"""Reads the logs of a job's processes: one file for each role and index, which all runs of the process append to."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from shoal.local.state.state_folder import StateFolder

__all__ = ["LogReader", "log_files", "previous_lines"]

_CHUNK: Final = 1 << 20
_CUT: Final = b" ... (line cut)"
_HEAD: Final = re.compile(rb"--- \d{4}-\d\d-\d\d \d\d:\d\d:\d\d starts: ")
"""Beginning of the line that precedes the output of each run of a process."""


def log_files(state: StateFolder) -> dict[str, Path]:
    """Return the logs of a job by process, such as ``trainer-0``; in the order of roles and indexes."""
    found = {path.stem: path for path in state.logs.glob("*-*.log")}
    own = state.etcd / "etcd.log"
    if own.is_file():
        found["etcd-0"] = own
    return dict(sorted(found.items(), key=lambda item: (item[0].rpartition("-")[0], len(item[0]), item[0])))


class LogReader:
    """Reads the new lines of a log; an incomplete line waits for its end.

    A log that was replaced by a shorter one is read from its beginning.

    Args:
        path: The log. It may not exist yet.
        tail: Number of last lines to begin with. Default: None, all.
        longest: Longest line, in bytes; the rest of a longer one is dropped. Default: None, no limit.
    """

    def __init__(self, path: Path, *, tail: int | None = None, longest: int | None = None) -> None:
        self._path = path
        self._tail = tail
        self._longest = longest
        self._position = 0
        self._rest = b""

    def read_new(self) -> Iterator[bytes]:
        """Yield the complete lines since the last call, without their ends."""
        try:
            stream = self._path.open("rb")
        except FileNotFoundError:
            return
        with stream:
            size = stream.seek(0, os.SEEK_END)
            if size < self._position:
                self._position, self._rest = 0, b""
            if self._tail is not None:
                self._position, self._tail = _start_of_tail(stream, size, self._tail), None
            stream.seek(self._position)
            # Up to the present size: a process that writes faster than it is read does not hold this call.
            while self._position < size and (content := stream.read(min(_CHUNK, size - self._position))):
                self._position += len(content)
                *lines, rest = (self._rest + content).split(b"\n")
                # Bytes beyond the limit are dropped as they are read, so that memory is bounded.
                self._rest = rest if self._longest is None else rest[: self._longest + 1]
                for line in lines:
                    yield self._cut(line)

    def read_rest(self) -> Iterator[bytes]:
        """Yield the last line, if it has no end; its process has ended."""
        rest, self._rest = self._rest, b""
        if rest:
            yield self._cut(rest)

    def _cut(self, line: bytes) -> bytes:
        if self._longest is None or len(line) <= self._longest:
            return line
        return line[: self._longest] + _CUT


def previous_lines(path: Path, *, longest: int | None = None) -> list[bytes] | None:
    """Return the output of the last but one run of a process.

    Args:
        path: The log.
        longest: Longest line, in bytes; the rest of a longer one is dropped. Default: None, no limit.

    Returns:
        The lines, the first one with the time and the command; None if the process has run once.
    """
    runs: list[list[bytes]] = []
    for line in _all_lines(path, longest):
        if _HEAD.match(line):
            runs = [*runs[-1:], []]
        if runs:
            runs[-1].append(line)
    return runs[0] if len(runs) > 1 else None


def _all_lines(path: Path, longest: int | None) -> Iterator[bytes]:
    reader = LogReader(path, longest=longest)
    yield from reader.read_new()
    yield from reader.read_rest()


def _start_of_tail(stream: BinaryIO, size: int, count: int) -> int:
    """Return the offset of the last ``count`` lines; an incomplete last line counts as one."""
    if count == 0:
        return size
    position, missing = size, count
    if size:
        stream.seek(size - 1)
        missing += stream.read(1) == b"\n"
    while position > 0:
        start = max(0, position - _CHUNK)
        stream.seek(start)
        block = stream.read(position - start)
        found = block.count(b"\n")
        if found >= missing:
            for _ in range(missing):
                at = block.rindex(b"\n")
                block = block[:at]
            return start + len(block) + 1
        missing -= found
        position = start
    return 0
