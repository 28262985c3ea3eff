"""A mapping that stores a value once for all keys that have it.

Slots of one server nearly always have the same history, and the master nearly always has the same evidence about them.
Both are stored as groups of keys that share one value: a change to a part of a group splits it, and groups whose values
are equal again are merged, so that the usual cost is that of a single slot.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Generic, Protocol, TypeVar

__all__ = ["Copyable", "Grouped"]


class Copyable(Protocol):
    """A value that can be copied, and compared by content."""

    def copy(self) -> Copyable:
        """Return a copy that shares no state."""
        ...


T = TypeVar("T", bound=Copyable)


class Grouped(Generic[T]):
    """A mapping from small integers to values; keys with equal values share one object."""

    def __init__(self) -> None:
        self._groups: list[tuple[set[int], T]] = []

    def __len__(self) -> int:
        """Return the number of keys."""
        return sum(len(keys) for keys, _ in self._groups)

    def __contains__(self, key: int) -> bool:
        return any(key in keys for keys, _ in self._groups)

    def __getitem__(self, key: int) -> T:
        for keys, value in self._groups:
            if key in keys:
                return value
        raise KeyError(key)

    def groups(self) -> Iterator[tuple[frozenset[int], T]]:
        """Yield every group: its keys and their value, which the caller must not change."""
        for keys, value in self._groups:
            yield frozenset(keys), value

    def values(self) -> Iterator[T]:
        """Yield every distinct value."""
        for _, value in self._groups:
            yield value

    def remove(self, keys: Collection[int]) -> None:
        """Remove keys; missing keys are ignored."""
        removed = set(keys)
        for own, _ in self._groups:
            own.difference_update(removed)
        self._groups = [group for group in self._groups if group[0]]

    def replace(self, keys: Collection[int], value: T) -> None:
        """Set the value of keys; they join the group that has an equal value."""
        self.remove(keys)
        if not keys:
            return
        for own, other in self._groups:
            if other == value:
                own.update(keys)
                return
        self._groups.append((set(keys), value))

    def update(self, keys: Collection[int], change: Callable[[T], None]) -> None:
        """Apply a change to the values of keys; the value of a whole group is changed in place."""
        selected = set(keys)
        split = False
        for own, value in list(self._groups):
            part = own & selected
            if not part:
                continue
            if len(part) == len(own):
                change(value)
                continue
            copied: T = value.copy()  # type: ignore[assignment]
            change(copied)
            own.difference_update(part)
            self._groups.append((part, copied))
            split = True
        if split or len(self._groups) > 1:
            self._merge()

    def _merge(self) -> None:
        merged: list[tuple[set[int], T]] = []
        for keys, value in self._groups:
            for own, other in merged:
                if other == value:
                    own.update(keys)
                    break
            else:
                merged.append((keys, value))
        self._groups = merged
