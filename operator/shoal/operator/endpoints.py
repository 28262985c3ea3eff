"""Probes and metrics over HTTP: ``/healthz``, ``/readyz`` and ``/metrics``.

The operator's event loop answers them, so an operator that hangs answers nothing. The responses contain no secrets, and no
request changes anything.

| metric | type | labels | what |
|---|---|---|---|
| shoal_operator_sync_seconds | histogram | outcome (done, failed) | one sync of one job, with all its writes |
| shoal_operator_api_requests_total | counter | verb, kind, code | requests to the API server, each retry counted (code 0: no response) |
| shoal_operator_watch_events_total | counter | kind | objects received from watches |
| shoal_operator_leading | gauge | | 1: this operator leads; 0: it stands by |
| shoal_operator_etcd_up | gauge | | 1: Shoal's etcd answers |
| shoal_operator_blocking_calls_running | gauge | | calls to etcd that run, each in a thread (18 at most) |
| shoal_operator_blocking_calls_waiting | gauge | | calls to etcd that wait for a thread; above 0 for more than 30 s: etcd hangs |
| shoal_jobs | gauge | state | TrainingJobs by state, as in this operator's cache |

Only of an operator that leads, with an autoscaler (all but the first four are of the last plan):

| metric | type | what |
|---|---|---|
| shoal_autoscaler_config_valid | gauge | 1: the AutoscalerConfig's file is in force; 0: it is refused, and the former one stays |
| shoal_autoscaler_acts | gauge | 1: jobs follow the plans; 0: disabled, a dry run, or no configuration yet |
| shoal_autoscaler_plans_failed_total | counter | plans that failed with an error of the planner |
| shoal_autoscaler_plan_seconds | histogram | duration of one plan for all jobs; its count is the number of plans |
| shoal_autoscaler_plan_timestamp_seconds | gauge | time of the plan, in seconds since 1970 |
| shoal_autoscaler_last_plan_seconds | gauge | duration of the plan |
| shoal_autoscaler_jobs | gauge | jobs that want trainers |
| shoal_autoscaler_jobs_queued | gauge | jobs of these that wait for their minimum |
| shoal_autoscaler_trainers | gauge | trainers of these that have a node |
| shoal_autoscaler_trainers_given | gauge | trainers that are allocated to these |
| shoal_autoscaler_claims | gauge | pending pods of other workloads for which room is kept or made |
| shoal_autoscaler_victims | gauge | trainers that are preempted for these pods |
| shoal_autoscaler_nodes | gauge | nodes |
| shoal_autoscaler_nodes_usable | gauge | nodes of these that accept pods |
| shoal_autoscaler_unread | gauge | nodes, pods and templates with quantities that cannot be read; the log names them |
"""

from __future__ import annotations

import logging
from collections import Counter as Count
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final, Protocol

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from shoal.api.plan import Plan
from shoal.autoscaler.planner.model import AllocationReason
from shoal.operator.thread_pool import blocked

__all__ = ["Health", "Metrics", "serve"]

_PLAN_BUCKETS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_SYNC_BUCKETS: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)

log = logging.getLogger("shoal.operator")


class Health(Protocol):
    """The checks behind the probes; each returns what is wrong, or an empty text."""

    def liveness_problem(self) -> str:
        """Return why the process should be restarted."""

    def readiness_problem(self) -> str:
        """Return why the operator does not serve, yet or at present."""


