"""The informer of TrainingJobs: runs `handlers.run` in a thread with an event loop of its own, and restarts it when it ends."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from shoal.operator import handlers
from shoal.operator.handlers import Manifest
from shoal.retry import BackOff

__all__ = ["JobInformer"]

_FIRST_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 30.0
_LONG_RUN_SECONDS: Final = 60.0
"""After a run of this length the pause before a restart is the first one again."""
_BEAT_SECONDS: Final = 0.2
"""Seconds between two signs of life of the thread."""

log = logging.getLogger("shoal.operator")


class JobInformer:
    """Watches TrainingJobs from `start` to `stop`.

    Args:
        namespaces: The namespaces to watch; empty: all.
        on_event: Called in the informer's thread with each job, and whether it was deleted.
        on_listed: Called in the informer's thread after jobs were listed again; deletions before that may have been missed.
    """

    def __init__(
        self,
        *,
        namespaces: Sequence[str],
        on_event: Callable[[Manifest, bool], None],
        on_listed: Callable[[], None],
    ) -> None:
        self._namespaces = namespaces
        self._on_event = on_event
        self._on_listed = on_listed
        self._stopping = threading.Event()
        self._restarting = threading.Event()
        self._last_beat = time.monotonic()
        # A daemon thread: a request that kopf waits for does not keep the process from exiting.
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._last_beat = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """End the watch; returns at once. Any thread may call it."""
        self._stopping.set()

    def restart(self) -> None:
        """Restart the watch; returns at once. Any thread may call it."""
        self._restarting.set()

    def join(self, seconds: float) -> None:
        """Wait for the thread's end, `seconds` at most."""
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def silent_seconds(self) -> float:
        """Return the seconds since the thread's last sign of life."""
        return time.monotonic() - self._last_beat

    def _run(self) -> None:
        back_off = BackOff(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                asyncio.run(self._watch())
                reason = "it returned"
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - it raises errors of all kinds
                reason = str(error) or type(error).__name__
            if self._stopping.is_set():
                return
            if self._restarting.is_set():
                self._restarting.clear()
                continue
            if time.monotonic() - began > _LONG_RUN_SECONDS:
                back_off.reset()
            pause = back_off.next()
            log.warning("the watch of TrainingJobs ended: %s; it restarts in %.0f s", reason, pause)
            end = time.monotonic() + pause
            while time.monotonic() < end and not self._restarting.is_set() and not self._stopping.wait(_BEAT_SECONDS):
                self._last_beat = time.monotonic()

    async def _watch(self) -> None:
        stop = asyncio.Event()
        # This task exists before kopf starts, so kopf does not cancel it. kopf would wait for an event of another thread in an
        # executor's thread, and asyncio.run() would wait for that thread for ever when kopf ends by itself.
        beating = asyncio.create_task(self._beat(stop))
        try:
            await handlers.run(self._namespaces, stop, on_event=self._on_event, listed=self._on_listed)
        finally:
            beating.cancel()

    async def _beat(self, stop: asyncio.Event) -> None:
        while not (self._stopping.is_set() or self._restarting.is_set()):
            self._last_beat = time.monotonic()
            await asyncio.sleep(_BEAT_SECONDS)
        stop.set()
