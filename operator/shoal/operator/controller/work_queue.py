"""A work queue as in client-go: one sync for each key at a time, all keys concurrently, failed keys requeued with back-off."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from shoal.retry import BackOff

__all__ = ["WorkQueue"]

_FIRST_PAUSE_SECONDS: Final = 0.2
_LONGEST_PAUSE_SECONDS: Final = 30.0
_FIRST_INTERVAL_SECONDS: Final = 0.005
_LONGEST_INTERVAL_SECONDS: Final = 0.4
"""Bounds of the seconds between two syncs of a key that is added again and again, as while its pods start."""

log = logging.getLogger(__name__)


def _ignore(_seconds: float, _failed: bool) -> None:  # noqa: FBT001 - as the hook is called
    pass


class WorkQueue:
    """Runs a coroutine for each added key, never twice at once for the same key.

    Args:
        sync: Reconciles one key. An error is logged, and the key is requeued with exponential back-off; other keys are not
            delayed.
        paused: Whether added keys are only collected until `begin`.
        on_sync: Called after each sync with its duration in seconds, and whether it failed.
    """

    def __init__(
        self,
        sync: Callable[[str], Awaitable[None]],
        *,
        paused: bool = False,
        on_sync: Callable[[float, bool], None] = _ignore,
    ) -> None:
        self._sync = sync
        self._paused = paused
        self._on_sync = on_sync
        self._dirty: set[str] = set()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._back_offs: dict[str, BackOff] = {}
        self._later: dict[str, asyncio.TimerHandle] = {}
        self._closed = False

    def add(self, *keys: str) -> None:
        """Queue keys to be synced as soon as possible."""
        for key in keys:
            self._dirty.add(key)
            if key not in self._running and not self._closed and not self._paused:
                self._running[key] = asyncio.get_running_loop().create_task(self._run(key))

    def add_after(self, key: str, seconds: float) -> None:
        """Queue a key to be synced in `seconds` at the latest."""
        loop = asyncio.get_running_loop()
        timer = self._later.get(key)
        if self._closed or (timer is not None and timer.when() <= loop.time() + seconds):
            return
        if timer is not None:
            timer.cancel()
        self._later[key] = loop.call_later(seconds, self.add, key)

    def begin(self) -> None:
        """Sync all collected keys, and from now on each key that is added."""
        self._paused = False
        self.add(*self._dirty)

    async def close(self) -> None:
        """Cancel all syncs, and accept no more keys."""
        self._closed = True
        for timer in self._later.values():
            timer.cancel()
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    @property
    def idle(self) -> bool:
        """Whether no sync runs."""
        return not self._running

    async def _run(self, key: str) -> None:
        interval = BackOff(_FIRST_INTERVAL_SECONDS, _LONGEST_INTERVAL_SECONDS)
        try:
            # A key that is added during its rest is synced again after it; the rest of an idle key is the shortest one again.
            while key in self._dirty and not self._closed:
                self._dirty.discard(key)
                timer = self._later.pop(key, None)
                if timer is not None:
                    timer.cancel()
                await self._once(key)
                await asyncio.sleep(interval.next())
        finally:
            del self._running[key]

    async def _once(self, key: str) -> None:
        started = time.monotonic()
        try:
            await self._sync(key)
        except Exception as error:  # noqa: BLE001 - any error concerns this key alone
            self._on_sync(time.monotonic() - started, True)
            pause = self._back_offs.setdefault(key, BackOff(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)).next()
            log.warning("%s: %s; it is synced again in %.1f s", key, _text(error), pause)
            self.add_after(key, pause)
        else:
            self._on_sync(time.monotonic() - started, False)
            self._back_offs.pop(key, None)
            log.debug("%s: synced in %.1f ms", key, 1000 * (time.monotonic() - started))


def _text(error: BaseException) -> str:
    """Return the text of an error; of a group, the texts of its members."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_text(each) for each in error.exceptions)
    return str(error) or type(error).__name__
