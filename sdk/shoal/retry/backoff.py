"""Exponential back-off: of one loop, and by key. Pure."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["BackOff", "KeyedBackOff"]

Key = TypeVar("Key", bound=Hashable)


class BackOff:
    """The pauses between the attempts of one loop.

    Args:
        first_seconds: The first pause.
        longest_seconds: The longest pause.
        factor: Ratio of a pause to the one before. Default: 2.
        jitter: Largest part of a pause that is left out at random, from 0 to 1, so that processes that failed together do not
            try again together. Default: 0.
    """

    def __init__(
        self, first_seconds: float, longest_seconds: float, *, factor: float = 2.0, jitter: float = 0.0
    ) -> None:
        self._first, self._longest, self._factor, self._jitter = first_seconds, longest_seconds, factor, jitter
        self._next = first_seconds

    @property
    def pause(self) -> float:
        """The next pause without jitter, in seconds."""
        return self._next

    def next(self) -> float:
        """Return the next pause in seconds; the one after it is longer."""
        pause = self._next
        self._next = min(self._factor * pause, self._longest)
        return pause * (1.0 - self._jitter * random.random()) if self._jitter else pause  # noqa: S311 - no secret

    def reset(self) -> None:
        """Return to the first pause, after a success."""
        self._next = self._first


@dataclass
class KeyedBackOff(Generic[Key]):
    """Pauses between attempts, by key.

    Attributes:
        free: Number of attempts without a pause after them.
        first_seconds: The pause after the next attempt; each further pause is twice as long.
        longest_seconds: The longest pause.
        forget_seconds: A key is reset this long after the end of the pause that follows its last attempt.
    """

    free: int
    first_seconds: float
    longest_seconds: float
    forget_seconds: float
    _tries: dict[Key, tuple[int, float]] = field(default_factory=dict)

    def tried(self, key: Key, now: float) -> None:
        """Record one attempt."""
        count, _ = self._tries.get(key, (0, now))
        self._tries[key] = (0 if self._forgotten(key, now) else count) + 1, now

    def left(self, key: Key, now: float) -> float:
        """Return the seconds until the next attempt is due; 0: now."""
        if key not in self._tries or self._forgotten(key, now):
            return 0.0
        return max(0.0, self._tries[key][1] + self._pause(key) - now)

    def tries(self, key: Key) -> int:
        """Return the number of recorded attempts."""
        return self._tries.get(key, (0, 0.0))[0]

    def __iter__(self) -> Iterator[Key]:
        """Iterate over the keys with recorded attempts."""
        return iter(list(self._tries))

    def forget(self, key: Key) -> None:
        """Reset a key after a success."""
        self._tries.pop(key, None)

    def _pause(self, key: Key) -> float:
        free_tries = self.tries(key) - self.free
        if free_tries <= 0:
            return 0.0
        # The exponent is bounded: a float cannot represent 2**1100.
        return float(min(self.first_seconds * 2 ** min(free_tries - 1, 64), self.longest_seconds))

    def _forgotten(self, key: Key, now: float) -> bool:
        found = self._tries.get(key)
        return found is None or now - found[1] > self._pause(key) + self.forget_seconds
