"""Starts, monitors and terminates the processes of a job on this machine.

Each process has its own session, so that Ctrl-C in the terminal reaches the runner only. The kernel kills it when the
runner ends for any reason (PR_SET_PDEATHSIG), so that no process is left. The event loop detects an exit through a
pidfd, immediately and without polling. The rest of the process group (such as workers of a data loader) is killed
before its leader is reaped, because until then the id cannot be reused.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from shoal.local.parent_death import killed_with_parent

__all__ = ["Launch", "LaunchError", "Processes", "last_lines"]

_TAIL_BYTES: Final = 16384
_LAST_LINES: Final = 4
"""Number of lines of a syntax error: the file, the line, the place in it, the message."""
_LEVEL: Final = re.compile(r"\d\d:\d\d:\d\d error |error: ")
"""Prefix of an error that a process of Shoal reports, and of a refusal in the training script."""
_HEAD: Final = re.compile(rf"{_LEVEL.pattern}|Traceback \(most recent call last\)")


class LaunchError(Exception):
    """A process cannot be started; the message has its name and the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Parameters of a process start.

    Attributes:
        command: The program and its arguments.
        environment: The complete environment.
        folder: The working directory.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path


@dataclass(slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    descriptor: int
    log: Path
    log_offset: int
    started: float


Place = tuple[str, int]


class Processes:
    """The running processes, by role and index. Not thread-safe: use it on the thread of the event loop.

    Args:
        logs: Folder of the logs, ``ROLE-N.log``.
        on_exit: Called at each exit with role, index, exit code (negative: the signal), and the last output.
    """

    def __init__(self, logs: Path, on_exit: Callable[[str, int, int, str], None]) -> None:
        self._logs = logs
        self._on_exit = on_exit
        self._children: dict[Place, _Child] = {}

    def pid(self, role: str, index: int) -> int | None:
        """Return the process id; None if it does not run."""
        child = self._children.get((role, index))
        return child.process.pid if child is not None else None

    def age(self, role: str, index: int) -> float:
        """Return for how many seconds the process has run; 0 if it does not run."""
        child = self._children.get((role, index))
        return time.monotonic() - child.started if child is not None else 0.0

    def start(self, role: str, index: int, launch: Launch) -> int:
        """Start a process; its output is appended to its log, after a line with time and command.

        Raises:
            LaunchError: The process cannot be started.
        """
        assert (role, index) not in self._children
        log = self._logs / f"{role}-{index}.log"
        head = f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} starts: {shlex.join(launch.command)}\n"
        try:
            with log.open("a+b") as stream:
                # The last run may have been killed in the middle of a line.
                stream.write((b"" if _ends_with_line(stream) else b"\n") + head.encode(errors="replace"))
                stream.flush()
                log_offset = stream.tell()
                process = subprocess.Popen(
                    launch.command,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    cwd=launch.folder,
                    env=dict(launch.environment),
                    start_new_session=True,
                    preexec_fn=killed_with_parent(),  # noqa: PLW1509  (it takes no lock)
                )
        except OSError as error:
            raise LaunchError(f"{role}-{index} cannot be started: {_reason(error, launch)}") from error
        child = _Child(process, os.pidfd_open(process.pid), log, log_offset, time.monotonic())
        self._children[role, index] = child
        asyncio.get_running_loop().add_reader(child.descriptor, self._ended, (role, index))
        return process.pid

    def signal(self, role: str, index: int, number: int) -> None:
        """Send a signal: SIGKILL to the whole process group, others to the process alone, which handles its children."""
        child = self._children.get((role, index))
        if child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(child.process.pid, number)
            else:
                signal.pidfd_send_signal(child.descriptor, number)

    def kill_all(self) -> None:
        """Kill all processes and wait for their exits."""
        for (role, index), child in list(self._children.items()):
            self.signal(role, index, signal.SIGKILL)
            self._forget((role, index))
            child.process.wait()

    def _forget(self, place: Place) -> None:
        child = self._children.pop(place)
        asyncio.get_running_loop().remove_reader(child.descriptor)
        os.close(child.descriptor)

    def _ended(self, place: Place) -> None:
        child = self._children[place]
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.process.pid, signal.SIGKILL)
        self._forget(place)
        code = child.process.wait()
        self._on_exit(*place, code, last_lines(child.log, since=child.log_offset) if code >= 0 else "")


def last_lines(log: Path, *, since: int = 0) -> str:
    """Return the last output of a process: from its last error line or traceback on, else its last four lines.

    Args:
        log: The log of the process.
        since: Offset in the log at the start of the process. Bytes. Default: 0.
    """
    try:
        with log.open("rb") as stream:
            end = stream.seek(0, os.SEEK_END)
            stream.seek(max(since, end - _TAIL_BYTES))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    lines = [line.rstrip() for line in lines if line.strip()]
    heads = [number for number, line in enumerate(lines) if _HEAD.match(line)]
    if not heads:
        return "\n".join(lines[-_LAST_LINES:])
    return "\n".join([_LEVEL.sub("", lines[heads[-1]], count=1), *lines[heads[-1] + 1 :]])


def _ends_with_line(stream: BinaryIO) -> bool:
    end = stream.seek(0, os.SEEK_END)
    if end:
        stream.seek(end - 1)
    return stream.read(1) in {b"", b"\n"}


def _reason(error: OSError, launch: Launch) -> str:
    if not launch.folder.is_dir():
        return f"there is no folder {launch.folder}"
    if isinstance(error, FileNotFoundError):
        return f"there is no program {launch.command[0]!r} on the PATH (spec.command)"
    return str(error)
