"""Fills the cache from the API server: TrainingJobs through kopf's watch, their objects and nodes through streams of `shoal.kube`.

**Two kinds of watches.** kopf spends about 1.5 ms of processor time on each event and keeps each object. That is fine for jobs,
but too much for their pods, of which a thousand may start within seconds. `shoal.kube.follow` costs a tenth and detects
deletions in a gap by itself. For TrainingJobs a listing detects them (see `Informers._compare_jobs`).

**Rights.** ``list`` and ``watch`` of each kind here: cluster-wide, or in each served namespace. Nodes are cluster-scoped, so they
need a ClusterRole in either case; with an autoscaler so do PriorityClasses, and pods of all namespaces.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from shoal.autoscaler.loop import Autoscaler
from shoal.kube import Kube, KubeError, Listed, follow
from shoal.operator.cache.cache import APPLIED_KINDS, Cache
from shoal.operator.cache.job_informer import JobInformer
from shoal.operator.cache.watch_health import WatchHealth
from shoal.operator.resources.object_fields import revision_of
from shoal.operator.resources.pods import GROUP

__all__ = ["Informers"]

_OURS: Final = (
    "Pod", "Service", "ServiceAccount", "ConfigMap", "Deployment", "StatefulSet", "PodDisruptionBudget",
    "PersistentVolumeClaim",
)  # fmt: skip
"""Kinds of a job's objects; only objects with a job's label are listed and watched."""
_SELECTOR: Final = f"{GROUP}/uid"
_COMPARE_SECONDS: Final = 300.0
"""Interval of listings of jobs. A restarted watch may have missed deletions; then a listing is made at once."""
_GATHER_SECONDS: Final = 1.0
"""Wait before a listing: a restarted watch delivers existing objects one by one."""
_AGAIN_SECONDS: Final = 3.0
_CHECK_SECONDS: Final = 5.0
"""Interval of the check whether the API server serves TrainingJobs."""

log = logging.getLogger("shoal.operator")


class Informers:
    """Fills the cache from `list_all` on, and enqueues the jobs that an event concerns.

    Args:
        kube: Client of the API server.
        cache: The cache to fill.
        namespaces: The served namespaces. Empty: all.
        enqueue: Called with the UIDs of jobs for which something changed.
        on_event: Called with the kind of each object of which an event is received.
        on_job_deleted: Called after a job was deleted.
        health: Records received events and failing streams.
        autoscaler: Receives all pods of the cluster, nodes and PriorityClasses. None: only pods of jobs are watched.
    """

    def __init__(
        self,
        kube: Kube,
        cache: Cache,
        *,
        namespaces: tuple[str, ...],
        enqueue: Callable[[Iterable[str]], None],
        on_event: Callable[[str], None],
        on_job_deleted: Callable[[], None],
        health: WatchHealth,
        autoscaler: Autoscaler | None = None,
    ) -> None:
        self._kube = kube
        self._cache = cache
        self._namespaces = namespaces or ("",)
        self._enqueue = enqueue
        self._on_event = on_event
        self._on_job_deleted = on_job_deleted
        self._health = health
        self._autoscaler = autoscaler
        self._revisions: dict[tuple[str, str], int] = {}
        self._relisting = asyncio.Event()
        self._watch = JobInformer(namespaces=namespaces, on_event=self._on_job_event, on_listed=self._jobs_listed)
        self._loop = asyncio.get_running_loop()

    def silent_seconds(self) -> float:
        """Return for how many seconds the watch of jobs has received nothing."""
        return self._watch.silent_seconds()

    async def list_all(self) -> None:
        """List all kinds once.

        Raises:
            KubeGoneError: The API server does not serve TrainingJobs.
            KubeError: A kind cannot be listed.
        """
        whole = () if self._autoscaler is None else ("PriorityClass", "Pod")
        for namespace in self._namespaces:
            await self._take("TrainingJob", namespace)
            for kind in _OURS:
                if kind not in whole:
                    await self._take(kind, namespace)
        for kind in ("Node", *whole):
            await self._take(kind, "")

    def begin(self, group: asyncio.TaskGroup) -> None:
        """Start all watches, from the last listing on."""
        self._watch.start()
        group.create_task(self._compare_jobs())
        group.create_task(self._check())
        for (kind, namespace), revision in self._revisions.items():
            if kind != "TrainingJob":
                group.create_task(self._follow(kind, namespace, revision))

    def stop(self) -> None:
        """Signal the watch of jobs to end, without waiting. The streams are cancelled with their task group."""
        self._watch.stop()

    def join(self, seconds: float) -> None:
        """Wait until the watch of jobs has ended, for this many seconds at most; blocks."""
        self._watch.join(seconds)

    # --- Objects of jobs, and nodes ---

    async def _follow(self, kind: str, namespace: str, since: int) -> None:
        selector = self._selector(kind)
        async with contextlib.aclosing(
            follow(
                self._kube,
                kind,
                namespace=namespace,
                selector=selector,
                since=since,
                on_error=lambda message: self._health.failing((kind, namespace), message, time.monotonic()),
            )
        ) as news:
            async for each in news:
                if isinstance(each, Listed):
                    self._listed(kind, namespace, each)
                else:
                    self._on_event(kind)
                    changed_jobs = self._changed(kind, each.manifest, deleted=each.deleted)
                    self._enqueue(changed_jobs)
                    # These are deleted with their job. The watch of jobs may have missed the job's deletion: a listing
                    # without any job causes no event.
                    if each.deleted and kind in APPLIED_KINDS and not changed_jobs.isdisjoint(self._cache.jobs):
                        self._relisting.set()

    def _served(self, manifest: dict[str, Any]) -> bool:
        return self._namespaces == ("",) or manifest["metadata"].get("namespace") in self._namespaces

    def _selector(self, kind: str) -> str:
        all_pods = kind == "Pod" and self._autoscaler is not None
        return _SELECTOR if kind in _OURS and not all_pods else ""

    def _changed(self, kind: str, manifest: dict[str, Any], *, deleted: bool = False) -> set[str]:
        if kind == "TrainingJob":
            return self._cache.job_changed(manifest, deleted=deleted)
        if self._autoscaler is not None:
            self._autoscaler.on_event(kind, manifest, deleted=deleted)
        if kind == "PriorityClass" or (kind == "Pod" and not self._served(manifest)):
            return set()
        if kind == "Node":
            return self._cache.node_changed(manifest, deleted=deleted)
        manifest["kind"] = kind
        return self._cache.object_changed(manifest, deleted=deleted)

    async def _take(self, kind: str, namespace: str) -> None:
        selector = self._selector(kind)
        found = await self._kube.listing(kind, namespace=namespace, selector=selector)
        self._revisions[kind, namespace] = found.revision
        self._listed(kind, namespace, found)

    def _listed(self, kind: str, namespace: str, found: Listed) -> None:
        for manifest in found.items:
            self._enqueue(self._changed(kind, manifest))
        if self._autoscaler is not None:
            self._autoscaler.listed(kind, found.items, revision=found.revision)
        if kind == "PriorityClass":
            return
        deleted = self._cache.forget_missing(kind, found.items, revision=found.revision, namespace=namespace)
        self._enqueue(deleted)
        if deleted and kind == "TrainingJob":
            for uid in deleted:
                self._health.job_deleted(uid)
            self._on_job_deleted()

    # --- TrainingJobs ---

    async def _check(self) -> None:
        """Restart the watch of jobs when it delivers nothing, and after the CRD was missing.

        kopf looks up the resources that it watches only when it starts; a CRD that was applied again is another resource to it.
        """
        known = True
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            try:
                here = await self._kube.has_kind("TrainingJob")
                message = "" if here else "the cluster does not know TrainingJobs: install their definition"
            except KubeError as error:
                here, message = known, f"the API server does not answer: {error}"
            now = time.monotonic()
            self._health.failing("definition", message, now)
            if self._health.restart_due(now) or (here and not known):
                log.warning("the watch of jobs restarts")
                self._watch.restart()
                self._relisting.set()
            known = here

    async def _compare_jobs(self) -> None:
        """List the jobs at intervals, and after a gap, to find those that were deleted without an event."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_COMPARE_SECONDS):
                    await self._relisting.wait()
                await asyncio.sleep(_GATHER_SECONDS)
            self._relisting.clear()
            try:
                for namespace in self._namespaces:
                    await self._take("TrainingJob", namespace)
            except KubeError as error:
                log.warning("the jobs cannot be listed: %s; next attempt in %.0f s", error, _AGAIN_SECONDS)
                self._relisting.set()
                await asyncio.sleep(_AGAIN_SECONDS)

    def _on_job_event(self, manifest: dict[str, Any], deleted: bool) -> None:  # noqa: FBT001 - the watch's hook
        """Handle an event of a job; called in the thread of the watch."""

        def note() -> None:
            self._on_event("TrainingJob")
            self._health.event_received(manifest["metadata"]["uid"], revision_of(manifest))
            self._enqueue(self._cache.job_changed(manifest, deleted=deleted))
            if deleted:
                self._health.job_deleted(manifest["metadata"]["uid"])
                self._on_job_deleted()

        self._post(note)

    def _jobs_listed(self) -> None:
        self._post(self._relisting.set)

    def _post(self, note: Callable[[], object]) -> None:
        """Call a function in the operator's event loop, unless the loop is closed."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(note)
