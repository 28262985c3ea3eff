"""The discrete-event simulation: a heap of scheduled events, and the simulated cluster.

At each point in time all due events are handled first; then the scheduler runs, then the policy if it is due, then the
scheduler again. So the result does not depend on the order in which simultaneous events were scheduled, and the same trace
gives the same report. The simulation reads no clock and uses no random numbers.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from shoal.autoscaler.planner.model import Counts
from shoal.simulator.measures import Foreign, History, Recorder, SimulationReport, UsageCounts, report_of
from shoal.simulator.policies.rules import PolicyDecision, Rule, Trigger
from shoal.simulator.trace import JobSpec, Trace
from shoal.simulator.world.arrivals import Arrivals
from shoal.simulator.world.cluster import NOWHERE, Cluster, Phase, Pod, PodKind, rank_of
from shoal.simulator.world.jobs import SimulatedJob
from shoal.simulator.world.layout import Layout
from shoal.simulator.world.scheduler import Scheduler
from shoal.simulator.world.views import view_of

__all__ = ["IDLE_SECONDS", "LONGEST_SECONDS", "Result", "Simulation", "simulate"]

LONGEST_SECONDS: Final = 30 * 86400.0
"""Default of the longest simulated time: 30 days."""
IDLE_SECONDS: Final = 3600.0
"""After this time without an arrival and without progress of any job the simulation ends: pending pods stay pending.

Longer than any cool-down.
"""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a simulation.

    Attributes:
        report: The measures.
        history: The requested CPU of each job over time; None: not recorded.
        trainings: The final state of the jobs.
    """

    report: SimulationReport
    history: History | None
    trainings: tuple[SimulatedJob, ...]


def simulate(
    trace: Trace,
    rule: Rule,
    *,
    until: float = LONGEST_SECONDS,
    history: bool = False,
    watch: Callable[[Simulation], None] | None = None,
) -> Result:
    """Simulate a trace under a policy.

    Args:
        trace: The cluster and the arrivals.
        rule: The policy; policies have state, so each simulation needs a new one.
        until: Simulated time at which the simulation stops even if jobs are left. Seconds. Default: `LONGEST_SECONDS`.
        history: Whether to record the requested CPU of each job over time. Default: False.
        watch: Called after each point in time: for progress, and for tests. Default: none.
    """
    return Simulation(trace, rule, history=history).run(until=until, watch=watch)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Event:
    """A scheduled event.

    Attributes:
        action: Handles the event.
        of_trace: Whether the event is of the trace, so that it does not depend on the policy.
        is_valid: Returns whether the event is still valid; an event that is not is dropped, and no time passes for it. None: it
            is always valid.
    """

    action: Callable[[], None]
    of_trace: bool
    is_valid: Callable[[], bool] | None

    def is_void(self) -> bool:
        return self.is_valid is not None and not self.is_valid()


