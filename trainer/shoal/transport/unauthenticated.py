"""Callers that have not proved yet that they know the job's token: bounded in number, in all and for each address."""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["MOST", "MOST_OF_ONE", "Unauthenticated"]

MOST = 256
"""Callers in all: a handshake takes milliseconds, so even hundreds of trainers that join at once stay below."""
MOST_OF_ONE = 64
"""Callers from one address."""

K = TypeVar("K")


class Unauthenticated(Generic[K]):
    """The callers within their handshake. Where there are too many, the oldest makes room for the newest.

    Turning the newest away would let a stranger that opens connections and says nothing keep the job's own processes
    out; they need milliseconds, so they have proved themselves before they are the oldest.

    Args:
        most: Callers in all.
        most_of_one: Callers from one address.
    """

    def __init__(self, most: int = MOST, most_of_one: int = MOST_OF_ONE) -> None:
        self._most, self._most_of_one = most, most_of_one
        self._callers: dict[K, str] = {}

    def __len__(self) -> int:
        return len(self._callers)

    def admit(self, caller: K, address: str) -> K | None:
        """Take a caller in; the one that must be hung up on for it, if there are too many.

        Args:
            caller: Anything that is hashable and unlike the others.
            address: The host that it calls from; "" where there is none (a Unix socket): only the bound for all counts.
        """
        oldest: K | None = None
        same = [each for each, whence in self._callers.items() if whence == address] if address else []
        if len(same) >= self._most_of_one:
            oldest = same[0]
        elif len(self._callers) >= self._most:
            oldest = next(iter(self._callers))
        if oldest is not None:
            del self._callers[oldest]
        self._callers[caller] = address
        return oldest

    def remove(self, caller: K) -> bool:
        """A caller has proved itself, or is gone; False: it had made room already."""
        return self._callers.pop(caller, None) is not None

    def oldest(self) -> K | None:
        """Take the oldest caller out, to be hung up on."""
        caller = next(iter(self._callers), None)
        if caller is not None:
            del self._callers[caller]
        return caller