class Metrics:
    """The operator's metrics, in a registry of their own.

    Args:
        states: Returns the state of each job in the cache; called at each scrape.
    """

    def __init__(self, states: Callable[[], Iterable[str]]) -> None:
        self.registry = CollectorRegistry()
        self._syncs = Histogram(
            "shoal_operator_sync_seconds",
            "One sync of one job, with all its writes.",
            ["outcome"],
            buckets=_SYNC_BUCKETS,
            registry=self.registry,
        )
        self._requests = Counter(
            "shoal_operator_api_requests",
            "Requests to the API server, each retry counted (code 0: no response), without watches.",
            ["verb", "kind", "code"],
            registry=self.registry,
        )
        self._events = Counter(
            "shoal_operator_watch_events", "Objects received from watches.", ["kind"], registry=self.registry
        )
        self._leading = Gauge(
            "shoal_operator_leading", "1: this operator leads; 0: it stands by.", registry=self.registry
        )
        self._etcd = Gauge("shoal_operator_etcd_up", "1: Shoal's etcd answers.", registry=self.registry)
        for name, of in (("running", lambda: blocked().running), ("waiting", lambda: blocked().waiting)):
            text = f"Blocking calls to etcd that are {name}."
            Gauge(f"shoal_operator_blocking_calls_{name}", text, registry=self.registry).set_function(of)
        self._autoscaler: _Autoscaler | None = None
        self.registry.register(_Jobs(states))
        ProcessCollector(registry=self.registry)

    def synced(self, seconds: float, failed: bool) -> None:  # noqa: FBT001 - the work queue's hook
        """Count a sync."""
        self._syncs.labels("failed" if failed else "done").observe(seconds)

    def on_request(self, verb: str, kind: str, code: int) -> None:
        """Count a request to the API server; thread-safe."""
        self._requests.labels(verb, kind, str(code)).inc()

    def on_event(self, kind: str) -> None:
        """Count an object received from a watch; thread-safe."""
        self._events.labels(kind).inc()

    def configured(self, valid: bool, acts: bool) -> None:  # noqa: FBT001 - the autoscaler's hook
        """Set whether the autoscaler's configuration is valid, and whether jobs follow its plans."""
        metrics = self._of_autoscaler()
        metrics.valid.set(valid)
        metrics.acts.set(acts)

    def planned(self, plan: Plan) -> None:
        """Count a plan."""
        self._of_autoscaler().planned(plan)

    def not_planned(self) -> None:
        """Count a plan that failed."""
        self._of_autoscaler().failed.inc()

    def _of_autoscaler(self) -> _Autoscaler:
        """Create the autoscaler's metrics when it starts: without an autoscaler their zeros would raise alarms."""
        if self._autoscaler is None:
            self._autoscaler = _Autoscaler(self.registry)
        return self._autoscaler

    def leads(self, *, leading: bool) -> None:
        """Set whether this operator leads."""
        self._leading.set(leading)

    def etcd(self, *, up: bool) -> None:
        """Set whether etcd answers."""
        self._etcd.set(up)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _Autoscaler:
    """The autoscaler's metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"shoal_autoscaler_{name}", text, registry=registry)

        self.valid = gauge("config_valid", "1: the AutoscalerConfig's file is in force; 0: it is refused.")
        self.acts = gauge("acts", "1: jobs follow the plans.")
        self.failed = Counter("shoal_autoscaler_plans_failed", "Plans that failed.", registry=registry)
        self._seconds = Histogram(
            "shoal_autoscaler_plan_seconds", "One plan for all jobs.", buckets=_PLAN_BUCKETS, registry=registry
        )
        self._of_last: list[tuple[Gauge, Callable[[Plan], float]]] = [
            (gauge(name, f"Of the last plan: {text}."), of) for name, text, of in _OF_LAST_PLAN
        ]

    def planned(self, plan: Plan) -> None:
        self._seconds.observe(plan.seconds)
        for gauge, of in self._of_last:
            gauge.set(of(plan))


_OF_LAST_PLAN: Final[Sequence[tuple[str, str, Callable[[Plan], float]]]] = (
    ("plan_timestamp_seconds", "when it was made", lambda plan: datetime.fromisoformat(plan.time).timestamp()),
    ("last_plan_seconds", "how long it took", lambda plan: plan.seconds),
    ("jobs", "jobs that want trainers", lambda plan: len(plan.jobs)),
    (
        "jobs_queued",
        "jobs that wait for their minimum",
        lambda plan: sum(job.reason == AllocationReason.QUEUED for job in plan.jobs),
    ),
    ("trainers", "trainers that have a node", lambda plan: sum(job.trainers for job in plan.jobs)),
    ("trainers_given", "trainers that are allocated to jobs", lambda plan: sum(job.given for job in plan.jobs)),
    ("claims", "pending pods of other workloads for which room is kept or made", lambda plan: len(plan.claims)),
    ("victims", "trainers preempted for these", lambda plan: sum(sum(each.victims.values()) for each in plan.claims)),
    ("nodes", "nodes", lambda plan: plan.nodes),
    ("nodes_usable", "nodes that accept pods", lambda plan: plan.usable),
    ("unread", "objects with quantities that cannot be read", lambda plan: plan.unread),
)


class _Jobs(Collector):
    def __init__(self, states: Callable[[], Iterable[str]]) -> None:
        self._states = states

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Return the family without values, so that its registration does not read the cache."""
        return [self._family()]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the number of jobs in each state that some job has."""
        family = self._family()
        for state, count in sorted(Count(self._states()).items()):
            family.add_metric([state], count)
        yield family

    @staticmethod
    def _family() -> GaugeMetricFamily:
        return GaugeMetricFamily("shoal_jobs", "TrainingJobs by state.", labels=["state"])


@asynccontextmanager
async def serve(address: str, *, health: Health, metrics: Metrics) -> AsyncIterator[None]:
    """Serve at HOST:PORT for as long as the context lasts; without an address, do nothing.

    Raises:
        OSError: The address is not available.
    """
    if not address:
        yield
        return

    def answer(problem: str) -> web.Response:
        return web.Response(text=f"{problem or 'ok'}\n", status=503 if problem else 200)

    async def healthz(_: web.Request) -> web.Response:
        return answer(health.liveness_problem())

    async def readyz(_: web.Request) -> web.Response:
        return answer(health.readiness_problem())

    async def scrape(_: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    application = web.Application()
    application.add_routes(
        [web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", scrape)],
    )
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        host, _, port = address.rpartition(":")
        await web.TCPSite(runner, host.strip("[]") or None, int(port)).start()
        log.info("probes and metrics are served at %s", address)
        yield
    finally:
        await runner.cleanup()
