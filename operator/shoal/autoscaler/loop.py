"""The loop around the planner: news come in, a moment later there is a plan, and whoever it concerns is told.

It asks nobody: the operator hands in what its watches bring and what its jobs want, and takes a decision for each job when
it looks at that job. Nothing here acts on the cluster.

A plan turns a job away when its minimum finds no room. One that has pods already is turned away only when that has been so
for a while, and is let in again only after a pause: where pods really go is the scheduler's choice, and a job must not come
and go because it was another one than the plan's.

Until a configuration was taken nothing is planned: the defaults might be what its owner told it not to do.

The snapshot is taken on the event loop and nothing in it changes afterwards; the plan is computed in a thread, one at a time,
while the loop goes on; what came of it is taken over on the loop. A job that went meanwhile, or wants something else now, has
no part in it: the news of that are for the next plan, which follows at once.
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
from shoal.autoscaler.planner.model import Allocation, JobAllocation, PlannerJob, PlannerMemory, Snapshot, Why
from shoal.autoscaler.planner.plan import plan
from shoal.autoscaler.snapshot.cluster_state import ClusterState
from shoal.autoscaler.snapshot.recent_demand import RecentDemand
from shoal.autoscaler.snapshot.resources import part

__all__ = ["Autoscaler", "JobDecision"]

_TURNED_AWAY_SECONDS: Final = 10.0
"""For so long a minimum has no room before a job that has pods gives all of them up."""
_SERVERS_WAIT_SECONDS: Final = 15.0
"""For so long servers are not made yet where their room is still somebody's."""
_FIRST_PAUSE_SECONDS: Final = 30.0
_LONGEST_PAUSE_SECONDS: Final = 600.0
_WELL_SECONDS: Final = 600.0
"""A job that had its room for so long is no more suspected to come and go."""
_MOST_WORDS: Final = 3
"""Problems of one object that are logged."""

log = logging.getLogger("shoal.autoscaler")


def _waits(manifest: Mapping[str, Any]) -> bool:
    """Whether it is a foreign pod without a node that ranks above trainers: room is kept for its like, if wanted."""
    spec = manifest.get("spec") or {}
    foreign = "shoal.dev/uid" not in (manifest["metadata"].get("labels") or {})
    return foreign and not spec.get("nodeName") and not spec.get("schedulingGates") and (spec.get("priority") or 0) >= 0


@dataclass(frozen=True, kw_only=True)
class JobDecision:
    """What a job is given.

    Attributes:
        trainers: How many it shall have; 0: it waits in line.
        now: How many of these can be there now: the rest comes when others have left.
        stays: Name of a node -> how many of its trainers stay there; others there leave first. None: it does not matter.
        why: Why not more, for people.
        comes: Name of a node -> how many new trainers have room there now and would do best there.
        servers: Names of the nodes where parameter servers without one would.
        master: The same for its master, where that has none.
        servers_wait: Their room is still somebody's. Who came now would take other room as soon as any is free.
    """

    trainers: int
    now: int
    stays: Mapping[str, int] | None
    why: str
    comes: Mapping[str, int] = field(default_factory=dict)
    servers: tuple[str, ...] = ()
    master: tuple[str, ...] = ()
    servers_wait: bool = False


@dataclass
class _Turned:
    """A job whose minimum has no room.

    Attributes:
        since: When that was seen first; None: it has room.
        until: When it may be let in again.
        pause: After the next time.
        well: Since when it has its room, and pods; None: it lacks one.
    """

    since: float | None = None
    until: float = 0.0
    pause: float = _FIRST_PAUSE_SECONDS
    well: float | None = None

    def runs(self, now: float) -> None:
        """It has its room, and pods."""
        self.well = self.well if self.well is not None else now
        if now - self.well >= _WELL_SECONDS:
            self.pause = _FIRST_PAUSE_SECONDS


def _ignore(*_: object) -> None:
    pass


