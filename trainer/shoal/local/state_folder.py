"""The folder of a job on this machine: everything that must outlive `shoal run`, and where its processes meet.

    NAME/job.json        the manifest as it runs      NAME/etcd/       etcd's data
    NAME/origin.json     where the command runs       NAME/snapshots/  one folder per parameter server
    NAME/uid, token      the job's (token: 0600)      NAME/logs/       one file per process
    NAME/lock            held while it runs           NAME/end.json    how it ended, and the account
    NAME/control         where `shoal scale` asks     NAME/last.json   the last status, for `shoal status`

Sockets lie in ``NAME/sockets``, or, where that path is too long for the kernel (107 bytes), in a private temporary
folder whose name is kept in ``NAME/sockets.path``.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
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


class BusyError(Exception):
    """Another `shoal run` has this folder."""


class Origin(msgspec.Struct, frozen=True):
    """Where a job comes from: two jobs of the same name are told apart by it."""

    folder: str
    source: str


class RunEnd(msgspec.Struct, frozen=True):
    """How a run ended.

    Attributes:
        state: ``Complete``, ``Failed`` or ``Stopped``.
        reason: Why it failed, or why it was complete early.
        final: Whether the master recorded this end: the job cannot go on.
        account: Of every sample.
    """

    state: str
    reason: str
    final: bool
    account: JobAccount


def base_folder(named: str | Path | None = None) -> Path:
    """Where jobs are kept: ``--state``, else ``$SHOAL_STATE``, ``$XDG_STATE_HOME/shoal``, ``~/.local/state/shoal``."""
    if named is not None:
        return Path(named).expanduser().resolve()
    if os.environ.get("SHOAL_STATE"):
        return Path(os.environ["SHOAL_STATE"]).expanduser().resolve()
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(home).expanduser().resolve() / "shoal"


def job_names(base: Path) -> list[str]:
    """The jobs kept there."""
    if not base.is_dir():
        return []
    return sorted(entry.name for entry in base.iterdir() if (entry / "job.json").is_file())


class StateFolder:
    """One job's folder.

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

    # --- Who has it ---

    def lock(self) -> None:
        """Take the folder for this process; it is given back when the process ends, however it ends.

        Raises:
            BusyError: Another process has it.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise BusyError(
                f"job {self.name} is running already (pid {self.runner() or 'unknown'}); look at it with "
                f"`shoal status {self.name}`, or run this one under another --name"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        self._lock = descriptor

    def runner(self) -> int | None:
        """The process that has the folder, if one has."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDONLY)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.read(descriptor, 32).strip()
            return int(text) if text.isdigit() else None
        finally:
            os.close(descriptor)
        return None

    def unlock(self) -> None:
        """Give the folder back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # --- What is in it ---

    @property
    def exists(self) -> bool:
        """Whether a job is kept here."""
        return bool(self.manifest.is_file())

    def clear(self) -> list[str]:
        """Remove everything but the lock; the names of what was removed."""
        self.drop_sockets()
        removed = []
        for entry in sorted(self.path.iterdir()):
            if entry.name in _KEPT_WHEN_FRESH:
                continue
            removed.append(entry.name)
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        return removed

    def prepare(self, job: TrainingJob, origin: Origin) -> None:
        """Write what the job's processes need; what is there of an earlier run stays."""
        for folder in (self.etcd, self.snapshots, self.logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for index in range(job.servers):
            (self.snapshots / f"pserver-{index}").mkdir(mode=0o700, exist_ok=True)
        if not self.token.is_file() or self.token.stat().st_size < 16:
            Token.create(self.token)
        if not self._read("uid"):
            self._write("uid", uuid.uuid4().hex.encode())
        self._write("origin.json", msgspec.json.encode(origin))
        self._write("job.json", msgspec.json.format(msgspec.json.encode(job.to_mapping()), indent=2))
        for name in ("end.json", "master.address", "control"):
            (self.path / name).unlink(missing_ok=True)

    @property
    def uid(self) -> str:
        """The job's uid."""
        return self._read("uid").decode().strip()

    def job(self) -> TrainingJob:
        """The job as it was last run."""
        return load(self.manifest)

    def origin(self) -> Origin | None:
        """Where it came from."""
        text = self._read("origin.json")
        return msgspec.json.decode(text, type=Origin) if text else None

    def end(self) -> RunEnd | None:
        """How the last run ended; None if it was killed, or runs."""
        text = self._read("end.json")
        return msgspec.json.decode(text, type=RunEnd) if text else None

    def write_end(self, end: RunEnd) -> None:
        """Keep how it ended; the account also by itself, for other programs."""
        self._write("account.json", msgspec.json.encode(end.account) + b"\n")
        self._write("end.json", msgspec.json.encode(end))

    def write_last(self, status: bytes) -> None:
        """Keep the last status."""
        self._write("last.json", status)

    # --- Sockets ---

    def make_sockets(self) -> Path:
        """A folder for sockets, empty and private, with a path short enough for the kernel."""
        self.drop_sockets()
        folder = self.path / "sockets"
        if len(os.fsencode(folder)) <= _LONGEST_SOCKET_FOLDER:
            folder.mkdir(mode=0o700)
            return folder
        folder = Path(tempfile.mkdtemp(prefix="shoal-"))
        self._write("sockets.path", os.fsencode(folder))
        return folder

    def drop_sockets(self) -> None:
        """Remove the folder for sockets."""
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
        """Replace a file so that a reader sees the old or the new one, never a part."""
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
