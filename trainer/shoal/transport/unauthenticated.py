"""Callers that have not authenticated yet, limited in number, in total and per address."""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["MOST", "MOST_OF_ONE", "Unauthenticated"]

MOST = 256
"""The limit in total; a handshake takes milliseconds, so that hundreds of trainers that join at once stay below it."""
MOST_OF_ONE = 64
"""The limit per address."""

K = TypeVar("K")


class Unauthenticated(Generic[K]):
    """The callers in their handshake. If there are too many, the oldest is closed for the newest.

    If the newest were refused, a caller that opens connections and sends nothing could block the job's own processes.
    These authenticate within milliseconds, before they are the oldest.

    Args:
        most: The limit of callers in total. Default: 256.
        most_of_one: The limit of callers from one address. Default: 64.
    """

    def __init__(self, most: int = MOST, most_of_one: int = MOST_OF_ONE) -> None:
        self._most, self._most_of_one = most, most_of_one
        self._callers: dict[K, str] = {}

    def __len__(self) -> int:
        return len(self._callers)

    def admit(self, caller: K, address: str) -> K | None:
        """Add a caller; return the caller that must be closed for it, or None.

        Args:
            caller: A hashable value that differs from the others.
            address: The caller's host; "" if there is none (a Unix socket), in which case only the total limit applies.
        """
        oldest: K | None = None
        same = [each for each, host in self._callers.items() if host == address] if address else []
        if len(same) >= self._most_of_one:
            oldest = same[0]
        elif len(self._callers) >= self._most:
            oldest = next(iter(self._callers))
        if oldest is not None:
            del self._callers[oldest]
        self._callers[caller] = address
        return oldest

    def remove(self, caller: K) -> bool:
        """Remove a caller that has authenticated or closed; return False if it was already removed as the oldest."""
        return self._callers.pop(caller, None) is not None

    def oldest(self) -> K | None:
        """Remove and return the oldest caller, which must be closed; None if there is none."""
        caller = next(iter(self._callers), None)
        if caller is not None:
            del self._callers[caller]
        return caller