class Autoscaler:
    """One for a cluster.

    Args:
        config: What an operator of the cluster chose.
        changed: Told the uids of jobs whose decision is another one now.
        planned: Gets each plan, as it is to be told.
        configured: Told at each look whether the configuration's file is as it should be, and whether jobs follow plans.
        failed: Told that no plan could be made.
        clock: Seconds that only go forward.
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
        self._demand = RecentDemand()
        self._classes: dict[str, int] = {}
        """PriorityClass -> its value, also of one that is gone: its pods have it still."""
        self._unread: dict[str, tuple[str, ...]] = {}
        self._wishes: dict[str, tuple[JobDemand, str, str]] = {}
        self._memory = PlannerMemory()
        self._decisions: dict[str, JobDecision] = {}
        self._turned: dict[str, _Turned] = {}
        self._servers_wait: dict[str, float] = {}
        """Uid -> since when."""
        self._news = asyncio.Event()
        self._polled()

    @property
    def config(self) -> AutoscalerConfig:
        """What is in force."""
        return self._file.config

    @property
    def problem(self) -> str:
        """What is wrong with the configuration's file, and what that means; empty: nothing."""
        if not self._file.problem:
            return ""
        stays = "what was in force before stays" if self._file.taken else "nothing is changed until it is mended"
        return f"{self._file.problem}; {stays}"

    @property
    def holds(self) -> bool:
        """Whether no configuration was taken yet, so that jobs keep what they have."""
        return not self._file.taken

    # --- What comes in ---

    def saw(self, kind: str, manifest: Mapping[str, Any], *, gone: bool = False) -> None:
        """A node, a pod or a PriorityClass is there, changed, or gone."""
        changed = False
        if kind == "Pod":
            changed = self._view.pod_changed(manifest, now=self._clock(), gone=gone)
            self._learn(part(manifest.get("spec")))
            if not gone and _waits(manifest):
                self._demand.came(manifest, now=self._clock())
        elif kind == "Node":
            changed = self._view.node_changed(manifest, gone=gone)
        elif kind == "PriorityClass" and not gone:
            name, value = manifest["metadata"]["name"], int(manifest.get("value", 0))
            changed = self._classes.get(name) != value
            self._classes[name] = value
        if changed:
            self._news.set()

    def listed(self, kind: str, items: Iterable[Mapping[str, Any]], *, revision: int) -> None:
        """All that there is of a kind: what is not among it has gone."""
        names = {each["metadata"]["uid" if kind == "Pod" else "name"] for each in items}
        if kind in {"Pod", "Node"}:
            self._view.forget_missing(kind, names, revision=revision)
        self._news.set()

    def _learn(self, spec: Mapping[str, Any]) -> None:
        """The value of a class that went before this process began is known from the pods that have it."""
        name, value = spec.get("priorityClassName"), spec.get("priority")
        if name and isinstance(value, int):
            self._classes.setdefault(str(name), value)

    def wants(self, uid: str, wish: JobDemand | None, *, minimum: str = "", surplus: str = "") -> None:
        """What a job wants now; None: nothing.

        Args:
            uid: The job's.
            wish: Its priority is that of `minimum`, where there is such a class.
            minimum: The PriorityClass of its minimum trainers.
            surplus: Of those beyond.
        """
        before = self._wishes.get(uid)
        if wish is None:
            self._wishes.pop(uid, None)
            self._decisions.pop(uid, None)
            self._turned.pop(uid, None)
            self._servers_wait.pop(uid, None)
        else:
            self._wishes[uid] = wish, minimum, surplus
        if before != self._wishes.get(uid):
            self._news.set()

    # --- What comes out ---

    def decision(self, uid: str) -> JobDecision | None:
        """What a job is given; None: there was no plan with it yet, or nothing is to be changed by plans."""
        return self._decisions.get(uid)

    @property
    def acts(self) -> bool:
        """Whether jobs are to follow the plans."""
        return self.config.enabled and not self.config.dry_run

    async def run(self) -> None:
        """Plan when there are news, and now and then, for ever."""
        while True:
            if self._polled():
                self._changed(list(self._wishes))
            self._configured(not self._file.problem, self.acts and not self.holds)
            # What comes while a plan is made is for the next one.
            self._news.clear()
            if self.config.enabled and not self.holds:
                await self._try()
            try:
                async with asyncio.timeout(self.config.cycle.seconds):
                    await self._news.wait()
                # What comes in one go is planned for in one go.
                await asyncio.sleep(self.config.debounce.seconds)
            except TimeoutError:
                continue

    def _polled(self) -> bool:
        """Whether jobs are to hear of the configuration: another one is in force than before, or it cannot be taken."""
        change = self._file.poll()
        if change is None:
            return False
        if change.problem:
            log.warning("%s", self.problem)
        else:
            log.info("configuration taken")
        return True

    async def _try(self) -> None:
        try:
            await self._plan()
        except Exception:
            # Jobs go on with what they have; without a plan they are no worse off than without an autoscaler.
            log.exception("no plan could be made")
            self._failed()
            self._unbind()

    def _unbind(self) -> None:
        """Who dies is replaced wherever there is room: no plan comes that would say where."""
        free = {
            uid: _unbound(each) for uid, each in self._decisions.items() if each.stays is not None and each.trainers
        }
        self._decisions |= free
        if free and self.acts:
            self._changed(list(free))

    async def _plan(self) -> None:
        began, of = self._clock(), dict(self._wishes)
        wishes = [self._ranked(*each) for each in of.values()]
        spare = self._demand.spare(self.config.head_room, now=began)
        snapshot = self._view.snapshot(wishes, now=began, spare=spare)
        self._say_unread()
        work = partial(plan, snapshot, self._memory, policy(self.config))
        allocation, self._memory = await computed(work, name="plan")
        # A wish is told anew only when it is another one.
        jobs = [job for job in snapshot.jobs if self._wishes.get(job.uid) == of[job.uid]]
        self._take(jobs, allocation, snapshot.nodes.names)
        self._planned(self._told(snapshot, allocation, self._clock() - began))

    def _told(self, snapshot: Snapshot, allocation: Allocation, seconds: float) -> Plan:
        titles = {job.uid: job.name for job in snapshot.jobs}
        jobs = []
        there = (job for job in snapshot.jobs if job.uid in self._wishes)
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
                    given.why,
                    given.words,
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

    def _say_unread(self) -> None:
        """What nobody can read on nodes, pods and templates: once, and again when it is something else."""
        found = self._view.problems
        for title in [title for title, lines in found.items() if self._unread.get(title) != lines]:
            told = "; ".join(found[title][:_MOST_WORDS])
            log.warning("%s: %s; what cannot be read counts as nothing", title, told)
        self._unread = dict(found)

    def _ranked(self, wish: JobDemand, minimum: str, surplus: str) -> JobDemand:
        priority, beyond = self._classes.get(minimum, wish.priority), self._classes.get(surplus, wish.surplus)
        same = (priority, beyond) == (wish.priority, wish.surplus)
        return wish if same else replace(wish, priority=priority, surplus=beyond)

    def _take(self, jobs: Iterable[PlannerJob], allocation: Allocation, names: tuple[str, ...]) -> None:
        news = []
        for job in jobs:
            uid, given = job.uid, allocation.jobs[job.uid]
            before = self._decisions.get(uid)
            has_pods = bool(job.held) or (before is not None and before.trainers > 0)
            decision = self._decided(job, given, names, has_pods=has_pods)
            if decision is None or decision == before:
                continue
            self._decisions[uid] = decision
            news.append(uid)
            if before is not None and before.trainers != decision.trainers:
                told = "would be" if self.config.dry_run else "is"
                log.info("%s %s given %d trainers: %s", self._title(uid), told, decision.trainers, decision.why)
        if news and self.acts:
            self._changed(news)

    def _decided(
        self, job: PlannerJob, given: JobAllocation, names: tuple[str, ...], *, has_pods: bool
    ) -> JobDecision | None:
        """None: it stays with what was decided before."""
        now, turned = self._clock(), self._turned.setdefault(job.uid, _Turned())
        if given.why is Why.QUEUED:
            self._servers_wait.pop(job.uid, None)
            turned.since, turned.well = turned.since if turned.since is not None else now, None
            if has_pods and now - turned.since < _TURNED_AWAY_SECONDS:
                before = self._decisions.get(job.uid)
                return _unbound(before) if before is not None else None
            if has_pods and now >= turned.until:
                turned.until, turned.pause = now + turned.pause, min(2 * turned.pause, _LONGEST_PAUSE_SECONDS)
            return JobDecision(trainers=0, now=0, stays={}, why=given.words)
        turned.since = None
        if has_pods:
            turned.runs(now)
        else:
            turned.well = None
        if now < turned.until and not has_pods:
            # No countdown: words that change with each plan would be a status with each.
            return JobDecision(trainers=0, now=0, stays={}, why="was turned away, and rests before it tries again")
        stays = {names[node]: count for node, count in given.stays.items()}
        servers, master = _others(job, given, names)
        return JobDecision(
            trainers=given.trainers,
            now=sum(stays.values()) + sum(given.now.values()),
            stays=stays,
            why=given.words,
            comes={names[node]: count for node, count in given.now.items()},
            servers=servers,
            master=master,
            servers_wait=self._servers_may_wait(job.uid, given),
        )

    def _servers_may_wait(self, uid: str, given: JobAllocation) -> bool:
        """For a while: whoever holds their room may never leave, and the scheduler may know other room."""
        if given.others_now:
            self._servers_wait.pop(uid, None)
            return False
        now = self._clock()
        return now - self._servers_wait.setdefault(uid, now) < _SERVERS_WAIT_SECONDS

    def _title(self, uid: str) -> str:
        wish = self._wishes[uid][0]
        return f"{wish.namespace}/{wish.name}"


def _others(job: PlannerJob, given: JobAllocation, names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Where servers would be, and the master.

    A job names its servers first. Where only one of the two lacks nodes the answer is the same for both: the other one is
    there, and nobody asks.
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
    """The same, wherever the scheduler puts them."""
    return replace(decision, stays=None)