class Simulation:
    """The simulation of a trace under a policy.

    Attributes:
        now: Simulated time, in seconds.
        layout: The nodes and shapes of the trace.
        cluster: The pods.
        trainings: Jobs that have arrived, by number.
        foreign: Counts and waiting times of foreign pods.

    Args:
        trace: The cluster and the arrivals.
        rule: The policy.
        history: Whether to record the requested CPU of each job over time. Default: False.
    """

    def __init__(self, trace: Trace, rule: Rule, *, history: bool = False) -> None:
        self._trace = trace
        self._rule = rule
        self.now = 0.0
        self.layout = Layout(trace)
        self.cluster = Cluster(self.layout, owners=len(trace.jobs) + 1)
        self.trainings: dict[int, SimulatedJob] = {}
        self._active: dict[int, SimulatedJob] = {}
        self._heap: list[tuple[float, int, _Event]] = []
        self._longest_idle = IDLE_SECONDS + 10 * (trace.start_seconds + trace.stop_seconds + trace.cycle_seconds)
        self._scheduled = 0
        self._of_trace = 0
        self._plan_now = False
        self._plan_due = math.inf
        self._ticking = False
        self._last_progress = 0.0
        self._arrived = np.zeros(len(trace.jobs), dtype=np.bool_)
        self._ended = np.zeros(len(trace.jobs), dtype=np.bool_)
        self._usage = UsageCounts()
        self.foreign = Foreign()
        self._history = History() if history else None
        self._recorder = self._make_recorder()
        self._scheduler = Scheduler(
            self.cluster,
            evict=self._evict if rule.scheduler_evicts else None,
            budgets=lambda: {number: job.spare for number, job in self._active.items()},
        )
        # The rank of all surplus trainers is below that of any minimum.
        self._lowest = rank_of(min((job.priority for job in trace.jobs), default=0), PodKind.TRAINER) - 1
        self._arrivals = Arrivals(self, trace)
        for number, job in enumerate(trace.jobs):
            self.at(job.arrival, partial(self._arrive, number, job), of_trace=True)

    @property
    def ended(self) -> int:
        """The number of jobs that have ended."""
        return int(self._ended.sum())

    def run(self, *, until: float = LONGEST_SECONDS, watch: Callable[[Simulation], None] | None = None) -> Result:
        """Run until there are no more events, or no progress is possible, or `until` is reached."""
        while (time := self._next()) is not None:
            if time > until:
                self._advance_to(until)
                break
            if time - self._last_progress > self._longest_idle and not (self._of_trace or self._working()):
                break
            self._advance_to(time)
            while self._next() == time:
                self._pop().action()
            self._start_bound_pods()
            if self._plan_now:
                self._plan_now = False
                self._plan()
                self._start_bound_pods()
            self._note()
            if watch is not None:
                watch(self)
        return self._result()

    def at(
        self,
        time: float,
        action: Callable[[], None],
        *,
        of_trace: bool = False,
        is_valid: Callable[[], bool] | None = None,
    ) -> None:
        """Schedule an event.

        Args:
            time: Simulated time of the event, in seconds.
            action: Handles the event.
            of_trace: Whether the event is of the trace, so that it does not depend on the policy.
            is_valid: Returns whether the event is still valid; None: it is always valid.
        """
        self._scheduled += 1
        self._of_trace += of_trace
        heapq.heappush(self._heap, (time, self._scheduled, _Event(action=action, of_trace=of_trace, is_valid=is_valid)))

    def _next(self) -> float | None:
        """Return the time of the next event; None: there is none."""
        while self._heap and self._heap[0][2].is_void():
            self._pop()
        return self._heap[0][0] if self._heap else None

    def _pop(self) -> _Event:
        *_, event = heapq.heappop(self._heap)
        self._of_trace -= event.of_trace
        return event

    def create(self, pod: Pod) -> None:
        """Create a pod."""
        self.cluster.add(pod)
        if pod.kind is PodKind.FOREIGN:
            self.foreign.arrived += 1

    def kill(self, pod: Pod) -> None:
        """Delete a pod: at once if it has no node, else after the trace's `stop_seconds`."""
        job = self.trainings.get(pod.owner)
        if job is not None:
            job.trainers.pop(pod.number, None)
            job.other_pods.pop(pod.number, None)
        if pod.phase is Phase.PENDING:
            if pod.kind is PodKind.FOREIGN:
                self.foreign.deleted_waits.append(self.now - pod.created)
            self.cluster.remove(pod)
            return
        if job is not None and pod.kind is PodKind.TRAINER:
            job.leaving += 1
            self._usage.stopped += job.ended is None
        self.cluster.begin_deletion(pod)
        self.at(self.now + self._trace.stop_seconds, partial(self._pod_removed, pod))
        if job is not None:
            self._pace(job)

    def trigger(self, trigger: Trigger) -> None:
        """Schedule a run of the policy after `debounce_seconds`, if the policy has this trigger."""
        due = self.now + self._trace.debounce_seconds
        if trigger in self._rule.triggers and self._plan_due > due:
            self._plan_due = due
            self.at(due, self._start_plan)

    def _make_recorder(self) -> Recorder:
        jobs = self._trace.jobs
        totals = np.maximum(self.layout.allocatable.sum(axis=0), 1)
        shapes = [self.layout.shape(job.request, job.pool) for job in jobs]
        weights = np.array([job.weight for job in jobs])
        shares = (self.layout.shapes.request[shapes] / totals).max(axis=1) / weights if jobs else np.zeros(0)
        return Recorder(
            self.cluster,
            shares=shares,
            most=np.array([job.max for job in jobs], dtype=np.int64),
            priorities=np.array([job.priority for job in jobs], dtype=np.int64),
            history=self._history,
        )

    # Events.

    def _arrive(self, number: int, spec: JobSpec) -> None:
        layout = self.layout
        shape = layout.shape(spec.request, spec.pool)
        job = SimulatedJob(number=number, spec=spec, shape=shape, others=layout.others(spec), counted=self.now)
        self.trainings[number] = self._active[number] = job
        self._arrived[number] = True
        self.trigger(Trigger.JOB)
        if not self._ticking:
            self._ticking = True
            self._next_cycle()

    def _next_cycle(self) -> None:
        cycle = self._trace.cycle_seconds
        self.at((math.floor(self.now / cycle + 1e-9) + 1) * cycle, self._cycle)

    def _cycle(self) -> None:
        # Without jobs there is nothing to plan; the next arrival starts the cycle again.
        self._ticking = bool(self._active)
        if self._ticking:
            self._plan_now = True
            self._next_cycle()

    def _start_plan(self) -> None:
        self._plan_due = math.inf
        self._plan_now = True

    def _runs(self, pod: Pod) -> None:
        pod.phase = Phase.RUNNING
        job = self.trainings.get(pod.owner)
        if job is not None:
            if pod.kind is PodKind.TRAINER and job.first is None:
                job.first = self.now
            self._pace(job)
        elif pod.lifetime is not None:
            ends = self.now + pod.lifetime
            self.at(ends, partial(self.cluster.remove, pod), of_trace=True, is_valid=lambda: pod.phase is Phase.RUNNING)

    def _pod_removed(self, pod: Pod) -> None:
        self.cluster.remove(pod)
        job = self.trainings.get(pod.owner)
        if job is not None and pod.kind is PodKind.TRAINER:
            job.leaving -= 1
            self.trigger(Trigger.TRAINER)

    def _evict(self, pod: Pod) -> None:
        """Preempt a pod for the scheduler; its Deployment or job recreates it."""
        job = self.trainings.get(pod.owner)
        self.kill(pod)
        if job is None:
            self._arrivals.replace(pod)
        elif pod.kind is PodKind.TRAINER:
            self._usage.evicted += 1
            self.trigger(Trigger.TRAINER)
        else:
            self._create_other(job, pod.shape)

    def _pace(self, job: SimulatedJob) -> None:
        """Update the job's rate after a change of its pods, and schedule its end again."""
        if job.ended is None and job.advance(self.now) and (job.rate or job.complete):
            version = job.version
            self.at(self.now + job.remaining(), partial(self._done, job), is_valid=lambda: job.version == version)

    def _done(self, job: SimulatedJob) -> None:
        job.end(self.now)
        self._ended[job.number] = True
        del self._active[job.number]
        for pod in (*job.trainers.values(), *job.other_pods.values()):
            self.kill(pod)
        self.trigger(Trigger.JOB)

    # Decisions.

    def _start_bound_pods(self) -> None:
        """Run the scheduler until nothing changes."""
        while self.cluster.changed:
            for pod in self._scheduler.run(self.now):
                self._usage.started += pod.kind is PodKind.TRAINER
                if pod.kind is PodKind.FOREIGN:
                    self.foreign.waits.append(self.now - pod.created)
                self.at(self.now + self._trace.start_seconds, partial(self._runs, pod), is_valid=partial(_starts, pod))
        fresh = (pod for pod in self.cluster.pending.values() if pod.kind is PodKind.FOREIGN)
        if any(pod.refused == self.now for pod in fresh):
            self.trigger(Trigger.FOREIGN)

    def _plan(self) -> None:
        if not self._active:
            return
        by_uid = {job.uid: job for job in self._active.values()}
        decisions = self._rule.decide(view_of(self.now, self.cluster, tuple(self._active.values())))
        # All jobs shrink before any job grows into the room.
        for uid, decision in decisions.items():
            self._shrink(by_uid[uid], decision)
        for uid, decision in decisions.items():
            self._grow(by_uid[uid], decision)

    def _shrink(self, job: SimulatedJob, decision: PolicyDecision) -> None:
        job.desired = decision.trainers
        bound = sorted(job.bound, key=lambda pod: (not pod.surplus, pod.phase is Phase.RUNNING, -pod.number))
        if decision.kept is None:
            for pod in bound[: max(len(bound) - decision.trainers, 0)]:
                self.kill(pod)
        else:
            here: dict[int, int] = {}
            for pod in bound:
                here[pod.node] = here.get(pod.node, 0) + 1
            for pod in bound:
                if here[pod.node] > decision.kept.get(pod.node, 0):
                    here[pod.node] -= 1
                    self.kill(pod)
        waiting = job.waiting
        for pod in waiting[max(self._may_wait(job, decision), 0) :]:
            self.kill(pod)

    @staticmethod
    def _may_wait(job: SimulatedJob, decision: PolicyDecision) -> int:
        """Return how many pending trainers the policy wants."""
        missing = decision.trainers - len(job.bound)
        return missing if decision.added is None else min(sum(decision.added.values()), missing)

    def _grow(self, job: SimulatedJob, decision: PolicyDecision) -> None:
        if decision.trainers and not job.started:
            job.started = True
            for shape, count in job.others:
                nodes = iter([node for of, node in decision.others if of == shape])
                for _ in range(count):
                    self._create_other(job, shape, preferred_node=next(nodes, NOWHERE))
        waiting = job.waiting
        preferred_nodes = _preferred_nodes(decision.added or {}, waiting)
        for index in range(self._may_wait(job, decision) - len(waiting)):
            minimums = sum(not pod.surplus for pod in job.trainers.values())
            surplus = self._rule.surplus and minimums >= job.spec.min
            pod = self._pod(job, PodKind.TRAINER, job.shape)
            pod.surplus = surplus
            pod.rank = self._lowest if surplus else pod.rank
            pod.preferred_node = preferred_nodes[index] if index < len(preferred_nodes) else NOWHERE
            job.trainers[pod.number] = pod
            self.create(pod)

    def _create_other(self, job: SimulatedJob, shape: int, *, preferred_node: int = NOWHERE) -> None:
        pod = self._pod(job, PodKind.OTHER, shape)
        pod.preferred_node = preferred_node
        job.other_pods[pod.number] = pod
        self.create(pod)
        self._pace(job)

    def _pod(self, job: SimulatedJob, kind: PodKind, shape: int) -> Pod:
        number = self.cluster.number()
        return Pod(
            number=number,
            name=f"{job.uid}-{kind.value}-{number}",
            kind=kind,
            owner=job.number,
            shape=shape,
            rank=rank_of(job.spec.priority, kind),
            priority=job.spec.priority,
            created=self.now,
        )

    # Measurements.

    def _advance_to(self, time: float) -> None:
        self._recorder.pass_to(time)
        self.now = time
        if self._working():
            self._last_progress = time
            self._recorder.save()

    def _working(self) -> bool:
        return any(job.rate for job in self._active.values())

    def _note(self) -> None:
        if self._of_trace:
            self._last_progress = self.now
            self._recorder.save()
        held: Counts = np.zeros(len(self._arrived), dtype=np.int64)
        for number, job in self._active.items():
            held[number] = len(job.bound)
        self._recorder.note(held=held, active=self._arrived & ~self._ended, counts=self._counts())

    def _counts(self) -> bool:
        """Return whether means include the present: they are taken from the first arrival to the end of the last job."""
        return not len(self._ended) or bool(self._arrived.any() and not self._ended.all())

    def _result(self) -> Result:
        if self._active and not self._of_trace and not self._working():
            self._recorder.rewind()
        self.foreign.left += [
            self.now - pod.created for pod in self.cluster.pending.values() if pod.kind is PodKind.FOREIGN
        ]
        trainings = [
            self.trainings.get(number) or _absent(number, spec) for number, spec in enumerate(self._trace.jobs)
        ]
        for job in trainings:
            job.advance(max(self.now, job.counted))
        report = report_of(
            policy=self._rule.name,
            now=self.now,
            trainings=trainings,
            fits_no_node=self._too_large(),
            recorder=self._recorder,
            usage=self._usage,
            foreign=self.foreign,
        )
        return Result(report=report, history=self._history, trainings=tuple(trainings))

    def _too_large(self) -> list[str]:
        layout = self.layout
        return [
            job.name
            for job in self._trace.jobs
            if any(
                layout.fits_nowhere(shape)
                for shape in (layout.shape(job.request, job.pool), *(shape for shape, _ in layout.others(job)))
            )
        ]


def _starts(pod: Pod) -> bool:
    return pod.phase is Phase.STARTING


def _absent(number: int, spec: JobSpec) -> SimulatedJob:
    """Return a job that had not arrived when the simulation ended."""
    return SimulatedJob(number=number, spec=spec, shape=0, counted=spec.arrival)


def _preferred_nodes(added: Mapping[int, int], waiting: list[Pod]) -> list[int]:
    """Return the preferred nodes of new trainers, without those that pending trainers already have as hints."""
    left = dict(added)
    for pod in waiting:
        if left.get(pod.preferred_node, 0):
            left[pod.preferred_node] -= 1
    return [node for node, count in left.items() for _ in range(count)]
