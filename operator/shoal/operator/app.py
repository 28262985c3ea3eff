"""The operator's shell: kopf's watches and etcd's fill the store and mark jobs, a worker looks at each that is marked."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import kopf
import msgspec

from shoal.api import TrainingJob
from shoal.kube import Kube, KubeError
from shoal.operator.executor import Executor
from shoal.operator.look import Looker
from shoal.operator.pods import GROUP
from shoal.operator.reporter import Reporter
from shoal.operator.store import ClusterStore
from shoal.operator.worker import Worker
from shoal.store import ALL_JOBS, Event, JobKeys, Listing, Put, Store, Wanted

__all__ = ["Operator", "Settings"]

_OURS: Final = {
    "Pod": ("v1", "pods"),
    "Service": ("v1", "services"),
    "ServiceAccount": ("v1", "serviceaccounts"),
    "ConfigMap": ("v1", "configmaps"),
    "Secret": ("v1", "secrets"),
    "Deployment": ("apps/v1", "deployments"),
    "StatefulSet": ("apps/v1", "statefulsets"),
    "PodDisruptionBudget": ("policy/v1", "poddisruptionbudgets"),
}
"""What a job is made of: only objects with a job's label reach us."""
_SELECTOR: Final = f"{GROUP}/uid"
_SWEEP_SECONDS: Final = 60.0
"""A watch that began anew may have missed deletions; a listing now and then finds them."""

log = logging.getLogger("shoal.operator")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the operator runs.

    Attributes:
        etcd: Endpoint.
        masters_etcd: The endpoint as masters in pods know it; empty: the same.
        namespaces: Which to serve; none: all.
        classes: The PriorityClasses of servers, minimum and surplus trainers; None: none.
    """

    etcd: str
    masters_etcd: str = ""
    namespaces: tuple[str, ...] = ()
    classes: tuple[str, str, str] | None = None


class Operator:
    """Runs until it is told to stop.

    Args:
        settings: How.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store = ClusterStore()
        self._worker = Worker(self._look)
        self._etcd_known = asyncio.Event()
        self._looker: Looker
        self._kube: Kube
        self._etcd: Store
        self._loop: asyncio.AbstractEventLoop

    async def run(self, stop: asyncio.Event) -> None:
        """Serve.

        Raises:
            KubeError: There is no cluster to serve.
            StoreError: etcd does not answer.
        """
        self._loop = asyncio.get_running_loop()
        self._etcd = await asyncio.to_thread(Store.connect, self._settings.etcd, prefix=ALL_JOBS)
        try:
            async with await Kube.connect() as self._kube:
                executor = Executor(self._kube, tell=self._tell)
                etcd = self._settings.masters_etcd or self._settings.etcd
                reporter = Reporter(self._kube)
                self._looker = Looker(self._store, executor, reporter, etcd=etcd, classes=self._settings.classes)
                self._etcd.watch(ALL_JOBS, from_revision=None, on_events=self._records, on_reset=self._all_records)
                # Before the first look all is known: else what stands in etcd or on the cluster would be said again.
                await self._etcd_known.wait()
                await self._list_all()
                sweeping = asyncio.create_task(self._sweep())
                try:
                    await self._watch(stop)
                finally:
                    sweeping.cancel()
                    await self._worker.close()
        finally:
            await asyncio.to_thread(self._etcd.close)

    # --- Looking ---

    async def _look(self, uid: str) -> None:
        again = await self._looker.look(uid)
        if again is not None:
            self._worker.mark_later(uid, again)

    def _tell(self, job: TrainingJob, uid: str, wanted: Wanted) -> None:
        keys = JobKeys(job.metadata.namespace, job.metadata.name, uid)
        self._etcd.transact([], [Put(keys.wanted, msgspec.json.encode(wanted))])

    # --- etcd's watch: in a thread of its own ---

    def _records(self, events: list[Event]) -> None:
        self._loop.call_soon_threadsafe(self._records_changed, [(event.key, event.value) for event in events])

    def _all_records(self, listing: Listing, _: str) -> None:
        self._loop.call_soon_threadsafe(self._records_changed, [(pair.key, pair.value) for pair in listing.pairs])
        self._loop.call_soon_threadsafe(self._etcd_known.set)

    def _records_changed(self, records: Iterable[tuple[str, bytes | None]]) -> None:
        for key, value in records:
            self._worker.mark(*self._store.record_changed(key, value))

    # --- The cluster's watches ---

    async def _watch(self, stop: asyncio.Event) -> None:
        """Let kopf watch until told to stop.

        In a thread and a loop of its own: it takes the process's signals for itself, and every task that is there when it
        ends for one of its own, raising what that raised.
        """
        enough = threading.Event()
        watching = asyncio.create_task(asyncio.to_thread(self._run_kopf, enough))
        told = asyncio.create_task(stop.wait())
        await asyncio.wait([watching, told], return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        await self._worker.close()
        enough.set()
        await watching

    def _run_kopf(self, enough: threading.Event) -> None:
        settings = kopf.OperatorSettings()
        settings.posting.enabled = False
        settings.persistence.finalizer = f"{GROUP}/operator"
        watching = kopf.operator(
            registry=self._registry(),
            settings=settings,
            standalone=True,
            clusterwide=not self._settings.namespaces,
            namespaces=self._settings.namespaces,
            stop_flag=enough,
        )
        asyncio.run(watching)

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry)(_login)
        kopf.on.event(GROUP, "v1alpha1", "trainingjobs", registry=registry)(self._job_event)
        kopf.on.event("", "v1", "nodes", registry=registry)(self._node_event)
        for kind, (version, plural) in _OURS.items():
            group, _, number = version.rpartition("/")
            self._register(registry, kind, group, number, plural)
        return registry

    def _register(self, registry: kopf.OperatorRegistry, kind: str, group: str, version: str, plural: str) -> None:
        async def handle(event: kopf.RawEvent, **_: Any) -> None:
            self._hand_over(self._store.object_changed, {"kind": kind, **event["object"]}, event["type"])

        found = kopf.on.event(
            group, version, plural, registry=registry, labels={_SELECTOR: kopf.PRESENT}, id=f"watch-{plural}"
        )
        found(handle)

    async def _job_event(self, event: kopf.RawEvent, **_: Any) -> None:
        self._hand_over(self._store.job_changed, event["object"], event["type"])

    async def _node_event(self, event: kopf.RawEvent, **_: Any) -> None:
        self._hand_over(self._store.node_changed, event["object"], event["type"])

    def _hand_over(self, changed: Callable[..., set[str]], manifest: Any, kind: str | None) -> None:
        """From kopf's loop to ours."""

        def note() -> None:
            self._worker.mark(*changed(manifest, gone=kind == "DELETED"))

        self._loop.call_soon_threadsafe(note)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            try:
                await self._list_all()
            except KubeError as error:
                log.warning("the cluster cannot be listed: %s; again in %.0f s", error, _SWEEP_SECONDS)

    async def _list_all(self) -> None:
        for kind in _OURS:
            found = []
            for namespace in self._settings.namespaces or ("",):
                found += await self._kube.list(kind, namespace=namespace, selector=_SELECTOR)
            self._worker.mark(*self._store.replace_all(kind, found))


async def _login(settings: kopf.OperatorSettings, **_: Any) -> kopf.ConnectionInfo | None:
    """As the pod that we run in, else as the kubeconfig says."""
    return kopf.login_with_service_account(settings=settings) or kopf.login_with_kubeconfig(settings=settings)
