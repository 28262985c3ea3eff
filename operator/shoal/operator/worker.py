"""Brings dirty jobs to rest: one look at a job at a time, all jobs side by side, failures tried again later."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

__all__ = ["Worker"]

_FIRST_PAUSE_SECONDS: Final = 0.2
_LONGEST_PAUSE_SECONDS: Final = 30.0

log = logging.getLogger(__name__)


class Worker:
    """Runs a coroutine for each key that was marked, never twice at once for the same key.

    Args:
        look: Looks at one key and acts. What it raises is logged, and the key is looked at again after a growing pause:
            one job's trouble never delays another's.
    """

    def __init__(self, look: Callable[[str], Awaitable[None]]) -> None:
        self._look = look
        self._dirty: set[str] = set()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._pauses: dict[str, float] = {}
        self._later: dict[str, asyncio.TimerHandle] = {}
        self._closed = False

    def mark(self, *keys: str) -> None:
        """Something changed for these keys."""
        for key in keys:
            self._dirty.add(key)
            if key not in self._running and not self._closed:
                self._running[key] = asyncio.get_running_loop().create_task(self._run(key))

    def mark_later(self, key: str, seconds: float) -> None:
        """Look at a key again after a while, if nothing marks it before."""
        timer = self._later.pop(key, None)
        if timer is not None:
            timer.cancel()
        if not self._closed:
            self._later[key] = asyncio.get_running_loop().call_later(seconds, self.mark, key)

    async def close(self) -> None:
        """End every look that is under way."""
        self._closed = True
        for timer in self._later.values():
            timer.cancel()
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    @property
    def idle(self) -> bool:
        """Whether nobody is looked at."""
        return not self._running

    async def _run(self, key: str) -> None:
        try:
            while key in self._dirty and not self._closed:
                self._dirty.discard(key)
                await self._once(key)
        finally:
            del self._running[key]

    async def _once(self, key: str) -> None:
        begun = time.monotonic()
        try:
            await self._look(key)
        except Exception as error:  # noqa: BLE001 - whatever it is, it concerns this key alone
            pause = self._pauses.get(key, _FIRST_PAUSE_SECONDS)
            self._pauses[key] = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            log.warning("%s: %s; again in %.1f s", key, _words(error), pause)
            self.mark_later(key, pause)
        else:
            self._pauses.pop(key, None)
            log.debug("%s: looked at in %.1f ms", key, 1000 * (time.monotonic() - begun))


def _words(error: BaseException) -> str:
    """What an error says; of a group, what its members say."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_words(each) for each in error.exceptions)
    return str(error) or type(error).__name__
