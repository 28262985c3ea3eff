"""Processes of a cluster, each identified by its pid and its creation time, which are kept in a file.

So another process than the one that started them can end them (``make cluster``, ``make cluster-down``), and a pid that the
kernel has since reused is never signalled.
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
    """One program that runs at most once, with its log and the record that identifies its process."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.log = folder / "logs" / f"{name}.log"
        self._record = folder / "processes" / f"{name}.json"
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process's id, or None if it does not run."""
        try:
            record = json.loads(self._record.read_text())
        except FileNotFoundError:
            return None
        pid: int = record["pid"]
        return pid if born(pid) == record["born"] else None

    def start(self, argv: list[str], *, tied: bool = True) -> None:
        """Start the program.

        Args:
            argv: Command line.
            tied: Whether the program is killed when the process that starts it ends, in whatever way that happens.
        """
        if self.pid:
            raise RuntimeError(f"{self.name} runs already")
        for file in (self.log, self._record):
            file.parent.mkdir(parents=True, exist_ok=True)
        tie = ["setpriv", "--pdeathsig", "KILL", "--"] if tied and shutil.which("setpriv") else []
        with self.log.open("ab") as log:
            # In a session of its own the process gets no Ctrl-C, so that the parts can be ended in order.
            self._child = subprocess.Popen(
                [*tie, *argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        part = self._record.with_suffix(".part")
        part.write_text(json.dumps({"pid": self._child.pid, "born": born(self._child.pid)}))
        part.replace(self._record)

    def signal(self, number: int) -> None:
        """Send a signal if the process runs; after SIGSTOP, return when each of its threads has stopped."""
        with self._held() as descriptor:
            if descriptor is not None:
                signal.pidfd_send_signal(descriptor, number)
                while number == signal.SIGSTOP and self.pid is not None and not stopped(self.pid):
                    time.sleep(0.001)  # only a parent is notified when a process has stopped

    def kill(self) -> None:
        """Send SIGKILL, and wait until the process is gone."""
        self._end(signal.SIGKILL, None)

    def end(self) -> None:
        """Send SIGTERM, and SIGKILL if that is not enough; return when the process is gone."""
        if not self._end(signal.SIGTERM, SECONDS_TO_END):
            self.kill()

    def last_words(self) -> str:
        """Return the end of the log."""
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
        """Open the process as a descriptor, which cannot come to refer to another process; None if it is gone."""
        pid = self.pid
        try:
            descriptor = None if pid is None else os.pidfd_open(pid)
        except ProcessLookupError:
            descriptor = None
        try:
            # Checked again: the pid could have been reused before the descriptor was opened.
            yield descriptor if self.pid else None
        finally:
            if descriptor is not None:
                os.close(descriptor)


def stopped(pid: int) -> bool:
    """Return whether all threads of a process have stopped; until one of them has taken the signal, the others keep running."""
    states = []
    for thread in Path(f"/proc/{pid}/task").glob("*/stat"):
        # A thread may end meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            states.append(thread.read_text().rpartition(")")[2].split()[0])
    return set(states) == {"T"}


def born(pid: int) -> int | None:
    """Return when a process was created, in ticks since boot; None if it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


_given: set[int] = set()
"""Ports that were given to somebody, who may not listen there at the moment."""


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback on which no process listens, and that were not returned here before.

    They are below the ports that Linux gives to outgoing connections (from 32768): a part that is restarted must find its port
    free. Each worker of a test run has its own range, as two workers could choose at the same time.
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
