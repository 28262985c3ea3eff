"""A semaphore that serves keys in turn, so that a key with many waiters does not delay the others."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

__all__ = ["FairSemaphore"]


class FairSemaphore:
    """A semaphore that is fair among keys.

    Args:
        most: Number of holders at a time.
    """

    def __init__(self, most: int) -> None:
        self._free = most
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}
        """Waiters by key, oldest first; the first key is served next."""

    @asynccontextmanager
    async def of(self, key: Hashable) -> AsyncIterator[None]:
        """Hold the semaphore as one of the holders of a key."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(key)
        try:
            yield
        finally:
            self._release()

    async def _wait(self, key: Hashable) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():  # acquired by a task that was cancelled at the same time
                self._release()
            raise

    def _release(self) -> None:
        while self._waiting:
            key = next(iter(self._waiting))
            waiters = self._waiting.pop(key)
            waiter = waiters.popleft()
            if waiters:
                self._waiting[key] = waiters
            if not waiter.done():
                waiter.set_result(None)
                return
        self._free += 1
