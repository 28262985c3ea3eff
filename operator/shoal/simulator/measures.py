"""What is measured while a simulation runs, and the report that comes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from shoal.autoscaler.planner.model import Counts, Flags
from shoal.simulator.cluster import Cluster
from shoal.simulator.training import SimulatedJob

__all__ = ["BOUND_WITHIN", "Foreign", "History", "Recorder", "SimulationReport", "UsageTally", "jain", "report_of"]

BOUND_WITHIN: Final = (5.0, 30.0)
"""Seconds within which a foreign pod should have its node."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SimulationReport:
    """How a policy did. Times are in seconds; None: there is nothing to take it of.

    Attributes:
        simulated: When the simulation ended.
        jobs: In the trace.
        ended: Jobs whose work is done.
        unfinished: Names of those whose is not; ``never_started`` and ``fits_no_node`` are among them.
        never_started: No trainer of theirs ever ran.
        fits_no_node: A pod of theirs is larger than any node that it may stand on.
        makespan: From the first job's arrival to the last one's end; None if some did not end.
        pending_mean: From a job's arrival to its first running trainer, of those that started; p50 and p99 interpolate.
        completion_mean: From arrival to end, of those that ended.
        requested: Share of each resource that bound pods requested, from the first job's arrival to the last one's end,
            or for as long as any was at work or anything was to come.
        jain_index: Of the shares of jobs below their maximum, over the times when there were two or more.
        jain_index_by_priority: The same, only among jobs of one priority.
        trainers_started: Trainers that got a node.
        trainers_stopped: Trainers that lost theirs before their job's end, ``trainers_evicted`` included.
        trainers_evicted: By the scheduler, for a pod of higher priority.
        foreign: Foreign pods that came.
        foreign_bound_5s: Share of them that was bound in time; those that were taken back before that are not counted.
        foreign_wait_p99: From their coming to their node, of those that got one.
        foreign_unbound: Left without a node at the end.
    """

    policy: str
    simulated: float
    jobs: int
    ended: int
    unfinished: tuple[str, ...]
    never_started: tuple[str, ...]
    fits_no_node: tuple[str, ...]
    makespan: float | None
    pending_mean: float | None
    pending_p50: float | None
    pending_p99: float | None
    completion_mean: float | None
    requested: Mapping[str, float]
    jain_index: float | None
    jain_index_by_priority: Mapping[str, float | None]
    trainers_started: int
    trainers_stopped: int
    trainers_evicted: int
    foreign: int
    foreign_bound_5s: float | None
    foreign_bound_30s: float | None
    foreign_wait_p50: float | None
    foreign_wait_p99: float | None
    foreign_unbound: int

    def as_json(self) -> dict[str, Any]:
        """Plain values under the fields' names, which stay as they are from version to version."""
        return asdict(self)


@dataclass
class UsageTally:
    """Counts of what happened to trainers."""

    started: int = 0
    stopped: int = 0
    evicted: int = 0


@dataclass
class Foreign:
    """How long foreign pods wait."""

    came: int = 0
    waits: list[float] = field(default_factory=list)
    gone: list[float] = field(default_factory=list)
    """How long those waited that were taken back before they had a node."""
    left: list[float] = field(default_factory=list)
    """How long those had waited that had none at the end."""

    def within(self, seconds: float) -> float | None:
        """The share that was bound in time, of those that had the time."""
        good = sum(wait <= seconds for wait in self.waits)
        late = sum(wait > seconds for wait in self.waits)
        late += sum(wait > seconds for wait in (*self.gone, *self.left))
        return good / (good + late) if good + late else None


@dataclass
class History:
    """CPU requested by each owner (jobs in the trace's order, then foreign pods) from each time to the next."""

    times: list[float] = field(default_factory=list)
    cpu: list[tuple[int, ...]] = field(default_factory=list)


