"""The kopf handlers of the operator: start-up, login, the TrainingJob handler, clean-up. All use of kopf is in this file.

How an event becomes a reconciliation:

1. kopf, in the thread of `JobInformer` (`cache/job_informer.py`), calls `_trainingjob` for each event of a TrainingJob.
2. `_trainingjob` calls `on_event`, a method of `Informers` (`cache/informers.py`). It changes to the operator's event loop, writes
   the object to the cache (`cache/cache.py`) and adds the job's uid to the work queue (`controller/work_queue.py`).
3. The queue calls `Operator._sync` (`manager.py`), which calls `JobController.sync` (`controller/job_controller.py`).

`sync` is level-based: it reads the cache, not the event.

Only TrainingJobs go through kopf. kopf needs about 1.5 ms of processor time and 2 KB of memory for each object; a stream of
`shoal.kube.follow` needs a tenth of that, and up to a thousand pods may start within seconds. Pods, nodes and the other objects of
a job therefore come by such streams (`cache/informers.py`).

kopf runs in a thread and an event loop of its own (`cache/job_informer.py`): in the main thread it installs its own signal handlers,
and when it ends it cancels every task of its loop. It ends at any error in a stream that it does not know, so the thread starts it
again. For the same reason its probes (``kopf.on.probe``) are not used: their endpoint would be away during each restart. ``/healthz``
is served by `endpoints.py`, and reports a kopf thread that is silent.

What kopf does: it resumes a stream from the last resource version when the connection ends, opens a stream again that was silent
for 70 s (the API server sends a bookmark every 60 s), and lists again after ``410 Gone``. It does not report objects that were
deleted before such a listing: `listed` is called then, and `Informers` lists the jobs itself and removes from the cache those
that the listing lacks.

Rights: ``list`` and ``watch`` of ``trainingjobs.shoal.dev``, cluster-wide or in each served namespace, and discovery, which every
service account has (``system:discovery``). kopf writes nothing: events, finalizers, annotations and peering are off.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, cast

import kopf

from shoal.operator.resources.pods import GROUP

__all__ = ["Manifest", "run"]

Manifest = dict[str, Any]

_CHUNK: Final = 500
"""Objects in one page of a listing."""
_LOG_SECONDS: Final = 10.0
"""Seconds between two logged errors of kopf's streams, each of which it logs once for each try."""


async def run(
    namespaces: Sequence[str],
    stop: asyncio.Event,
    *,
    on_event: Callable[[Manifest, bool], None],
    listed: Callable[[], None],
) -> None:
    """Watch TrainingJobs until `stop` is set or kopf gives up.

    Args:
        namespaces: The namespaces to watch; empty: all.
        stop: Ends the watch.
        on_event: Called with each job, and whether it was deleted.
        listed: Called after kopf has listed jobs again; deletions before that may have been missed.
    """
    _limit_log_rate()
    await kopf.operator(
        registry=_registry(on_event, listed),
        standalone=True,
        # Otherwise kopf looks up the user's name, and a pod's user has none.
        identity=cast(Any, "shoal"),
        clusterwide=not namespaces,
        namespaces=namespaces,
        stop_flag=stop,
    )


def _registry(on_event: Callable[[Manifest, bool], None], listed: Callable[[], None]) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    kopf.on.startup(registry=registry)(_startup)
    kopf.on.login(registry=registry)(_login)
    kopf.on.cleanup(registry=registry)(_cleanup)

    @kopf.on.event(GROUP, "v1alpha1", "trainingjobs", registry=registry)
    async def _trainingjob(event: kopf.RawEvent, **_: Any) -> None:
        """Pass one event of a TrainingJob on; its type is None for an object of a listing."""
        on_event(cast(Manifest, event["object"]), event["type"] == "DELETED")
        if event["type"] is None:
            listed()

    return registry


async def _startup(settings: kopf.OperatorSettings, **_: Any) -> None:
    """Configure kopf."""
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.networking.error_backoffs = _RequestBackoffs()
    settings.networking.request_timeout = 30.0
    settings.networking.connect_timeout = 10.0
    settings.watching.chunk_size = _CHUNK
    settings.persistence.diffbase_storage = _NoDiffs()
    settings.persistence.progress_storage = _NoProgress()
    # Handlers only change memory, so half a second is enough for those that run when kopf ends.
    settings.queueing.exit_timeout = 0.5


async def _login(settings: kopf.OperatorSettings, **_: Any) -> kopf.ConnectionInfo | None:
    """Return the service account of this pod, otherwise the kubeconfig's current context."""
    return kopf.login_with_service_account(settings=settings) or kopf.login_with_kubeconfig(settings=settings)


async def _cleanup(logger: kopf.Logger, **_: Any) -> None:
    """Log the end; there is nothing to clean up, as kopf has written nothing."""
    logger.debug("the watch of TrainingJobs has ended")


class _RequestBackoffs:
    """Seconds between two tries of a request, without an end. kopf's own grow to 21 s, and then it gives up."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((0.1, 0.2, 0.5, 1.0), itertools.repeat(2.0))


class _NoDiffs(kopf.DiffBaseStorage):
    """Keeps no earlier state of objects. kopf copies each object twice to compute differences, which no handler uses."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        pass


class _NoProgress(kopf.ProgressStorage):
    """Keeps no progress of handlers: the only handler is for events, which kopf does not try again."""

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


class _RateLimit(logging.Filter):
    """Passes one error in `_LOG_SECONDS`."""

    _passed = -_LOG_SECONDS

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if record.levelno < logging.ERROR:
            return True
        if now - self._passed < _LOG_SECONDS:
            return False
        self._passed = now
        return True


_rate_limit = _RateLimit()


def _limit_log_rate() -> None:
    """Configure kopf's loggers: it logs each event, each try of each stream, and that it leaves signals alone."""
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
    for name in ("kopf._cogs.clients.watching", "kopf._core.reactor.observation"):
        logging.getLogger(name).addFilter(_rate_limit)
