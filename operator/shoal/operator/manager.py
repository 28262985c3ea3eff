"""Builds the parts of the operator and runs them.

Informers and the watch of etcd fill the cache and add jobs to the work queue; the queue calls the job controller. A replica that is
not the leader (`leader_election.py`) does all of this but reconciling, so it starts to reconcile within the time of one listing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from shoal.api import TrainingJob
from shoal.api.plan import Plan
from shoal.autoscaler.config.hot_reload import ConfigFile
from shoal.autoscaler.loop import Autoscaler
from shoal.kube import Kube, KubeError, KubeFencedError, KubeGoneError
from shoal.operator.cache.cache import Cache
from shoal.operator.cache.informers import Informers
from shoal.operator.cache.watch_health import WatchHealth
from shoal.operator.controller.executor import Executor
from shoal.operator.controller.job_controller import JobController
from shoal.operator.controller.work_queue import WorkQueue
from shoal.operator.endpoints import Metrics, serve
from shoal.operator.etcd.garbage_collection import GarbageCollector
from shoal.operator.etcd.secrets import DerivedSecrets, Users
from shoal.operator.leader_election import Election, Times
from shoal.operator.status.plan_writer import PlanWriter
from shoal.operator.status.series_writer import SeriesWriter
from shoal.operator.status.writer import StatusWriter
from shoal.operator.thread_pool import run_in_thread
from shoal.store import (
    ALL_JOBS,
    EVERYTHING,
    Credentials,
    Delete,
    DesiredState,
    Event,
    JobKeys,
    Listing,
    Put,
    Store,
    StoreRefusedError,
    StoreUnreachableError,
)
from shoal.store.accounts import NOT_ON

__all__ = ["Operator", "OperatorSettings"]

_AGAIN_SECONDS: Final = 3.0
_SILENT_SECONDS: Final = 60.0
"""Seconds without a sign of life of the informer's thread, which gives several a second, after which the process is unhealthy."""
_PROBE_SECONDS: Final = 10.0
"""Seconds between two probes of etcd."""
_TIMEOUT_SECONDS: Final = 5.0
"""Timeout of a request to etcd during a sync."""

log = logging.getLogger("shoal.operator")


@dataclass(frozen=True, kw_only=True)
class OperatorSettings:
    """The operator's options.

    Attributes:
        etcd: Endpoint of etcd.
        etcd_credentials: Folder with username, password and ca.crt of a user with the role root; empty: etcd has no
            authentication.
        masters_etcd: Endpoint of etcd for masters in pods; empty: the same.
        namespaces: Namespaces to serve; empty: all.
        classes: PriorityClasses of parameter servers, minimum and surplus trainers; None: pods have none.
        lease: NAMESPACE/NAME of the Lease for leader election; empty: no election, this process is the leader.
        times: Durations of the Lease.
        serve: HOST:PORT for probes and metrics; empty: they are not served.
        autoscaler: File with the AutoscalerConfig; empty: no autoscaler, each job has its pin or its minimum.
    """

    etcd: str
    etcd_credentials: str = ""
    masters_etcd: str = ""
    namespaces: tuple[str, ...] = ()
    classes: tuple[str, str, str] | None = None
    lease: str = ""
    times: Times = field(default_factory=Times)
    serve: str = ""
    autoscaler: str = ""


