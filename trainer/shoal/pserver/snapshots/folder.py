"""The snapshot directory of a server: lists, reads, writes and prunes its files for the protocol state."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from shoal.protocol.messages import File, ModelSpec
from shoal.protocol.model_spec import digest
from shoal.pserver.snapshots import files, retention
from shoal.pserver.state.server_state import DiskError, Snapshot

__all__ = ["SnapshotFolder"]


class SnapshotFolder:
    """The snapshots of one server.

    Args:
        folder: The directory; created if it does not exist.
        uid: UID of the job.
        shape: Model spec of the job; snapshots of another one are refused.
        keep: Number of snapshots to keep of each slot, at least 2.

    Attributes:
        refused: The reason for each file in the directory that is not offered.

    Raises:
        OSError: The directory cannot be created.
    """

    def __init__(self, folder: Path, *, uid: str, shape: ModelSpec, keep: int) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder = folder
        self._uid = uid
        self._digest = digest(shape)
        self._keep = max(2, keep)
        self._lock = threading.Lock()
        self._released: set[tuple[int, str]] = set()
        self._cached: tuple[str, dict[int, tuple[dict[str, Tensor], bytes]]] = ("", {})
        files.delete_temporary_files(folder)
        usable_snapshots = files.usable_snapshots(folder, uid=uid, digest=self._digest)
        self.refused = [reason for _, reason in usable_snapshots.refused]
        self._files = {
            name: File(
                name=name,
                slots=[record.slot for record in description.slots],
                counts=[record.batches for record in description.slots],
            )
            for name, description in reversed(usable_snapshots.good)
        }
        """Name -> file, oldest first."""

    def files(self) -> list[File]:
        """Return all valid snapshots, oldest first."""
        with self._lock:
            return list(self._files.values())

    def load(self, name: str, slot: int) -> tuple[dict[str, Tensor], bytes]:
        """Return a slot's state and history from a snapshot, with every byte checked.

        Raises:
            DiskError: The file is missing, damaged, of another job, or lacks the slot; a file that cannot be read is no
                longer offered.
        """
        if self._cached[0] != name or slot not in self._cached[1]:
            try:
                description, found = files.read(self._folder / name, uid=self._uid, digest=self._digest)
            except files.SnapshotError as error:
                with self._lock:
                    self._files.pop(name, None)
                raise DiskError(f"{error}; an older one is used") from error
            histories = {record.slot: record.history for record in description.slots}
            self._cached = (name, {number: (tensors, histories[number]) for number, tensors in found.items()})
        held = self._cached[1]
        if slot not in held:
            raise DiskError(f"snapshot {name} no longer holds slot {slot}")
        state = held.pop(slot)
        if not held:
            self._cached = ("", {})
        return state

    def release(self, slot: int, names: Iterable[str]) -> None:
        """Note that these files need not be kept for this slot (rule 10)."""
        with self._lock:
            self._released.update((slot, name) for name in names)

    def write(self, snapshot: Snapshot, *, pin: bool) -> str:
        """Write a snapshot; return its name.

        Args:
            snapshot: The slots.
            pin: Read the file back completely and pin it, so that it is never deleted.

        Raises:
            DiskError: The snapshot could not be written or not be read back.
        """
        records = [
            files.SlotRecord(
                slot=slot, batches=part.batches, samples=part.samples, skipped=part.skipped, history=part.history
            )
            for slot, part in sorted(snapshot.items())
        ]
        tensors = {slot: part.state for slot, part in snapshot.items()}
        try:
            name = files.write(self._folder, uid=self._uid, digest=self._digest, records=records, tensors=tensors)
            if pin:
                files.read(self._folder / name, uid=self._uid, digest=self._digest)
                files.pin(self._folder, name)
        except files.SnapshotError as error:
            raise DiskError(str(error)) from error
        with self._lock:
            self._files[name] = File(
                name=name, slots=[record.slot for record in records], counts=[record.batches for record in records]
            )
        return name

    def prune(self) -> None:
        """Delete the files that need not be kept. A file that cannot be deleted is retried at the next call."""
        with self._lock:
            stored = [retention.StoredFile(name, frozenset(file.slots)) for name, file in self._files.items()]
            released = set(self._released)
        deletable = retention.deletable(stored, keep=self._keep, pinned=files.pinned(self._folder), released=released)
        for name in deletable:
            with contextlib.suppress(files.SnapshotError):
                files.delete(self._folder, name)
                with self._lock:
                    self._files.pop(name, None)
                    self._released = {pair for pair in self._released if pair[1] != name}
