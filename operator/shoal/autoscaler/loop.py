"""The loop around the planner: it plans after each change, and reports the jobs whose decision has changed.

The loop makes no requests. The operator passes in its informers' events and the jobs' demands, and reads the decision of a
job when it reconciles that job. Nothing in this module acts on the cluster.

A plan queues a job whose minimum finds no room. The planner alone decides when (`planner/queue_hysteresis.py`): the scheduler chooses
the nodes of pods, and a job must not start and stop because that choice differs from the plan.

Without a valid configuration nothing is planned: the defaults could do what the configuration forbids.

The snapshot is taken on the event loop and is immutable. The plan is computed in a thread, one plan at a time, while the
event loop goes on; its decisions are applied on the event loop. A job that was deleted, or whose demand changed, while the
plan was computed is left out: that change has triggered the next plan, which follows at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from shoal.api.plan import Plan, PlannedClaim, PlannedJob
from shoal.autoscaler.config.hot_reload import ConfigFile
from shoal.autoscaler.config.types import AutoscalerConfig, policy
from shoal.autoscaler.job_demand import JobDemand
from shoal.autoscaler.plan_thread import computed
from shoal.autoscaler.planner.model import (
    AllocationReason,
    JobAllocation,
    PlannerJob,
    PlannerMemory,
    PlanResult,
    Snapshot,
)
from shoal.autoscaler.planner.plan import plan
from shoal.autoscaler.snapshot.cluster_state import ClusterState
from shoal.autoscaler.snapshot.recent_demand import RecentDemand
from shoal.autoscaler.snapshot.resources import part

__all__ = ["Autoscaler", "JobDecision"]

_SERVERS_WAIT_SECONDS: Final = 15.0
"""Longest time for which the creation of servers is delayed while other pods occupy their room."""
_MOST_PROBLEMS: Final = 3
"""Most problems of one object that are logged."""

log = logging.getLogger("shoal.autoscaler")


def _waits(manifest: Mapping[str, Any]) -> bool:
    """Return whether a pod is foreign, has no node and no scheduling gates, and ranks above trainers: head-room counts it."""
    spec = manifest.get("spec") or {}
    foreign = "shoal.dev/uid" not in (manifest["metadata"].get("labels") or {})
    return foreign and not spec.get("nodeName") and not spec.get("schedulingGates") and (spec.get("priority") or 0) >= 0


@dataclass(frozen=True, kw_only=True)
class JobDecision:
    """The decision for one job.

    Attributes:
        trainers: Number of trainers; 0: the job is queued.
        now: How many of `trainers` can exist now; the others are created when the victims have ended.
        kept: Name of a node -> trainers that stay there; trainers in excess of that are removed first. None: any node.
        reason: Reason why the job has no more trainers, as a message.
        added: Name of a node -> new trainers that have room there now, and for which it is the preferred node.
        servers: Names of the preferred nodes of parameter servers that have no node.
        master: Names of the preferred nodes of a master that has no node.
        servers_wait: Whether other pods still occupy the room of the servers. Servers created now would take any other room
            that becomes free first. Default: False.
    """

    trainers: int
    now: int
    kept: Mapping[str, int] | None
    reason: str
    added: Mapping[str, int] = field(default_factory=dict)
    servers: tuple[str, ...] = ()
    master: tuple[str, ...] = ()
    servers_wait: bool = False


def _ignore(*_: object) -> None:
    pass


class Autoscaler:
    """The autoscaler of a cluster.

    Args:
        config: The file of the AutoscalerConfig.
        changed: Called with the uids of jobs whose decision has changed.
        planned: Called with each plan, in the form for metrics and `shoal plan`.
        configured: Called in each cycle with (the file is valid, jobs follow the plans).
        failed: Called when a plan failed with an exception.
        clock: Monotonic clock, in seconds. Default: `time.monotonic`.
    """

    def __init__(
        self,
        config: ConfigFile,
        *,
        changed: Callable[[Iterable[str]], None],
        planned: Callable[[Plan], None],
        configured: Callable[[bool, bool], None] = _ignore,
        failed: Callable[[], None] = _ignore,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = config
        self._changed = changed
        self._planned = planned
        self._configured = configured
        self._failed = failed
        self._clock = clock
        self._view = ClusterState()
        self._recent = RecentDemand()
        self._classes: dict[str, int] = {}
        """PriorityClass -> its value; deleted classes are kept, as pods still have their value."""
        self._unread: dict[str, tuple[str, ...]] = {}
        self._demands: dict[str, tuple[JobDemand, str, str]] = {}
        self._memory = PlannerMemory()
        self._decisions: dict[str, JobDecision] = {}
        self._servers_wait: dict[str, float] = {}
        """Uid of a job -> since when its servers wait for room."""
        self._changes = asyncio.Event()
        self._polled()

    @property
    def config(self) -> AutoscalerConfig:
        """The configuration in force."""
        return self._file.config

    @property
    def problem(self) -> str:
        """The problem of the configuration's file, and its consequence; empty: none."""
        if not self._file.problem:
            return ""
        consequence = (
            "the previous configuration stays in force"
            if self._file.taken
            else "nothing is changed until it is corrected"
        )
        return f"{self._file.problem}; {consequence}"

    @property
    def is_unconfigured(self) -> bool:
        """Whether there has been no valid configuration yet, so that jobs keep their trainers."""
        return not self._file.taken

    # --- Input ---

    def on_event(self, kind: str, manifest: Mapping[str, Any], *, deleted: bool = False) -> None:
        """Handle the event of a Node, a Pod or a PriorityClass; other kinds are ignored.

        Args:
            kind: Kind of the object.
            manifest: The object.
            deleted: Whether the object was deleted. Default: False.
        """
        changed = False
        if kind == "Pod":
            changed = self._view.pod_changed(manifest, now=self._clock(), deleted=deleted)
            self._record_class(part(manifest.get("spec")))
            if not deleted and _waits(manifest):
                self._recent.pod_arrived(manifest, now=self._clock())
        elif kind == "Node":
            changed = self._view.node_changed(manifest, deleted=deleted)
        elif kind == "PriorityClass" and not deleted:
            name, value = manifest["metadata"]["name"], int(manifest.get("value", 0))
            changed = self._classes.get(name) != value
            self._classes[name] = value
        if changed:
            self._changes.set()

    def listed(self, kind: str, items: Iterable[Mapping[str, Any]], *, revision: int) -> None:
        """Handle a complete list of a kind: objects that are not in it were deleted.

        Args:
            kind: Kind of the objects.
            items: All objects of that kind.
            revision: Resource version of the list.
        """
        names = {each["metadata"]["uid" if kind == "Pod" else "name"] for each in items}
        if kind in {"Pod", "Node"}:
            self._view.forget_missing(kind, names, revision=revision)
        self._changes.set()

    def _record_class(self, spec: Mapping[str, Any]) -> None:
        """Learn the value of a PriorityClass from a pod: the class may have been deleted before this process started."""
        name, value = spec.get("priorityClassName"), spec.get("priority")
        if name and isinstance(value, int):
            self._classes.setdefault(str(name), value)

    def set_demand(self, uid: str, demand: JobDemand | None, *, minimum: str = "", surplus: str = "") -> None:
        """Set the demand of a job.

        Args:
            uid: Uid of the job.
            demand: The demand; its priorities are replaced by the values of the two classes, where these exist. None: the job
                needs no trainers.
            minimum: PriorityClass of the minimum trainers.
            surplus: PriorityClass of the trainers beyond the minimum.
        """
        before = self._demands.get(uid)
        if demand is None:
            self._demands.pop(uid, None)
            self._decisions.pop(uid, None)
            self._servers_wait.pop(uid, None)
        else:
            self._demands[uid] = demand, minimum, surplus
        if before != self._demands.get(uid):
            self._changes.set()

    # --- Output ---

    def decision(self, uid: str) -> JobDecision | None:
        """Return the decision for a job; None: no plan has included it yet, or no plans are made."""
        return self._decisions.get(uid)

    @property
    def acts(self) -> bool:
        """Whether jobs follow the plans: the autoscaler is enabled and not in dry-run mode."""
        return self.config.enabled and not self.config.dry_run

    async def run(self) -> None:
        """Plan after each change, and at least once per `cycle`, until cancelled."""
        while True:
            if self._polled():
                self._changed(list(self._demands))
            self._configured(not self._file.problem, self.acts and not self.is_unconfigured)
            # Changes that arrive while a plan is computed are for the next plan.
            self._changes.clear()
            if self.config.enabled and not self.is_unconfigured:
                await self._try()
            try:
                async with asyncio.timeout(self.config.cycle.seconds):
                    await self._changes.wait()
                # Changes within `debounce` are answered by one plan.
                await asyncio.sleep(self.config.debounce.seconds)
            except TimeoutError:
                continue

    def _polled(self) -> bool:
        """Poll the configuration's file; return whether its configuration or its problem has changed."""
        change = self._file.poll()
        if change is None:
            return False
        if change.problem:
            log.warning("%s", self.problem)
        else:
            log.info("configuration loaded")
        return True

    async def _try(self) -> None:
        try:
            await self._plan()
        except Exception:
            # Jobs keep their trainers; without a plan they are no worse off than without an autoscaler.
            log.exception("no plan could be made")
            self._failed()
            self._unbind()

    def _unbind(self) -> None:
        """Remove the nodes from all decisions, so that lost trainers are replaced on any node without a new plan."""
        free = {uid: _unbound(each) for uid, each in self._decisions.items() if each.kept is not None and each.trainers}
        self._decisions |= free
        if free and self.acts:
            self._changed(list(free))

    async def _plan(self) -> None:
        began, of = self._clock(), dict(self._demands)
        demands = [self._ranked(*each) for each in of.values()]
        spare = self._recent.spare(self.config.head_room, now=began)
        snapshot = self._view.snapshot(demands, now=began, spare=spare)
        self._log_unread()
        work = partial(plan, snapshot, self._memory, policy(self.config))
        allocation, self._memory = await computed(work, name="plan")
        # Jobs whose demand has changed meanwhile are left to the next plan.
        jobs = [job for job in snapshot.jobs if self._demands.get(job.uid) == of[job.uid]]
        self._take(jobs, allocation, snapshot.nodes.names)
        self._planned(self._reported(snapshot, allocation, self._clock() - began))

    def _reported(self, snapshot: Snapshot, allocation: PlanResult, seconds: float) -> Plan:
        titles = {job.uid: job.name for job in snapshot.jobs}
        jobs = []
        there = (job for job in snapshot.jobs if job.uid in self._demands)
        for job in sorted(there, key=lambda job: (-job.priority, job.since, job.name)):
            given, decision = allocation.jobs[job.uid], self._decisions.get(job.uid)
            namespace, _, name = job.name.partition("/")
            now = decision.now if decision is not None else 0
            jobs.append(
                PlannedJob(
                    namespace,
                    name,
                    job.priority,
                    job.trainers,
                    given.trainers,
                    now,
                    job.min,
                    job.max,
                    given.reason,
                    given.message,
                )
            )
        claims = [
            PlannedClaim(
                claim.name,
                snapshot.nodes.names[claim.node],
                {titles[uid]: count for uid, count in claim.victims.items()},
            )
            for claim in allocation.claims
        ]
        usable = int(snapshot.nodes.usable.sum())
        time_now = datetime.now(UTC).isoformat(timespec="milliseconds")
        return Plan(
            time_now,
            seconds,
            self.acts,
            self._file.problem,
            len(snapshot.nodes.names),
            usable,
            jobs,
            claims,
            len(self._view.problems),
        )

    def _log_unread(self) -> None:
        """Log the unreadable values of nodes, pods and templates: each object once, and again when its problems change."""
        found = self._view.problems
        for title in [title for title, lines in found.items() if self._unread.get(title) != lines]:
            lines = "; ".join(found[title][:_MOST_PROBLEMS])
            log.warning("%s: %s; values that cannot be read count as 0", title, lines)
        self._unread = dict(found)

    def _ranked(self, demand: JobDemand, minimum: str, surplus: str) -> JobDemand:
        priority, beyond = self._classes.get(minimum, demand.priority), self._classes.get(surplus, demand.surplus)
        same = (priority, beyond) == (demand.priority, demand.surplus)
        return demand if same else replace(demand, priority=priority, surplus=beyond)

    def _take(self, jobs: Iterable[PlannerJob], allocation: PlanResult, names: tuple[str, ...]) -> None:
        updated = []
        for job in jobs:
            uid, given = job.uid, allocation.jobs[job.uid]
            before = self._decisions.get(uid)
            decision = self._decided(job, given, names)
            if decision is None or decision == before:
                continue
            self._decisions[uid] = decision
            updated.append(uid)
            if before is not None and before.trainers != decision.trainers:
                verb = "would get" if self.config.dry_run else "gets"
                log.info("%s %s %d trainers: %s", self._title(uid), verb, decision.trainers, decision.reason)
        if updated and self.acts:
            self._changed(updated)

    def _decided(self, job: PlannerJob, given: JobAllocation, names: tuple[str, ...]) -> JobDecision | None:
        """Return the new decision for a job; None: the previous decision stays."""
        if given.reason is AllocationReason.QUEUED:
            self._servers_wait.pop(job.uid, None)
            if given.keeps_pods:
                before = self._decisions.get(job.uid)
                return _unbound(before) if before is not None else None
            return JobDecision(trainers=0, now=0, kept={}, reason=given.message)
        kept = {names[node]: count for node, count in given.kept.items()}
        servers, master = _others(job, given, names)
        return JobDecision(
            trainers=given.trainers,
            now=sum(kept.values()) + sum(given.now.values()),
            kept=kept,
            reason=given.message,
            added={names[node]: count for node, count in given.now.items()},
            servers=servers,
            master=master,
            servers_wait=self._servers_may_wait(job.uid, given),
        )

    def _servers_may_wait(self, uid: str, given: JobAllocation) -> bool:
        """Return whether servers are to be delayed, as other pods occupy their room; at most `_SERVERS_WAIT_SECONDS`.

        The time is bounded because those pods may never end, and because the scheduler may find other room.
        """
        if given.others_now:
            self._servers_wait.pop(uid, None)
            return False
        now = self._clock()
        return now - self._servers_wait.setdefault(uid, now) < _SERVERS_WAIT_SECONDS

    def _title(self, uid: str) -> str:
        demand = self._demands[uid][0]
        return f"{demand.namespace}/{demand.name}"


def _others(job: PlannerJob, given: JobAllocation, names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the preferred nodes of the servers, and of the master.

    `PlannerJob.fixed` has the servers first. If only one of the two lacks nodes, both results are its nodes: the other one
    is bound, and its result is not used.
    """
    nodes: dict[int, list[str]] = {}
    for shape, node in given.others:
        nodes.setdefault(shape, []).append(names[node])
    found = []
    for shape, count in job.fixed:
        of = nodes.get(shape, [])
        found.append(tuple(of[:count]))
        nodes[shape] = of[count:]
    return (found[0], found[-1]) if found else ((), ())


def _unbound(decision: JobDecision) -> JobDecision:
    """Return the decision without nodes: the scheduler chooses them."""
    return replace(decision, kept=None)