class Operator:
    """The operator process.

    Args:
        settings: Its options.
        on_lost: Called when the Lease is lost and another replica may be the leader; must end the process at once.
    """

    def __init__(self, settings: OperatorSettings, *, on_lost: Callable[[str], None]) -> None:
        self._settings = settings
        self._on_lost = on_lost
        self._cache = Cache(on_record=self._recorded)
        self._metrics = Metrics(self._states)
        self._queue = WorkQueue(self._sync, paused=True, on_sync=self._metrics.synced)
        self._etcd_known = asyncio.Event()
        self._etcd_suspect = asyncio.Event()
        self._etcd_away = False
        self._unready = "etcd has not been reached yet"
        self._election: Election | None = None
        self._controller: JobController
        self._garbage_collector: GarbageCollector
        self._kube: Kube
        self._etcd: Store | None = None
        self._informers: Informers | None = None
        self._autoscaler: Autoscaler | None = None
        self._plan_writer: PlanWriter
        self._series_writer: SeriesWriter
        self._watches = WatchHealth()
        self._loop: asyncio.AbstractEventLoop

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set.

        Raises:
            KubeError: The API server cannot be used.
            StoreError: etcd refuses the operator's requests.
            OSError: The address of probes and metrics cannot be bound.
        """
        self._loop = asyncio.get_running_loop()
        async with serve(self._settings.serve, health=self, metrics=self._metrics):
            working = asyncio.create_task(self._work())
            stopping = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if working.done():
                    await working
            finally:
                stopping.cancel()
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)

    def liveness_problem(self) -> str:
        """Return why the process should be restarted; empty: it should not."""
        silent = self._informers.silent_seconds() if self._informers is not None else 0.0
        return f"the watch of jobs is silent for {silent:.0f} s" if silent > _SILENT_SECONDS else ""

    def readiness_problem(self) -> str:
        """Return why this replica cannot serve; empty: it can."""
        if self._etcd_away and not self._unready and not self._follows():
            return "etcd does not answer"
        return self._unready or self._watches.problem(time.monotonic())

    # --- Start and end ---

    async def _work(self) -> None:
        async with await Kube.connect(on_answer=self._metrics.on_request, may_write=self._left) as self._kube:
            self._series_writer = SeriesWriter(self._kube, self._cache.jobs.get)
            # The Lease has a client of its own: requests for it share neither the limit of concurrency nor the fence of the others.
            timeout = self._settings.times.try_seconds
            async with await Kube.connect(on_answer=self._metrics.on_request, timeout_seconds=timeout) as lease:
                try:
                    informers = await self._begin(lease)
                    async with asyncio.TaskGroup() as group:
                        informers.begin(group)
                        self._informers = informers
                        group.create_task(self._probe_etcd())
                        await self._lead(group, informers)
                finally:
                    await self._end()

    async def _begin(self, lease: Kube) -> Informers:
        """Fill the cache before the first sync: otherwise a sync would write again what etcd and the cluster have already."""
        if self._settings.lease:
            namespace, _, name = self._settings.lease.partition("/")
            times = self._settings.times
            self._election = Election(lease, namespace=namespace, name=name, on_lost=self._on_lost, times=times)
        folder = self._settings.etcd_credentials
        credentials = Credentials.read(folder) if folder else None
        store = self._etcd = await self._reach_etcd(credentials)
        secrets = await run_in_thread(lambda: DerivedSecrets.open(store, credentials))
        admit = (await run_in_thread(lambda: Users(store.accounts))).admit if secrets.guarded else None
        namespaces = self._settings.namespaces
        self._garbage_collector = GarbageCollector(store, self._kube, namespaces=namespaces, guarded=secrets.guarded)
        if self._settings.autoscaler:
            self._plan_writer = PlanWriter(self._kube.apply, namespace=self._settings.lease.partition("/")[0])
            self._autoscaler = Autoscaler(
                ConfigFile(self._settings.autoscaler),
                changed=lambda uids: self._queue.add(*uids),
                planned=self._planned,
                configured=self._metrics.configured,
                failed=self._metrics.not_planned,
            )
        executor = Executor(
            self._kube,
            secrets=secrets,
            publish_desired=self._publish_desired,
            forget_records=self._forget_records,
            admit=admit,
            on_response=self._cache.response_received,
        )
        etcd = self._settings.masters_etcd or self._settings.etcd
        status_writer = StatusWriter(
            self._kube, written=lambda uid, at: self._watches.written(uid, at, time.monotonic())
        )
        self._controller = JobController(
            self._cache,
            self._kube,
            executor,
            status_writer,
            etcd=etcd,
            secrets=secrets,
            read_end=self._read_end,
            classes=self._settings.classes,
            autoscaler=self._autoscaler,
        )
        self._etcd.watch(ALL_JOBS, from_revision=None, on_events=self._records, on_reset=self._all_records)
        await self._etcd_known.wait()
        self._metrics.etcd(up=True)
        informers = Informers(
            self._kube,
            self._cache,
            namespaces=namespaces,
            enqueue=lambda uids: self._queue.add(*uids),
            on_event=self._metrics.on_event,
            on_job_deleted=self._garbage_collector.request_collection,
            health=self._watches,
            autoscaler=self._autoscaler,
        )
        await self._list_until_done(informers)
        return informers

    async def _lead(self, group: asyncio.TaskGroup, informers: Informers) -> None:
        if self._election is not None:
            await self._election.acquire()
            group.create_task(self._election.renew())
            # The last writes of the previous leader may not be in the cache yet.
            await self._list_until_done(informers)
        self._metrics.leads(leading=True)
        group.create_task(self._garbage_collector.run())
        group.create_task(self._series_writer.run())
        if self._autoscaler is not None:
            group.create_task(self._autoscaler.run())
            group.create_task(self._plan_writer.run())
        self._queue.begin()
        self._queue.add(*self._cache.jobs)

    def _recorded(self, uid: str, record: object) -> None:
        self._series_writer.reported(uid, record)

    def _planned(self, plan: Plan) -> None:
        self._metrics.planned(plan)
        self._plan_writer.planned(plan)

    async def _end(self) -> None:
        """Cancel all work before the Lease is released."""
        await self._queue.close()
        if self._etcd is not None:
            await run_in_thread(self._etcd.close, urgent=True)
        if self._election is not None:
            await self._election.release()
        self._metrics.leads(leading=False)
        informers = self._informers
        if informers is not None:
            informers.stop()
            await run_in_thread(lambda: informers.join(5.0), urgent=True)

    async def _reach_etcd(self, credentials: Credentials | None) -> Store:
        endpoint = self._settings.etcd
        while True:
            try:
                return await run_in_thread(
                    lambda: Store.connect(
                        endpoint,
                        prefix=EVERYTHING,
                        credentials=credentials,
                        timeout_seconds=_TIMEOUT_SECONDS,
                        on_error=self._report_etcd,
                    )
                )
            except StoreUnreachableError as error:
                log.warning("%s", error)
            except StoreRefusedError as error:
                if NOT_ON not in str(error):
                    raise
                self._unready = "etcd has no authentication yet: shoal-setup has not completed"
                log.info("%s", self._unready)
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _list_until_done(self, informers: Informers) -> None:
        while True:
            try:
                await informers.list_all()
            except KubeGoneError:
                self._unready = "the cluster does not know TrainingJobs: install their definition"
            except KubeError as error:
                self._unready = f"the cluster cannot be listed: {error}"
            else:
                self._unready = ""
                return
            log.warning("%s; it is tried again in %.0f s", self._unready, _AGAIN_SECONDS)
            await asyncio.sleep(_AGAIN_SECONDS)

    def _left(self) -> float:
        """Return the seconds for which this replica may still write."""
        return self._election.left() if self._election is not None else math.inf

    def _follows(self) -> bool:
        return self._election is not None and not self._election.leads

    def _states(self) -> Iterable[str]:
        return [(job.get("status") or {}).get("state") or "Unknown" for job in self._cache.jobs.values()]

    # --- Reconciling ---

    async def _sync(self, uid: str) -> None:
        again = await self._controller.sync(uid)
        if again is not None:
            self._queue.add_after(uid, again)

    async def _read_end(self, keys: JobKeys) -> None:
        etcd = self._etcd
        assert etcd is not None
        found = await run_in_thread(lambda: etcd.get(keys.outcome, timeout_seconds=_TIMEOUT_SECONDS))
        if found is not None:
            self._cache.record_changed(keys.outcome, found.value)

    def _publish_desired(self, job: TrainingJob, uid: str, desired: DesiredState) -> None:
        keys = JobKeys(job.metadata.namespace, job.metadata.name, uid)
        left = self._left()
        if left <= 0:
            raise KubeFencedError("the Lease has expired: another replica may be the leader")
        assert self._etcd is not None
        timeout = min(_TIMEOUT_SECONDS, left)
        self._etcd.transact([], [Put(keys.desired, msgspec.json.encode(desired))], timeout_seconds=timeout)

    def _forget_records(self, keys: JobKeys, outcome_only: bool) -> None:  # noqa: FBT001 - the executor's hook
        left = self._left()
        if left <= 0:
            raise KubeFencedError("the Lease has expired: another replica may be the leader")
        assert self._etcd is not None
        timeout = min(_TIMEOUT_SECONDS, left)
        self._etcd.transact(
            [], [Delete(keys.outcome) if outcome_only else Delete(keys.prefix, prefix=True)], timeout_seconds=timeout
        )

    # --- The watch of etcd, in a thread of its own ---

    def _records(self, events: list[Event]) -> None:
        def apply() -> None:
            for event in events:
                self._add_after(self._cache.record_changed(event.key, event.value, created=event.created))

        self._post(apply)

    def _all_records(self, listing: Listing, _: str) -> None:
        def apply() -> None:
            self._add_after(self._cache.records_replaced({pair.key: pair.value for pair in listing.pairs}))
            self._etcd_known.set()

        self._post(apply)

    def _add_after(self, due: Mapping[str, float]) -> None:
        for uid, seconds in due.items():
            if seconds:
                self._queue.add_after(uid, seconds)
            else:
                self._queue.add(uid)

    # --- Whether etcd responds ---

    def _report_etcd(self, text: str) -> None:
        """Report that etcd does not respond; called by threads that wait for it."""

        def apply() -> None:
            # While etcd is unreachable each probe of it reports this again.
            if not self._etcd_away:
                log.warning("%s", text)
            self._etcd_suspect.set()

        self._post(apply)

    async def _probe_etcd(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                # An etcd that is unreachable is probed again after 1 s: a probe takes seconds then.
                async with asyncio.timeout(1.0 if self._etcd_away else _PROBE_SECONDS):
                    await self._etcd_suspect.wait()
            self._etcd_suspect.clear()
            away = not await self._etcd_answers()
            if away == self._etcd_away:
                continue
            self._etcd_away = away
            self._metrics.etcd(up=not away)
            log.warning("etcd does not answer; nothing is changed meanwhile" if away else "etcd answers again")
            self._queue.add(*self._cache.etcd_changed(away=away))

    async def _etcd_answers(self) -> bool:
        etcd = self._etcd
        assert etcd is not None
        try:
            await run_in_thread(lambda: etcd.get(ALL_JOBS, timeout_seconds=_TIMEOUT_SECONDS), urgent=True)
        except StoreUnreachableError:
            return False
        return True

    def _post(self, call: Callable[[], object]) -> None:
        """Call on the event loop, if it runs."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call)
