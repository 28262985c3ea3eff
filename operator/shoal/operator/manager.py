"""The operator's shell: the cluster's news and etcd's fill the store and mark jobs, a worker looks at each that is marked.

One that stands by for its turn (see ``election``) does all of this but looking: it knows what the leader knows, and begins
to act within the time of one listing.
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
"""The watch's thread gives a sign of life several times a second."""
_PULSE_SECONDS: Final = 10.0
_PATIENCE_SECONDS: Final = 5.0
"""How long a look waits for etcd; the next one says that it is away."""

log = logging.getLogger("shoal.operator")


@dataclass(frozen=True, kw_only=True)
class OperatorSettings:
    """How the operator runs.

    Attributes:
        etcd: Endpoint.
        etcd_credentials: Folder with username, password and ca.crt of a user with the role root; empty: etcd lets
            everybody in.
        masters_etcd: The endpoint as masters in pods know it; empty: the same.
        namespaces: Which to serve; none: all.
        classes: The PriorityClasses of servers, minimum and surplus trainers; None: none.
        lease: NAMESPACE/NAME of the Lease that decides who acts; empty: this one does.
        times: Of the Lease.
        serve: HOST:PORT of probes and metrics; empty: none.
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
    """Runs until it is told to stop.

    Args:
        settings: How.
        on_lost: Called when another one may act from now on; must end the process at once.
    """

    def __init__(self, settings: OperatorSettings, *, on_lost: Callable[[str], None]) -> None:
        self._settings = settings
        self._on_lost = on_lost
        self._cache = Cache()
        self._metrics = Metrics(self._states)
        self._queue = WorkQueue(self._sync, held=True, on_sync=self._metrics.synced)
        self._etcd_known = asyncio.Event()
        self._etcd_trouble = asyncio.Event()
        self._etcd_away = False
        self._unready = "etcd has not been reached yet"
        self._election: Election | None = None
        self._controller: JobController
        self._sweeper: GarbageCollector
        self._kube: Kube
        self._etcd: Store | None = None
        self._feed: Informers | None = None
        self._autoscaler: Autoscaler | None = None
        self._teller: PlanWriter
        self._watches = WatchHealth()
        self._loop: asyncio.AbstractEventLoop

    async def run(self, stop: asyncio.Event) -> None:
        """Serve.

        Raises:
            KubeError: There is no cluster to serve.
            StoreError: etcd will never take us.
            OSError: Probes and metrics cannot be served.
        """
        self._loop = asyncio.get_running_loop()
        async with serve(self._settings.serve, health=self, metrics=self._metrics):
            working = asyncio.create_task(self._work())
            told = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait({working, told}, return_when=asyncio.FIRST_COMPLETED)
                if working.done():
                    await working
            finally:
                told.cancel()
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)

    def why_dead(self) -> str:
        """Why the process should be started anew."""
        silent = self._feed.silent_seconds() if self._feed is not None else 0.0
        return f"the watch of jobs is silent for {silent:.0f} s" if silent > _SILENT_SECONDS else ""

    def why_unready(self) -> str:
        """Why this one is of no use yet, or at the moment."""
        if self._etcd_away and not self._unready and not self._stands_by():
            return "etcd does not answer"
        return self._unready or self._watches.problem(time.monotonic())

    # --- From the beginning to the end ---

    async def _work(self) -> None:
        async with await Kube.connect(on_answer=self._metrics.asked, may_write=self._left) as self._kube:
            # A gateway of its own: neither the number of our requests nor their fence is the Lease's business.
            patience = self._settings.times.try_seconds
            async with await Kube.connect(on_answer=self._metrics.asked, patience_seconds=patience) as lease:
                try:
                    feed = await self._begin(lease)
                    async with asyncio.TaskGroup() as group:
                        feed.begin(group)
                        self._feed = feed
                        group.create_task(self._pulse())
                        await self._lead(group, feed)
                finally:
                    await self._end()

    async def _begin(self, lease: Kube) -> Informers:
        """Before the first look all is known: else what stands in etcd or on the cluster would be said again."""
        if self._settings.lease:
            namespace, _, name = self._settings.lease.partition("/")
            times = self._settings.times
            self._election = Election(lease, namespace=namespace, name=name, on_lost=self._on_lost, times=times)
        folder = self._settings.etcd_credentials
        credentials = Credentials.read(folder) if folder else None
        store = self._etcd = await self._reach_etcd(credentials)
        vault = await run_in_thread(lambda: DerivedSecrets.open(store, credentials))
        admit = (await run_in_thread(lambda: Users(store.accounts))).admit if vault.guarded else None
        namespaces = self._settings.namespaces
        self._sweeper = GarbageCollector(store, self._kube, namespaces=namespaces, guarded=vault.guarded)
        if self._settings.autoscaler:
            self._teller = PlanWriter(self._kube.apply, namespace=self._settings.lease.partition("/")[0])
            self._autoscaler = Autoscaler(
                ConfigFile(self._settings.autoscaler),
                changed=lambda uids: self._queue.add(*uids),
                planned=self._has_planned,
                configured=self._metrics.configured,
                failed=self._metrics.not_planned,
            )
        answered = self._cache.answered
        executor = Executor(
            self._kube, vault=vault, tell=self._tell, forget=self._forget, admit=admit, answered=answered
        )
        etcd = self._settings.masters_etcd or self._settings.etcd
        reporter = StatusWriter(self._kube, written=lambda uid, at: self._watches.written(uid, at, time.monotonic()))
        self._controller = JobController(
            self._cache,
            self._kube,
            executor,
            reporter,
            etcd=etcd,
            vault=vault,
            read_end=self._read_end,
            classes=self._settings.classes,
            autoscaler=self._autoscaler,
        )
        self._etcd.watch(ALL_JOBS, from_revision=None, on_events=self._records, on_reset=self._all_records)
        await self._etcd_known.wait()
        self._metrics.etcd(up=True)
        feed = Informers(
            self._kube,
            self._cache,
            namespaces=namespaces,
            enqueue=lambda uids: self._queue.add(*uids),
            on_event=self._metrics.watched,
            job_gone=self._sweeper.soon,
            health=self._watches,
            everything=self._autoscaler,
        )
        await self._list_until_done(feed)
        return feed

    async def _lead(self, group: asyncio.TaskGroup, feed: Informers) -> None:
        if self._election is not None:
            await self._election.win()
            group.create_task(self._election.hold())
            # What the one before did last may not have come yet.
            await self._list_until_done(feed)
        self._metrics.leads(leading=True)
        group.create_task(self._sweeper.run())
        if self._autoscaler is not None:
            group.create_task(self._autoscaler.run())
            group.create_task(self._teller.run())
        self._queue.begin()
        self._queue.add(*self._cache.jobs)

    def _has_planned(self, plan: Plan) -> None:
        self._metrics.planned(plan)
        self._teller.planned(plan)

    async def _end(self) -> None:
        """Nothing may be under way any more when another one is let in."""
        await self._queue.close()
        if self._etcd is not None:
            await run_in_thread(self._etcd.close, urgent=True)
        if self._election is not None:
            await self._election.give_up()
        self._metrics.leads(leading=False)
        feed = self._feed
        if feed is not None:
            feed.stop()
            await run_in_thread(lambda: feed.join(5.0), urgent=True)

    async def _reach_etcd(self, credentials: Credentials | None) -> Store:
        endpoint = self._settings.etcd
        while True:
            try:
                return await run_in_thread(
                    lambda: Store.connect(
                        endpoint,
                        prefix=EVERYTHING,
                        credentials=credentials,
                        timeout_seconds=_PATIENCE_SECONDS,
                        on_trouble=self._trouble,
                    )
                )
            except StoreUnreachableError as error:
                log.warning("%s", error)
            except StoreRefusedError as error:
                if NOT_ON not in str(error):
                    raise
                self._unready = "etcd asks nobody for a password yet: the set-up is not through"
                log.info("%s", self._unready)
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _list_until_done(self, feed: Informers) -> None:
        while True:
            try:
                await feed.list_all()
            except KubeGoneError:
                self._unready = "the cluster does not know TrainingJobs: install their definition"
            except KubeError as error:
                self._unready = f"the cluster cannot be listed: {error}"
            else:
                self._unready = ""
                return
            log.warning("%s; again in %.0f s", self._unready, _AGAIN_SECONDS)
            await asyncio.sleep(_AGAIN_SECONDS)

    def _left(self) -> float:
        """For how many seconds more this one may act."""
        return self._election.left() if self._election is not None else math.inf

    def _stands_by(self) -> bool:
        return self._election is not None and not self._election.leads

    def _states(self) -> Iterable[str]:
        return [(job.get("status") or {}).get("state") or "Unknown" for job in self._cache.jobs.values()]

    # --- Looking ---

    async def _sync(self, uid: str) -> None:
        again = await self._controller.sync(uid)
        if again is not None:
            self._queue.add_after(uid, again)

    async def _read_end(self, keys: JobKeys) -> None:
        etcd = self._etcd
        assert etcd is not None
        found = await run_in_thread(lambda: etcd.get(keys.outcome, patience_seconds=_PATIENCE_SECONDS))
        if found is not None:
            self._cache.record_changed(keys.outcome, found.value)

    def _tell(self, job: TrainingJob, uid: str, wanted: DesiredState) -> None:
        keys = JobKeys(job.metadata.namespace, job.metadata.name, uid)
        left = self._left()
        if left <= 0:
            raise KubeFencedError("nothing may be written any more: another process may be at it")
        assert self._etcd is not None
        patience = min(_PATIENCE_SECONDS, left)
        self._etcd.transact([], [Put(keys.wanted, msgspec.json.encode(wanted))], patience_seconds=patience)

    def _forget(self, keys: JobKeys) -> None:
        left = self._left()
        if left <= 0:
            raise KubeFencedError("nothing may be written any more: another process may be at it")
        assert self._etcd is not None
        patience = min(_PATIENCE_SECONDS, left)
        self._etcd.transact([], [Delete(keys.prefix, prefix=True)], patience_seconds=patience)

    # --- etcd's watch: in a thread of its own ---

    def _records(self, events: list[Event]) -> None:
        def note() -> None:
            for event in events:
                self._add_after(self._cache.record_changed(event.key, event.value, created=event.created))

        self._post(note)

    def _all_records(self, listing: Listing, _: str) -> None:
        def note() -> None:
            self._add_after(self._cache.records_replaced({pair.key: pair.value for pair in listing.pairs}))
            self._etcd_known.set()

        self._post(note)

    def _add_after(self, due: Mapping[str, float]) -> None:
        for uid, seconds in due.items():
            if seconds:
                self._queue.add_after(uid, seconds)
            else:
                self._queue.add(uid)

    # --- Whether etcd answers ---

    def _trouble(self, words: str) -> None:
        """Told by threads that wait for etcd."""

        def note() -> None:
            # While it is away each question that asks whether it is back would be told.
            if not self._etcd_away:
                log.warning("%s", words)
            self._etcd_trouble.set()

        self._post(note)

    async def _pulse(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                # One that is away is asked again at once: asking takes its time then.
                async with asyncio.timeout(1.0 if self._etcd_away else _PULSE_SECONDS):
                    await self._etcd_trouble.wait()
            self._etcd_trouble.clear()
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
            await run_in_thread(lambda: etcd.get(ALL_JOBS, patience_seconds=_PATIENCE_SECONDS), urgent=True)
        except StoreUnreachableError:
            return False
        return True

    def _post(self, note: Callable[[], object]) -> None:
        """To our loop, if it is there yet."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(note)
