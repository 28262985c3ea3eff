"""Which snapshots a server may delete: rule 10 of the exactly-once protocol, and nothing else.

To keep the newest files is not enough. A slot that has moved away is in the old files only, and if its new holder dies
before its first snapshot, these are all there is of it. So the files are counted per slot: a file goes only when every
slot in it is safe without it, by newer files here or by the master's word. What is pinned stays.

A file that the master has released for a slot still counts as a newer one for the files before it: the word was given
for newer files elsewhere, which are newer than those, too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

__all__ = ["StoredFile", "deletable"]


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A good snapshot of this server, and the slots in it."""

    name: str
    slots: frozenset[int]


def deletable(
    files: Sequence[StoredFile],
    *,
    keep: int,
    pinned: Collection[str] = (),
    released: Collection[tuple[int, str]] = (),
) -> list[str]:
    """The files that may go, oldest first.

    Args:
        files: This server's good snapshots, oldest first.
        keep: How many newer files of this server must hold a slot before an older one is not needed for it; with 2,
            one damaged file costs nothing.
        pinned: Names of files that stay.
        released: (slot, name of file) pairs of which the master said that they need not be kept.

    Returns:
        Names. Deleting some of them only, in any order, is as safe.

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
