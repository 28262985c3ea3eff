"""Processes of a cluster, each known by its id and the moment it was created, kept in a file.

So another process than the one that started them can end them (``make cluster``, ``make cluster-down``), and an id that the
kernel has since given to somebody else is never signalled.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Process", "born", "free_ports"]

SECONDS_TO_END = 5.0


class Process:
    """One program that runs at most once, with its log and the record of who it is."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.log = folder / "logs" / f"{name}.log"
        self._record = folder / "processes" / f"{name}.json"
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Its id, if it lives."""
        try:
            record = json.loads(self._record.read_text())
        except FileNotFoundError:
            return None
        pid: int = record["pid"]
        return pid if born(pid) == record["born"] else None

    def start(self, argv: list[str], *, tied: bool = True) -> None:
        """`tied`: it ends with the process that starts it, whatever happens to that one."""
        if self.pid:
            raise RuntimeError(f"{self.name} runs already")
        for file in (self.log, self._record):
            file.parent.mkdir(parents=True, exist_ok=True)
        tie = ["setpriv", "--pdeathsig", "KILL", "--"] if tied and shutil.which("setpriv") else []
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C is for whoever ends it, in order.
            self._child = subprocess.Popen(
                [*tie, *argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        part = self._record.with_suffix(".part")
        part.write_text(json.dumps({"pid": self._child.pid, "born": born(self._child.pid)}))
        part.replace(self._record)

    def signal(self, number: int) -> None:
        """Send a signal, if it lives; after SIGSTOP, back when each of its threads has stopped."""
        with self._held() as descriptor:
            if descriptor is not None:
                signal.pidfd_send_signal(descriptor, number)
                while number == signal.SIGSTOP and self.pid is not None and not stopped(self.pid):
                    time.sleep(0.001)  # nobody tells when a process has stopped, but to its parent

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._end(signal.SIGKILL, None)

    def end(self) -> None:
        """SIGTERM, and SIGKILL if that is not enough; back when it is gone."""
        if not self._end(signal.SIGTERM, SECONDS_TO_END):
            self.kill()

    def last_words(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-1500:] if self.log.exists() else "it has no log"

    def _end(self, number: int, seconds: float | None) -> bool:
        gone = True
        with self._held() as descriptor:
            if descriptor is not None:
                signal.pidfd_send_signal(descriptor, number)
                gone = bool(select.select([descriptor], [], [], seconds)[0])
        if gone and self._child is not None:
            self._child.wait()
            self._child = None
        return gone

    @contextlib.contextmanager
    def _held(self) -> Iterator[int | None]:
        """The process by a descriptor, which cannot come to mean another one; None if it is gone."""
        pid = self.pid
        try:
            descriptor = None if pid is None else os.pidfd_open(pid)
        except ProcessLookupError:
            descriptor = None
        try:
            # Asked again: the id could have changed hands before it was opened.
            yield descriptor if self.pid else None
        finally:
            if descriptor is not None:
                os.close(descriptor)


def stopped(pid: int) -> bool:
    """Whether no thread of a process runs: until one of them has taken the signal, the others go on serving."""
    states = []
    for thread in Path(f"/proc/{pid}/task").glob("*/stat"):
        # One may end meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            states.append(thread.read_text().rpartition(")")[2].split()[0])
    return set(states) == {"T"}


def born(pid: int) -> int | None:
    """When a process was created, in ticks since the machine started; None if it is gone (a zombie is)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


_given: set[int] = set()
"""Ports that were given to somebody, who may not listen there at the moment."""


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on, and that nobody else was given here.

    Below those that Linux gives to outgoing connections (from 32768): a part that is down for a moment must find its port
    free when it comes back. Each worker of a test run has a range of its own, as two could ask at the same moment.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    first = 20_000 + 1000 * (int(worker) % 9 + 1 if worker.isdigit() else 0)
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(first, first + 1000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                found.append(port)
    return found
