"""So many at a time, and who waits is served in turn by whom it is for: one with much to do does not keep the others waiting."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

__all__ = ["FairSemaphore"]


class FairSemaphore:
    """A semaphore that is fair among keys.

    Args:
        most: So many hold it at a time.
    """

    def __init__(self, most: int) -> None:
        self._free = most
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}
        """By key, those who wait, the oldest first; the first key is the next to be served."""

    @asynccontextmanager
    async def of(self, key: Hashable) -> AsyncIterator[None]:
        """Hold it, as one of those of a key."""
        if self._free:
            self._free -= 1
        else:
            await self._turn(key)
        try:
            yield
        finally:
            self._pass_on()

    async def _turn(self, key: Hashable) -> None:
        mine = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():  # it was given to one who does not want it any more
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            key = next(iter(self._waiting))
            line = self._waiting.pop(key)
            given = line.popleft()
            if line:
                self._waiting[key] = line
            if not given.done():
                given.set_result(None)
                return
        self._free += 1
