"""`shoal logs`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Final

from shoal.cli.errors import CommandError
from shoal.cli.jobs import find_job
from shoal.local.state_folder import StateFolder

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
    files = _files(state)
    if process is not None and process not in files:
        known = ", ".join(files) or "none yet"
        raise CommandError(f"job {name} has no log of {process!r}; there are: {known}")
    readers: dict[str, _Reader] = {}
    while True:
        over = state.runner() is None
        for title, path in _files(state).items():
            if process is not None and title != process:
                continue
            if title not in readers:
                readers[title] = _Reader(path, prefix="" if process is not None else f"{title} | ", tail=tail)
            readers[title].write_new()
        sys.stdout.flush()
        if not follow or over:
            break
        time.sleep(_PAUSE_SECONDS)
    for reader in readers.values():
        reader.write_rest()


def _files(state: StateFolder) -> dict[str, Path]:
    found = {path.stem: path for path in state.logs.glob("*-*.log")}
    own = state.etcd / "etcd.log"
    if own.is_file():
        found["etcd-0"] = own
    return dict(sorted(found.items(), key=lambda item: (item[0].rpartition("-")[0], len(item[0]), item[0])))


class _Reader:
    """Writes the new lines of a file; an incomplete line waits for its end."""

    def __init__(self, path: Path, *, prefix: str, tail: int | None) -> None:
        self._path = path
        self._prefix = prefix
        self._tail = tail
        self._position = 0
        self._rest = b""

    def write_new(self) -> None:
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._position)
                content = stream.read()
        except FileNotFoundError:
            return
        self._position += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        if self._tail is not None:
            lines, self._tail = lines[max(0, len(lines) - self._tail) :], None
        self._write(lines)

    def write_rest(self) -> None:
        if self._rest:
            self._write([self._rest])

    def _write(self, lines: list[bytes]) -> None:
        for line in lines:
            sys.stdout.write(f"{self._prefix}{line.decode(errors='replace')}\n")