class Recorder:
    """Integrates over time what the report has means of.

    Args:
        cluster: Whose pods are counted.
        shares: [J] share of the whole cluster that one trainer of each job is, by its dominant resource and weight.
        most: [J] trainers that each job may have.
        priorities: [J] of the jobs.
        history: Where to note who held what; None: nowhere.
    """

    def __init__(
        self, cluster: Cluster, *, shares: Floats, most: Counts, priorities: Counts, history: History | None = None
    ) -> None:
        self._cluster = cluster
        self._shares = shares
        self._most = most
        self._history = history
        self._classes: list[tuple[str, Flags]] = [("", np.ones(len(most), dtype=np.bool_))]
        self._classes += [(str(each), priorities == each) for each in sorted(set(priorities.tolist()), reverse=True)]
        self._jain: dict[str, list[float]] = {name: [0.0, 0.0] for name, _ in self._classes}
        self._now: Mapping[str, float | None] = {}
        self._area: Floats = np.zeros(len(cluster.layout.resources))
        self._window = 0.0
        self._until = 0.0
        self._marked: tuple[Floats, float, dict[str, list[float]]] | None = None
        self._taken: Counts = np.zeros(len(cluster.layout.resources), dtype=np.int64)
        self._counts = False

    def pass_to(self, time: float) -> None:
        """What was noted last held until this time."""
        span = time - self._until
        self._until = time
        if self._counts:
            self._area += self._taken * span
            self._window += span
        for name, index in self._now.items():
            if index is not None:
                self._jain[name][0] += index * span
                self._jain[name][1] += span

    def mark(self) -> None:
        """Remember the sums as they are."""
        self._marked = (self._area.copy(), self._window, {name: list(sums) for name, sums in self._jain.items()})

    def rewind(self) -> None:
        """Forget what came after the mark: time in which jobs only waited for what never came."""
        if self._marked is not None:
            self._area, self._window, self._jain = self._marked

    def note(self, *, held: Counts, active: Flags, counts: bool) -> None:
        """What holds from now on.

        Args:
            held: [J] trainers that are bound and stay.
            active: [J] jobs that have arrived and not ended.
            counts: Whether the present is among the times that means are taken over.
        """
        self._taken = self._cluster.by_owner.sum(axis=0)
        self._counts = counts
        hungry = active & (held < self._most)
        shares = held * self._shares
        self._now = {name: jain(shares[hungry & members]) for name, members in self._classes}
        if self._history is not None:
            cpu = tuple(self._cluster.by_owner[:, 0].tolist())
            if not self._history.cpu or self._history.cpu[-1] != cpu:
                self._history.times.append(self._until)
                self._history.cpu.append(cpu)

    def requested(self) -> dict[str, float]:
        """The mean share of each resource, ``pods`` left out: it is no capacity that anyone buys."""
        layout = self._cluster.layout
        totals = layout.allocatable.sum(axis=0)
        return {
            name: float(self._area[index] / totals[index] / self._window) if self._window else 0.0
            for index, name in enumerate(layout.resources)
            if name != "pods" and totals[index]
        }

    def jain_indices(self) -> dict[str, float | None]:
        """The mean index by priority; all jobs together under an empty name."""
        return {name: area / span if span else None for name, (area, span) in self._jain.items()}


def jain(shares: Floats) -> float | None:
    """Jain's index: 1 where all have the same, 1/n where one has all; None for fewer than two, or if none has any."""
    squares = float((shares * shares).sum())
    if len(shares) < 2 or not squares:
        return None
    return float(shares.sum()) ** 2 / (len(shares) * squares)


def report_of(
    *,
    policy: str,
    now: float,
    trainings: Sequence[SimulatedJob],
    fits_no_node: Iterable[str],
    recorder: Recorder,
    tally: UsageTally,
    foreign: Foreign,
) -> SimulationReport:
    """What is to be told of a simulation that has ended."""
    ended = [job.ended - job.arrival for job in trainings if job.ended is not None]
    waits = [job.first - job.arrival for job in trainings if job.first is not None]
    ends = [job.ended for job in trainings if job.ended is not None]
    all_ended = bool(trainings) and len(ends) == len(trainings)
    indices = recorder.jain_indices()
    return SimulationReport(
        policy=policy,
        simulated=now,
        jobs=len(trainings),
        ended=len(ends),
        unfinished=tuple(job.uid for job in trainings if job.ended is None),
        never_started=tuple(job.uid for job in trainings if job.first is None),
        fits_no_node=tuple(fits_no_node),
        makespan=max(ends) - min(job.arrival for job in trainings) if all_ended else None,
        pending_mean=_mean(waits),
        pending_p50=_percentile(waits, 50),
        pending_p99=_percentile(waits, 99),
        completion_mean=_mean(ended),
        requested=recorder.requested(),
        jain_index=indices.pop(""),
        jain_index_by_priority=indices,
        trainers_started=tally.started,
        trainers_stopped=tally.stopped,
        trainers_evicted=tally.evicted,
        foreign=foreign.came,
        foreign_bound_5s=foreign.within(BOUND_WITHIN[0]),
        foreign_bound_30s=foreign.within(BOUND_WITHIN[1]),
        foreign_wait_p50=_percentile(foreign.waits, 50),
        foreign_wait_p99=_percentile(foreign.waits, 99),
        foreign_unbound=len(foreign.left),
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _percentile(values: Sequence[float], share: float) -> float | None:
    return float(np.percentile(values, share)) if values else None
