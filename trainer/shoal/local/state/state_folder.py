"""State folder of a job on this machine: all data that must survive `shoal run`, and the addresses of its processes.

    NAME/job.json        the manifest that runs       NAME/etcd/       etcd's data
    NAME/origin.json     where the command runs       NAME/snapshots/  one folder per parameter server
    NAME/uid, token      of the job (token: 0600)     NAME/logs/       one file per process
    NAME/lock            locked while it runs         NAME/end.json    end of the last run, and the account
    NAME/control         address for `shoal scale`    NAME/last.json   the last status, for `shoal status`
    NAME/record.json     events and changes of size   NAME/metrics.json  logged values over time
    NAME/source/         files shipped by the SDK     NAME/run.log     output of `shoal run` in the background
    NAME/etcd.choice     value of ``--etcd``

Sockets are in ``NAME/sockets``, or, if that path is too long for the kernel (107 bytes), in a private temporary folder
whose name is in ``NAME/sockets.path``.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from shoal.api import TrainingJob, load
from shoal.protocol.messages import JobAccount
from shoal.transport.auth import Token

__all__ = ["BusyError", "Origin", "RunEnd", "StateFolder", "base_folder", "job_names"]

_LONGEST_SOCKET_FOLDER: Final = 90
_KEPT_WHEN_FRESH: Final = {"lock"}
_LOCK_SECONDS: Final = 2.0
"""Longest time in which readers of the lock may delay the taking of it."""


class BusyError(Exception):
    """Another `shoal run` has locked this folder."""


class Origin(msgspec.Struct, frozen=True):
    """Origin of a job, which distinguishes it from another job of the same name."""

    folder: str
    source: str


class RunEnd(msgspec.Struct, frozen=True):
    """End of a run.

    Attributes:
        state: ``Complete``, ``Failed`` or ``Stopped``.
        reason: Reason of the failure or of an early completion; empty otherwise.
        final: Whether the master recorded this end, so that the job cannot resume.
        account: Account of every sample.
        process: Process whose failure ended the job, such as ``trainer-0``. Default: empty, none or unknown.
    """

    state: str
    reason: str
    final: bool
    account: JobAccount
    process: str = ""


def base_folder(named: str | Path | None = None) -> Path:
    """Return the folder of all jobs: ``--state``, ``$SHOAL_STATE``, ``$XDG_STATE_HOME/shoal`` or ``~/.local/state/shoal``."""
    if named is not None:
        return Path(named).expanduser().resolve()
    if os.environ.get("SHOAL_STATE"):
        return Path(os.environ["SHOAL_STATE"]).expanduser().resolve()
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(home).expanduser().resolve() / "shoal"


def job_names(base: Path) -> list[str]:
    """Return the names of the jobs in a folder."""
    if not base.is_dir():
        return []
    # A name with a dot is that of a folder that is being removed.
    return sorted(
        entry.name for entry in base.iterdir() if not entry.name.startswith(".") and (entry / "job.json").is_file()
    )


class StateFolder:
    """State folder of one job.

    Args:
        base: Folder of all jobs.
        name: The job's name.
    """

    def __init__(self, base: Path, name: str) -> None:
        self.name = name
        self.path = base / name
        self._lock: int | None = None

    manifest = property(lambda self: self.path / "job.json")
    token = property(lambda self: self.path / "token")
    etcd = property(lambda self: self.path / "etcd")
    snapshots = property(lambda self: self.path / "snapshots")
    logs = property(lambda self: self.path / "logs")
    master = property(lambda self: self.path / "master.address")
    control = property(lambda self: self.path / "control")
    last = property(lambda self: self.path / "last.json")
    source = property(lambda self: self.path / "source")
    run_log = property(lambda self: self.path / "run.log")

    # --- Lock ---

    def lock(self) -> None:
        """Lock the folder for this process; the kernel releases the lock when the process ends.

        Raises:
            BusyError: Another process has locked it.
        """
        deadline = time.monotonic() + _LOCK_SECONDS
        while (descriptor := self._try_lock()) is None:
            # A process that reads the lock holds it for some microseconds.
            holder = self.runner()
            if holder is not None or time.monotonic() >= deadline:
                raise BusyError(
                    f"job {self.name} is running already (pid {holder or 'unknown'}); see "
                    f"`shoal status {self.name}`, or run this one under another --name"
                )
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._lock = descriptor

    def _try_lock(self) -> int | None:
        """Return a locked descriptor; None if another process has locked it, or removed it at the same time."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The folder may have been removed, or removed and made anew, before the lock was taken.
            if os.fstat(descriptor).st_ino == (self.path / "lock").stat().st_ino:
                return descriptor
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def runner(self) -> int | None:
        """Return the id of the process that has locked the folder (0: not known yet); None if it is not locked."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDONLY)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.read(descriptor, 32).strip()
            return int(text) if text.isdigit() else 0
        finally:
            os.close(descriptor)
        return None

    def unlock(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # --- Contents ---

    @property
    def exists(self) -> bool:
        """Whether the folder has the state of a job."""
        return bool(self.manifest.is_file())

    @property
    def started(self) -> bool:
        """Whether the job was run at least once; the SDK creates it before."""
        return bool(self.token.is_file())

    def clear(self, *, folder: str = "") -> list[str]:
        """Remove all entries except the lock, and return their names.

        Args:
            folder: Folder that the job will run in; it is kept if it is that of the shipped files. Default: empty, none.
        """
        self.drop_sockets()
        kept = _KEPT_WHEN_FRESH | ({self.source.name} if folder == str(self.source) else set())
        removed = []
        for entry in sorted(self.path.iterdir()):
            if entry.name in kept:
                continue
            removed.append(entry.name)
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        return removed

    def remove(self) -> None:
        """Remove the folder, which this process has locked, and release the lock.

        Raises:
            OSError: Entries cannot be removed; they remain in a hidden folder beside it.
        """
        self.drop_sockets()
        # First under another name, so that no process sees a half of it.
        hidden = self.path.with_name(f".{self.name}-{secrets.token_hex(4)}")
        self.path.rename(hidden)
        self.unlock()
        shutil.rmtree(hidden)

    def create(self, job: TrainingJob, origin: Origin) -> None:
        """Write what a job consists of before its first run; the folder is locked and has no job.

        Args:
            job: The job.
            origin: Its origin.
        """
        self._write("uid", uuid.uuid4().hex.encode())
        self._write("origin.json", msgspec.json.encode(origin))
        self.write_job(job)

    def write_job(self, job: TrainingJob) -> None:
        """Write the manifest."""
        self._write("job.json", msgspec.json.format(msgspec.json.encode(job.to_mapping()), indent=2))

    def prepare(self, job: TrainingJob, origin: Origin) -> None:
        """Create folders and files for the job's processes; the state of an earlier run remains."""
        for folder in (self.etcd, self.snapshots, self.logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for index in range(job.servers):
            (self.snapshots / f"pserver-{index}").mkdir(mode=0o700, exist_ok=True)
        if not self.token.is_file() or self.token.stat().st_size < 16:
            Token.create(self.token)
        if not self._read("uid"):
            self._write("uid", uuid.uuid4().hex.encode())
        self._write("origin.json", msgspec.json.encode(origin))
        self.write_job(job)
        for name in ("end.json", "master.address", "control"):
            (self.path / name).unlink(missing_ok=True)

    @property
    def uid(self) -> str:
        """Uid of the job."""
        return self._read("uid").decode().strip()

    def job(self) -> TrainingJob:
        """Return the job of the last run."""
        return load(self.manifest)

    def origin(self) -> Origin | None:
        """Return the job's origin; None if there is none."""
        text = self._read("origin.json")
        return msgspec.json.decode(text, type=Origin) if text else None

    def end(self) -> RunEnd | None:
        """Return the end of the last run; None if it was killed, or still runs."""
        text = self._read("end.json")
        return msgspec.json.decode(text, type=RunEnd) if text else None

    def write_end(self, end: RunEnd) -> None:
        """Write the end of the run; the account is also written to ``account.json``, for other programs."""
        self._write("account.json", msgspec.json.encode(end.account) + b"\n")
        self._write("end.json", msgspec.json.encode(end))

    def write_last(self, status: bytes) -> None:
        """Write the last status."""
        self._write("last.json", status)

    def record(self) -> bytes:
        """Return the record of events and changes of size; empty if there is none."""
        return self._read("record.json")

    def write_record(self, content: bytes) -> None:
        """Write the record of events and changes of size."""
        self._write("record.json", content)

    def metrics(self) -> bytes:
        """Return the logged values over time, as a list in JSON; empty if there are none."""
        return self._read("metrics.json")

    def write_metrics(self, content: bytes) -> None:
        """Write the logged values over time."""
        self._write("metrics.json", content)

    def etcd_choice(self) -> str | None:
        """Return the value of ``--etcd`` of the last run; None if it had none."""
        return self._read("etcd.choice").decode() or None

    def write_etcd_choice(self, choice: str | None) -> None:
        """Write the value of ``--etcd``."""
        self._write("etcd.choice", (choice or "").encode())

    # --- Sockets ---

    def make_sockets(self) -> Path:
        """Create an empty, private folder for sockets, whose path is within the kernel's limit."""
        self.drop_sockets()
        folder = self.path / "sockets"
        if len(os.fsencode(folder)) <= _LONGEST_SOCKET_FOLDER:
            folder.mkdir(mode=0o700)
            return folder
        folder = Path(tempfile.mkdtemp(prefix="shoal-"))
        self._write("sockets.path", os.fsencode(folder))
        return folder

    def drop_sockets(self) -> None:
        """Remove the folder of the sockets."""
        shutil.rmtree(self.path / "sockets", ignore_errors=True)
        elsewhere = self._read("sockets.path")
        if elsewhere:
            folder = Path(os.fsdecode(elsewhere))
            if folder.name.startswith("shoal-") and folder.is_dir() and folder.stat().st_uid == os.getuid():
                shutil.rmtree(folder, ignore_errors=True)
            (self.path / "sockets.path").unlink(missing_ok=True)

    # --- Files ---

    def _read(self, name: str) -> bytes:
        with suppress(FileNotFoundError):
            return (self.path / name).read_bytes()
        return b""

    def _write(self, name: str, content: bytes) -> None:
        """Replace a file atomically."""
        descriptor, temporary = tempfile.mkstemp(dir=self.path, prefix=f".{name}-")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            Path(temporary).replace(self.path / name)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
