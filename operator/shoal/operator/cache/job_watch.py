"""The watch of TrainingJobs: kopf, in a thread and an event loop of its own, begun anew whenever it gives up.

**Why a thread.** kopf takes the process's signals for itself when it runs in the main thread, and at its end it cancels
every task of its loop.

**What kopf does by itself, and does not.** A stream goes on from the last resource version when its connection ends; one
on which nothing is heard for 70 s (the API server sends a bookmark every 60 s) is opened anew. After ``410 Gone`` it lists
again and tells nothing of what was deleted meanwhile: ``on_listed`` is called then, and all jobs have to be compared. It
gives up for good at any other error in a stream, and at a refusal of a request after its own patience; that patience is
made endless here and its pauses short (its own grow to 21 s, in which nothing is seen), and what it still gives up at ends
its loop, not this thread.

**Memory.** kopf keeps no object, only a record of about 2 KB for each that it has seen.

**Rights.** With ``scanning.disabled`` kopf reads no namespaces and no CRDs. What is asked for: ``list`` and ``watch`` of
``trainingjobs.shoal.dev``, cluster-wide, or in each namespace that is served (a Role). Beside these the discovery at
``/api``, ``/apis`` and ``/apis/GROUP/VERSION``, which every service account may read (``system:discovery``). No write of
any kind: events, finalizers, annotations and peering are off or not used.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, cast

import kopf

from shoal.operator.resources.pods import GROUP

__all__ = ["JobInformer"]

_FIRST_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 30.0
_LONG_RUN_SECONDS: Final = 60.0
_BEAT_SECONDS: Final = 0.2
_CHUNK: Final = 500
_REMIND_SECONDS: Final = 10.0

log = logging.getLogger("shoal.operator")

Manifest = dict[str, Any]


class _Backoffs:
    """kopf's pauses between tries of a request, without an end; it begins anew for each request."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((0.1, 0.2, 0.5, 1.0), itertools.repeat(2.0))


class _Seldom(logging.Filter):
    """kopf tells of every try of every stream; one now and then says it all."""

    _told = -_REMIND_SECONDS

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if record.levelno < logging.ERROR or now - self._told >= _REMIND_SECONDS:
            self._told = now if record.levelno >= logging.ERROR else self._told
            return True
        return False


class _NothingHandled(kopf.DiffBaseStorage):
    """kopf copies each object that comes, twice, to find out what was changed since it was handled: nobody asks."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        pass


class _NoProgress(kopf.ProgressStorage):
    """Likewise of handlers that need more than one try."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        pass

    def purge(self, **_: Any) -> None:
        pass

    def touch(self, **_: Any) -> None:
        pass

    def clear(self, *, essence: Any) -> Any:
        return essence


_seldom = _Seldom()
for _name in ("kopf._cogs.clients.watching", "kopf._core.reactor.observation"):
    logging.getLogger(_name).addFilter(_seldom)


class JobInformer:
    """Runs from `start` to `stop`.

    Args:
        namespaces: Where; none: everywhere.
        on_event: Gets a job, and whether it is gone. Called in the watch's thread, as the next one is.
        on_listed: Told that jobs were listed: deletions before that may have been missed.
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
        self._enough = threading.Event()
        self._again = threading.Event()
        self._beaten = time.monotonic()
        # A daemon: whatever kopf waits for does not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._beaten = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Tell the watch to end, from any thread; back at once."""
        self._enough.set()

    def restart(self) -> None:
        """Begin the watch anew, from any thread; back at once."""
        self._again.set()

    def join(self, seconds: float) -> None:
        """Wait for their end for so long at most."""
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def silent_seconds(self) -> float:
        """For how long the thread has given no sign of life."""
        return time.monotonic() - self._beaten

    def _run(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._enough.is_set():
            began = time.monotonic()
            try:
                asyncio.run(self._watch())
                words = "kopf has ended"
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - it raises errors of all kinds
                words = str(error) or type(error).__name__
            if self._enough.is_set():
                return
            if self._again.is_set():
                self._again.clear()
                continue
            if time.monotonic() - began > _LONG_RUN_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            log.warning("the watch of jobs ended: %s; it begins anew in %.0f s", words, pause)
            end = time.monotonic() + pause
            while time.monotonic() < end and not self._again.is_set() and not self._enough.wait(_BEAT_SECONDS):
                self._beaten = time.monotonic()
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _watch(self) -> None:
        enough = asyncio.Event()
        # kopf leaves the tasks alone that were there before it. An event of another thread it would wait for in an
        # executor's thread, for which asyncio.run() would wait for ever when kopf ends of itself.
        beating = asyncio.create_task(self._beat(enough))
        try:
            await kopf.operator(
                registry=self._registry(),
                settings=self._settings(),
                standalone=True,
                # Else kopf asks for the user's name, and that of a pod has none.
                identity=cast(Any, "shoal"),
                clusterwide=not self._namespaces,
                namespaces=self._namespaces,
                stop_flag=enough,
            )
        finally:
            beating.cancel()

    async def _beat(self, enough: asyncio.Event) -> None:
        while not (self._enough.is_set() or self._again.is_set()):
            self._beaten = time.monotonic()
            await asyncio.sleep(_BEAT_SECONDS)
        enough.set()

    def _settings(self) -> kopf.OperatorSettings:
        settings = kopf.OperatorSettings()
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.networking.error_backoffs = _Backoffs()
        settings.networking.request_timeout = 30.0
        settings.networking.connect_timeout = 10.0
        settings.watching.chunk_size = _CHUNK
        settings.persistence.diffbase_storage = _NothingHandled()
        settings.persistence.progress_storage = _NoProgress()
        # Its own end must not wait: a second for events that are under way in memory is plenty.
        settings.queueing.exit_timeout = 0.5
        return settings

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry)(_login)
        kopf.on.event(GROUP, "v1alpha1", "trainingjobs", registry=registry, id="watch")(self._handle)
        return registry

    async def _handle(self, event: kopf.RawEvent, **_: Any) -> None:
        self._on_event(cast(Manifest, event["object"]), event["type"] == "DELETED")
        if event["type"] is None:
            self._on_listed()


async def _login(settings: kopf.OperatorSettings, **_: Any) -> kopf.ConnectionInfo | None:
    """As the pod that we run in, else as the kubeconfig says."""
    return kopf.login_with_service_account(settings=settings) or kopf.login_with_kubeconfig(settings=settings)
