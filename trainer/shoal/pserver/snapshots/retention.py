"""Retention of snapshots: which files a server may delete (rule 10 of the exactly-once protocol).

Keeping the newest files is not enough. A slot that has moved to another server is in the old files only, and if the new
holder fails before its first snapshot, these are the only copies. Files are therefore counted per slot: a file is deleted
only when every slot in it is safe without it, because of newer files here or because the master released it. Pinned files
stay.

A file that the master has released for a slot still counts as a newer one for the files before it: the master released it
because of newer files on another server, which are also newer than those.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

__all__ = ["StoredFile", "deletable"]


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A valid snapshot of this server, and the slots in it."""

    name: str
    slots: frozenset[int]


def deletable(
    files: Sequence[StoredFile],
    *,
    keep: int,
    pinned: Collection[str] = (),
    released: Collection[tuple[int, str]] = (),
) -> list[str]:
    """Return the files that may be deleted, oldest first.

    Args:
        files: Valid snapshots of this server, oldest first.
        keep: How many newer files of this server must hold a slot before an older one is not needed for it; with 2,
            one damaged file loses nothing.
        pinned: Names of the pinned files. Default: none.
        released: (slot, name of file) pairs that the master released. Default: none.

    Returns:
        The names. Deleting only some of them, in any order, is safe, too.

    Raises:
        ValueError: ``keep`` is less than 1.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}: at least one snapshot must stay")
    stay, free = set(pinned), set(released)
    newer: dict[int, int] = {}
    found: list[str] = []
    for file in reversed(files):
        needed = any(newer.get(slot, 0) < keep and (slot, file.name) not in free for slot in file.slots)
        if not needed and file.name not in stay:
            found.append(file.name)
        for slot in file.slots:
            newer[slot] = newer.get(slot, 0) + 1
    return found[::-1]
