"""Snapshot files: each file holds the complete state of one or more slots.

A file gets its name only when every byte of it is on the disk: it is written under a temporary name, synced and renamed, and
the directory is synced. It is a safetensors file, which can be read without running code. It carries the job's UID and the
digest of the model spec, so that parameters of another job are never restored, and a checksum of every tensor and of the
description, so that a flipped bit on the disk is found before training uses it.

There are two levels of checks. ``describe`` reads the header of a file and compares its size: enough to offer the file, and
cheap enough for every file at start. ``read`` checks every byte that it returns. A written file is dropped from the page
cache, so that reading it back reads the disk.

Names begin with the time in nanoseconds and always increase within a directory, even if the clock is set back, so that their
order is the order of writing; a random part separates two processes. A pinned file has an empty marker file next to it, and
is never deleted.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from shoal.protocol.decoding import UNDECODABLE

__all__ = [
    "FORMAT",
    "SlotRecord",
    "SnapshotDescription",
    "SnapshotError",
    "UsableSnapshots",
    "delete",
    "delete_temporary_files",
    "describe",
    "pin",
    "pinned",
    "read",
    "usable_snapshots",
    "write",
]

FORMAT = 1
"""Version of the description; a file with another version is refused."""

_SUFFIX = ".safetensors"
_PIN = ".pin"
_TEMPORARY = ".tmp"
_DESCRIPTION, _CHECKSUMS, _SEAL = "shoal", "checksums", "seal"
_LONGEST_HEAD = 100_000_000
_HASHED_AT_ONCE = 16 << 20

_CODES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}


class SnapshotError(Exception):
    """A snapshot could not be written, or must not be read; the message names the file and the reason."""


class SlotRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The description of one slot in a snapshot.

    ``batches``, ``samples`` and ``skipped`` (samples) are the slot's counters; ``history`` is its encoded watermarks.
    """

    slot: int
    batches: int
    samples: int
    skipped: int
    history: bytes


