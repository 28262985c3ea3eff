"""The measures of a simulation, and its report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from shoal.autoscaler.planner.model import Counts, Flags
from shoal.simulator.world.cluster import Cluster
from shoal.simulator.world.jobs import SimulatedJob

__all__ = ["BOUND_WITHIN", "Foreign", "History", "Recorder", "SimulationReport", "UsageCounts", "jain", "report_of"]

BOUND_WITHIN: Final = (5.0, 30.0)
"""Times in seconds within which a foreign pod should be bound."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SimulationReport:
    """The measures of one policy. Times are in seconds; None: there are no values to compute the measure from.

    Attributes:
        policy: Name of the policy.
        simulated: Simulated time at the end.
        jobs: Number of jobs in the trace.
        ended: Number of jobs whose work is done.
        unfinished: Names of jobs whose work is not done; includes ``never_started`` and ``fits_no_node``.
        never_started: Names of jobs of which no trainer ever ran.
        fits_no_node: Names of jobs with a pod that is larger than every eligible node.
        makespan: Time from the first job's arrival to the last job's end; None if some job did not end.
        pending_mean: Mean time from a job's arrival to its first running trainer, of jobs that started; ``pending_p50`` and
            ``pending_p99`` are percentiles, interpolated.
        completion_mean: Mean time from arrival to end, of jobs that ended.
        requested: Resource -> share that bound pods requested, from the first job's arrival to the last job's end, or as
            long as some job progressed or some arrival was left.
        jain_index: Jain's index of the shares of jobs below their maximum, over the times with two or more such jobs.
        jain_index_by_priority: Priority -> Jain's index among jobs of that priority only.
        trainers_started: Trainers that were bound.
        trainers_stopped: Bound trainers that were deleted before their job's end, ``trainers_evicted`` included.
        trainers_evicted: Trainers that the scheduler evicted for a pod of higher priority.
        foreign: Foreign pods that arrived.
        foreign_bound_5s: Share of foreign pods that were bound within 5 s; pods deleted before that are not counted.
        foreign_bound_30s: Share of foreign pods that were bound within 30 s; pods deleted before that are not counted.
        foreign_wait_p50: Median time from arrival to binding, of foreign pods that were bound.
        foreign_wait_p99: 99th percentile of that time.
        foreign_unbound: Foreign pods without a node at the end.
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
        """Return plain values by the names of the fields; these names are stable across versions."""
        return asdict(self)


@dataclass
class UsageCounts:
    """Counts of trainers that were started, stopped before their job's end, and evicted."""

    started: int = 0
    stopped: int = 0
    evicted: int = 0


@dataclass
class Foreign:
    """The waiting times of foreign pods, in seconds.

    Attributes:
        arrived: Pods that arrived.
        waits: Waiting times of bound pods.
        deleted_waits: Waiting times of pods that were deleted before they had a node.
        left: Waiting times of pods that had no node at the end.
    """

    arrived: int = 0
    waits: list[float] = field(default_factory=list)
    deleted_waits: list[float] = field(default_factory=list)
    left: list[float] = field(default_factory=list)

    def within(self, seconds: float) -> float | None:
        """Return the share of pods bound within `seconds`, without unbound pods that waited no longer; None: no pods count."""
        in_time = sum(wait <= seconds for wait in self.waits)
        late = sum(wait > seconds for wait in self.waits)
        late += sum(wait > seconds for wait in (*self.deleted_waits, *self.left))
        return in_time / (in_time + late) if in_time + late else None


@dataclass
class History:
    """The CPU that each owner requested over time.

    Attributes:
        times: Times of changes, in seconds.
        cpu: For each time the requested CPU in thousandths until the next time: of each job in the trace's order, then of all
            foreign pods.
    """

    times: list[float] = field(default_factory=list)
    cpu: list[tuple[int, ...]] = field(default_factory=list)


class Recorder:
    """The integrals over time from which the report's means are computed.

    Args:
        cluster: The cluster.
        shares: [J] share of one trainer of each job in the whole cluster, by its dominant resource and weight.
        most: [J] most trainers of each job.
        priorities: [J] priority of each job.
        history: History to which changes are added; None: no history.
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
        self._saved: tuple[Floats, float, dict[str, list[float]]] | None = None
        self._taken: Counts = np.zeros(len(cluster.layout.resources), dtype=np.int64)
        self._counts = False

    def pass_to(self, time: float) -> None:
        """Integrate the last noted state until this time."""
        span = time - self._until
        self._until = time
        if self._counts:
            self._area += self._taken * span
            self._window += span
        for name, index in self._now.items():
            if index is not None:
                self._jain[name][0] += index * span
                self._jain[name][1] += span

    def save(self) -> None:
        """Save the present sums for `rewind`."""
        self._saved = (self._area.copy(), self._window, {name: list(sums) for name, sums in self._jain.items()})

    def rewind(self) -> None:
        """Restore the sums of the last `save`: after it jobs were only pending, without effect."""
        if self._saved is not None:
            self._area, self._window, self._jain = self._saved

    def note(self, *, held: Counts, active: Flags, counts: bool) -> None:
        """Note the state that holds from now on.

        Args:
            held: [J] bound trainers that are not leaving.
            active: [J] whether the job has arrived and not ended.
            counts: Whether means include the present.
        """
        self._taken = self._cluster.by_owner.sum(axis=0)
        self._counts = counts
        below_max = active & (held < self._most)
        shares = held * self._shares
        self._now = {name: jain(shares[below_max & members]) for name, members in self._classes}
        if self._history is not None:
            cpu = tuple(self._cluster.by_owner[:, 0].tolist())
            if not self._history.cpu or self._history.cpu[-1] != cpu:
                self._history.times.append(self._until)
                self._history.cpu.append(cpu)

    def requested(self) -> dict[str, float]:
        """Return the mean requested share of each resource, without ``pods``, which is not a purchased capacity."""
        layout = self._cluster.layout
        totals = layout.allocatable.sum(axis=0)
        return {
            name: float(self._area[index] / totals[index] / self._window) if self._window else 0.0
            for index, name in enumerate(layout.resources)
            if name != "pods" and totals[index]
        }

    def jain_indices(self) -> dict[str, float | None]:
        """Return priority -> mean of Jain's index; the empty name is for all jobs together."""
        return {name: area / span if span else None for name, (area, span) in self._jain.items()}


def jain(shares: Floats) -> float | None:
    """Return Jain's index: 1 if all shares are equal, 1/n if one job has all; None for fewer than two shares or only zeros."""
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
    usage: UsageCounts,
    foreign: Foreign,
) -> SimulationReport:
    """Return the report of a simulation that has ended.

    Args:
        policy: Name of the policy.
        now: Simulated time at the end, in seconds.
        trainings: All jobs of the trace.
        fits_no_node: Names of jobs with a pod that is larger than every eligible node.
        recorder: The integrals over time.
        usage: Counts of trainers.
        foreign: Waiting times of foreign pods.
    """
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
        trainers_started=usage.started,
        trainers_stopped=usage.stopped,
        trainers_evicted=usage.evicted,
        foreign=foreign.arrived,
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