class SnapshotDescription(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The description of a snapshot: the job, the digest of its model spec, and the slots in it, ascending."""

    format: int
    uid: str
    digest: str
    slots: list[SlotRecord]


class _Place(msgspec.Struct, frozen=True):
    """A tensor in the header of a safetensors file."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


@dataclass(frozen=True)
class UsableSnapshots:
    """The snapshots in a directory: the valid ones, newest first, and (name, reason) of each refused one."""

    good: list[tuple[str, SnapshotDescription]]
    refused: list[tuple[str, str]]


@dataclass(frozen=True)
class _Head:
    description: SnapshotDescription
    places: dict[str, _Place]
    checksums: dict[str, str]
    start: int


_places = msgspec.json.Decoder(dict[str, _Place])
_heads = msgspec.json.Decoder(dict[str, msgspec.Raw])
_strings = msgspec.json.Decoder(dict[str, str])
_descriptions = msgspec.json.Decoder(SnapshotDescription)


def write(
    directory: Path,
    *,
    uid: str,
    digest: str,
    records: Sequence[SlotRecord],
    tensors: Mapping[int, Mapping[str, Tensor]],
) -> str:
    """Write a snapshot and sync it to the disk.

    Args:
        directory: An existing directory.
        uid: UID of the job.
        digest: Digest of the job's model spec.
        records: The slots in the snapshot.
        tensors: For each of these slots the tensors to be restored, by name.

    Returns:
        The name of the file in the directory.

    Raises:
        SnapshotError: The snapshot could not be written; no part of it remains, and older snapshots are untouched.
    """
    ordered = sorted(records, key=lambda record: record.slot)
    flat = {
        f"{_prefix(record.slot)}{name}": tensor.detach().contiguous()
        for record in ordered
        for name, tensor in sorted(tensors[record.slot].items())
    }
    head = _make_head(SnapshotDescription(FORMAT, uid, digest, ordered), flat)
    size = len(head) + sum(tensor.nbytes for tensor in flat.values())
    name = _new_name(directory)
    temporary = directory / f".{name}{_TEMPORARY}"
    try:
        with temporary.open("xb") as file:
            file.write(head)
            for tensor in flat.values():
                file.write(_bytes(tensor))
            file.flush()
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        temporary.rename(directory / name)
        _sync(directory)
    except BaseException as error:
        for path in (temporary, directory / name):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise SnapshotError(_write_failure(directory, size, error)) from error
        raise
    return name


def describe(path: Path, *, uid: str, digest: str) -> SnapshotDescription:
    """Return the description of a snapshot after a check of its header and size.

    Raises:
        SnapshotError: The file is missing, truncated, has a damaged header, or is of another job or model spec.
    """
    with _opened(path) as file:
        return _read_head(file, path, uid=uid, digest=digest).description


def read(
    path: Path, *, uid: str, digest: str, slots: Collection[int] | None = None, verify: bool = True
) -> tuple[SnapshotDescription, dict[int, dict[str, Tensor]]]:
    """Read slots from a snapshot.

    Args:
        path: The file.
        uid: UID of the job.
        digest: Digest of the job's model spec.
        slots: The slots to read. Default: None, all slots in the file.
        verify: Compare the checksum of every tensor that is returned. Default: True.

    Returns:
        The description of the snapshot, and for each slot the tensors by name, in newly allocated memory.

    Raises:
        SnapshotError: The file is missing, truncated, damaged, of another job or model spec, or lacks a slot.
    """
    with _opened(path) as file:
        head = _read_head(file, path, uid=uid, digest=digest)
        held = [record.slot for record in head.description.slots]
        requested = held if slots is None else sorted(slots)
        missing = sorted(set(requested) - set(held))
        if missing:
            raise SnapshotError(f"snapshot {path}: the slots {missing} are not in it; it has {held}")
        found: dict[int, dict[str, Tensor]] = {slot: {} for slot in requested}
        for name, place in head.places.items():
            slot, short = _split(name, path)
            if slot not in found:
                continue
            tensor = _read_tensor(file, head.start, name, place, path)
            if verify and _checksum(name, tensor) != head.checksums.get(name):
                raise SnapshotError(f"snapshot {path}: {name} is damaged (its checksum is another)")
            found[slot][short] = tensor
    return head.description, found


def usable_snapshots(directory: Path, *, uid: str, digest: str) -> UsableSnapshots:
    """Return the snapshots in a directory; none if the directory does not exist.

    Raises:
        SnapshotError: The directory cannot be read.
    """
    good: list[tuple[str, SnapshotDescription]] = []
    refused: list[tuple[str, str]] = []
    for name in reversed(_names(directory)):
        try:
            good.append((name, describe(directory / name, uid=uid, digest=digest)))
        except SnapshotError as error:
            refused.append((name, str(error)))
    return UsableSnapshots(good, refused)


def pin(directory: Path, name: str) -> None:
    """Pin a snapshot, so that it is never deleted, and sync the pin to the disk.

    Raises:
        SnapshotError: There is no such snapshot, or the pin could not be written.
    """
    if not (directory / name).is_file():
        raise SnapshotError(f"snapshot {directory / name} cannot be pinned: it is not there")
    try:
        with (directory / f"{name}{_PIN}").open("wb") as file:
            os.fsync(file.fileno())
        _sync(directory)
    except OSError as error:
        raise SnapshotError(f"snapshot {directory / name} cannot be pinned: {error.strerror}") from error


def pinned(directory: Path) -> set[str]:
    """Return the names of the pinned snapshots in a directory."""
    return {path.name.removesuffix(_PIN) for path in directory.glob(f"*{_SUFFIX}{_PIN}")}


def delete(directory: Path, name: str) -> None:
    """Delete a snapshot; no effect if it does not exist.

    Raises:
        SnapshotError: It is pinned, or the file system returns an error.
    """
    if (directory / f"{name}{_PIN}").exists():
        raise SnapshotError(f"snapshot {directory / name} is pinned and stays")
    try:
        (directory / name).unlink(missing_ok=True)
        _sync(directory)
    except OSError as error:
        raise SnapshotError(f"snapshot {directory / name} cannot be deleted: {error.strerror}") from error


def delete_temporary_files(directory: Path) -> list[str]:
    """Delete files that a killed process left half-written; return their names.

    Only for the one process that writes to this directory, at its start.
    """
    left = [path for path in directory.glob(f".*{_SUFFIX}{_TEMPORARY}") if path.is_file()]
    for path in left:
        path.unlink(missing_ok=True)
    return [path.name for path in left]


def _prefix(slot: int) -> str:
    return f"slot-{slot:04d}/"


def _split(name: str, path: Path) -> tuple[int, str]:
    label, separator, short = name.partition("/")
    number = label.removeprefix("slot-")
    if not separator or number == label or not number.isascii() or not number.isdigit():
        raise SnapshotError(f"snapshot {path}: {name} belongs to no slot")
    return int(number), short


def _new_name(directory: Path) -> str:
    newest = 0
    for name in _names(directory):
        stamp = name.partition("-")[0]
        if stamp.isascii() and stamp.isdigit():
            newest = max(newest, int(stamp))
    return f"{max(time.time_ns(), newest + 1):020d}-{secrets.token_hex(4)}{_SUFFIX}"


def _names(directory: Path) -> list[str]:
    try:
        names = [path.name for path in directory.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SnapshotError(f"the snapshot folder {directory} cannot be read: {error.strerror}") from error
    return sorted(name for name in names if name.endswith(_SUFFIX) and not name.startswith("."))


def _make_head(description: SnapshotDescription, flat: Mapping[str, Tensor]) -> bytes:
    """Return the length and the JSON at the start of a safetensors file, padded so that the data is aligned."""
    places: dict[str, _Place] = {}
    offset = 0
    for name, tensor in flat.items():
        if tensor.dtype not in _CODES:
            raise SnapshotError(f"{name} has the dtype {tensor.dtype}, which a snapshot cannot hold")
        places[name] = _Place(_CODES[tensor.dtype], list(tensor.shape), (offset, offset + tensor.nbytes))
        offset += tensor.nbytes
    text = msgspec.json.encode(description).decode()
    checksums = msgspec.json.encode({name: _checksum(name, tensor) for name, tensor in flat.items()}).decode()
    metadata = {_DESCRIPTION: text, _CHECKSUMS: checksums, _SEAL: _seal(text, checksums, places)}
    head = msgspec.json.encode({"__metadata__": metadata, **places})
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head


def _read_head(file: BufferedReader, path: Path, *, uid: str, digest: str) -> _Head:
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(size - 8, _LONGEST_HEAD):
        raise SnapshotError(f"snapshot {path} is cut off or no snapshot: {size} bytes, with an incomplete header")
    try:
        parts = _heads.decode(file.read(length))
        metadata = _strings.decode(parts.pop("__metadata__", b"{}"))
        places = _places.decode(msgspec.json.encode(parts))
    except UNDECODABLE as error:
        raise SnapshotError(f"snapshot {path}: its head is damaged ({error})") from error
    description, checksums = _check_metadata(metadata, places, path)
    if description.uid != uid:
        raise SnapshotError(f"snapshot {path} is of another job ({description.uid}; this one is {uid})")
    if description.digest != digest:
        raise SnapshotError(
            f"snapshot {path} is of another model, optimizer or dataset: the script has changed since it was written"
        )
    end = max((place.data_offsets[1] for place in places.values()), default=0)
    if size != 8 + length + end:
        raise SnapshotError(f"snapshot {path} is cut off or too long: {size} bytes instead of {8 + length + end}")
    return _Head(description, places, checksums, 8 + length)


def _check_metadata(
    metadata: Mapping[str, str], places: Mapping[str, _Place], path: Path
) -> tuple[SnapshotDescription, dict[str, str]]:
    if _DESCRIPTION not in metadata:
        raise SnapshotError(f"{path} is not a snapshot of Shoal")
    text, checksums = metadata[_DESCRIPTION], metadata.get(_CHECKSUMS, "")
    if metadata.get(_SEAL) != _seal(text, checksums, places):
        raise SnapshotError(f"snapshot {path}: its head is damaged (its checksum is another)")
    try:
        version = msgspec.json.decode(text, type=dict[str, Any]).get("format")
        if version != FORMAT:
            raise SnapshotError(f"snapshot {path} has the format {version}; this version of Shoal reads {FORMAT}")
        return _descriptions.decode(text), _strings.decode(checksums)
    except UNDECODABLE as error:
        raise SnapshotError(f"snapshot {path}: its head is damaged ({error})") from error


def _read_tensor(file: BufferedReader, start: int, name: str, place: _Place, path: Path) -> Tensor:
    dtype = _DTYPES.get(place.dtype)
    begin, end = place.data_offsets
    count = 1
    for extent in place.shape:
        count *= extent
    if dtype is None or min(place.shape, default=0) < 0 or begin < 0 or end - begin != count * dtype.itemsize:
        raise SnapshotError(f"snapshot {path}: {name} is damaged (its entry in the header is invalid)")
    tensor = torch.empty(place.shape, dtype=dtype)
    file.seek(start + begin)
    if file.readinto(_bytes(tensor)) != tensor.nbytes:
        raise SnapshotError(f"snapshot {path} is cut off in {name}")
    return tensor


def _bytes(tensor: Tensor) -> memoryview:
    """Return a view of the memory of a contiguous tensor."""
    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _checksum(name: str, tensor: Tensor) -> str:
    """Return the checksum of a tensor's name, dtype, shape and content; hashing releases the GIL."""
    found = hashlib.blake2b(digest_size=16)
    found.update(msgspec.json.encode([name, _CODES[tensor.dtype], list(tensor.shape)]))
    content = _bytes(tensor)
    for at in range(0, len(content), _HASHED_AT_ONCE):
        found.update(content[at : at + _HASHED_AT_ONCE])
    return found.hexdigest()


def _seal(text: str, checksums: str, places: Mapping[str, _Place]) -> str:
    return hashlib.blake2b(msgspec.json.encode([text, checksums, places]), digest_size=16).hexdigest()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError as error:
        raise SnapshotError(f"snapshot {path} is not there") from error
    except OSError as error:
        raise SnapshotError(f"snapshot {path} cannot be read: {error.strerror}") from error


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_failure(directory: Path, size: int, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"no room for a snapshot of {size / 1e6:.1f} MB in {directory}: the disk is full; older snapshots are "
            "untouched; make room there, or give the parameter servers a larger volume"
        )
    return f"a snapshot of {size / 1e6:.1f} MB could not be written to {directory}: {error.strerror}"
