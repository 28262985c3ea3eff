"""The two cases of the EDL benchmark, and the outcome of a run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Final

from benchmarks.edl_figures import Sample, jain, mean_over_time, needless
from benchmarks.hollow import NODES
from shoal.simulator.plot import Bands

__all__ = ["CASES", "WEB", "Case", "Life", "Outcome", "Step"]

WEB: Final = "web"
"""Name of the Deployment, and owner of its pods in samples."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One experiment; sizes of pods are in cores.

    Attributes:
        name: case1 or case2.
        jobs: Number of jobs.
        gap: Seconds between the submissions of two jobs.
        watched: Seconds from the last submission to the end.
        plateau: Seconds at the end (of each step) in which no trainers should start or stop.
        web: Replicas of the Deployment in each step. Default: none.
        step: Seconds of each step. Default: 0.
        pinned: Trainers of a job without an autoscaler.
        scale: Share of the nodes. Default: 1.
    """

    TRAINER: ClassVar[int] = 5
    SERVER: ClassVar[int] = 4
    MASTER: ClassVar[int] = 1
    POD: ClassVar[int] = 3
    least: ClassVar[int] = 2
    most: ClassVar[int] = 60
    servers: ClassVar[int] = 10

    name: str
    jobs: int
    gap: float
    watched: float
    plateau: float
    web: tuple[int, ...] = ()
    step: float = 0.0
    pinned: int
    scale: float = 1.0

    def with_times(self, step: float | None) -> Case:
        """Return the case with all times scaled so that a step (or the gap, without steps) has this length in seconds."""
        if step is None:
            return self
        share = step / (self.step or self.gap)
        times = {name: getattr(self, name) * share for name in ("gap", "watched", "plateau", "step")}
        return replace(self, **times)

    def with_size(self, scale: float) -> Case:
        """Return the case with a share of the nodes, the jobs and the Deployment's pods."""
        jobs = max(2, round(self.jobs * scale))
        return replace(self, scale=scale, jobs=jobs, web=tuple(round(count * scale) for count in self.web))

    def scaled(self, count: int) -> int:
        """Return the scaled number of nodes of a group."""
        return max(1, round(count * self.scale))

    @property
    def nodes(self) -> list[tuple[int, str]]:
        """Groups of nodes: their number, and the CPUs of each."""
        return [(self.scaled(count), cores) for count, cores in NODES]

    @property
    def cores(self) -> int:
        """Cores of all nodes."""
        return sum(count * int(cores) for count, cores in self.nodes)

    @property
    def seconds(self) -> float:
        """Seconds from the first job's submission to the end."""
        return self.gap * (self.jobs - 1) + self.watched

    @property
    def plateaus(self) -> list[tuple[float, float]]:
        """Start and end of each period in which no trainers should start or stop."""
        ends = [self.step * (number + 1) for number in range(len(self.web))] or [self.seconds]
        return [(end - self.plateau, end) for end in ends]

    def as_json(self) -> dict[str, Any]:
        """Return the case as plain values."""
        return asdict(self) | {"cores": self.cores, "seconds": self.seconds}


_STEPS = (400, 300, 200, 100, 200, 300, 400)
CASES: Final = {
    case.name: case
    for case in (
        Case(name="case1", jobs=20, gap=10.0, watched=300.0, plateau=120.0, pinned=60),
        Case(name="case2", jobs=6, gap=0.0, watched=630.0, plateau=30.0, web=_STEPS, step=90.0, pinned=15),
    )
}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the Deployment.

    Attributes:
        web: Desired replicas.
        packed: Requested CPU as a share of what fits, mean. Percent.
        requested: Requested CPU as a share of all cores, mean. Percent.
        bound: Seconds until all new pods were bound; None: not a step up, or not all were bound.
        slowest_pod: Longest time from a new pod's creation to its binding. Seconds.
        stopped: Number of stopped trainers.
        preempted: Number of these that the scheduler preempted for a pod of the Deployment.
        least: Fewest trainers that had to be stopped; None: not a step up.
    """

    web: int
    packed: float
    requested: float
    bound: float | None = None
    slowest_pod: float | None = None
    stopped: int = 0
    preempted: int = 0
    least: int | None = None


@dataclass(frozen=True, slots=True)
class Life:
    """Times of a trainer, in seconds since the start of the case; infinite if the event did not happen.

    Attributes:
        job: Job of the trainer.
        came: When the pod was first seen.
        ran: When it was first Running.
        left: When it began to terminate.
    """

    job: str
    came: float
    ran: float
    left: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Outcome of one run of a case; shares are in percent.

    Attributes:
        case: The case.
        samples: Samples, in order of time.
        lives: Times of all trainers.
        steps: Steps of the Deployment. Default: none.
        packable: Most cores that can be requested. Default: None, each sample has its own value.
        places: Number of nodes at the end, by a text with the node's cores and pods. Default: none.
    """

    case: Case
    samples: Sequence[Sample]
    lives: Sequence[Life]
    steps: Sequence[Step] = ()
    packable: float | None = None
    places: Mapping[str, int] = field(default_factory=dict)

    def _mean(self, values: Sequence[float], since: float, until: float) -> float:
        by_time = {sample.at: value for sample, value in zip(self.samples, values, strict=True)}
        return mean_over_time(self.samples, by_time, since=since, until=until)

    def requested_between(self, since: float, until: float) -> float:
        """Return the mean of the running pods' requested CPU, in percent of all cores."""
        return 100 / self.case.cores * self._mean([sample.running for sample in self.samples], since, until)

    def packed_between(self, since: float, until: float) -> float:
        """Return the mean of the running pods' requested CPU, in percent of what can be packed."""
        shares = [sample.running / (self.packable or sample.fits) for sample in self.samples]
        return 100 * self._mean(shares, since, until)

    @property
    def requested(self) -> float:
        """Requested CPU over the whole case. Percent."""
        return self.requested_between(0.0, self.case.seconds)

    @property
    def packed(self) -> float:
        """Requested CPU of what can be packed: in case 1 at the plateau, in case 2 over the whole case. Percent."""
        return (
            self.packed_between(*self.case.plateaus[-1])
            if not self.case.web
            else self.packed_between(0.0, self.case.seconds)
        )

    @property
    def at_least_web(self) -> float:
        """Requested CPU while the Deployment has its fewest replicas. Percent."""
        number = min(range(len(self.case.web)), key=lambda number: self.case.web[number])
        return self.requested_between(self.case.step * number, self.case.step * (number + 1))

    @property
    def pending(self) -> float:
        """Seconds from a job's first trainer to its first running one, mean over jobs; without one, to the case's end."""
        waits = []
        for job in {life.job for life in self.lives}:
            of_job = [life for life in self.lives if life.job == job]
            first, ran = min(life.came for life in of_job), min(life.ran for life in of_job)
            waits.append(min(ran, self.case.seconds) - first)
        return statistics.mean(waits)

    @property
    def never_ran(self) -> int:
        """Number of jobs without any running trainer during the case."""
        ran = {life.job for life in self.lives if life.ran <= self.case.seconds}
        return self.case.jobs - len(ran)

    @property
    def jain(self) -> float:
        """Jain's index of the running trainers of all jobs, mean at the last plateau."""
        since, until = self.case.plateaus[-1]
        jobs = sorted({life.job for life in self.lives})
        values = [jain([sample.at_work.get(job, 0) for job in jobs]) for sample in self.samples]
        return self._mean(values, since, until)

    @property
    def needless(self) -> float:
        """Trainers that started or stopped needlessly at the plateaus, per job and minute."""
        moved = minutes = 0.0
        for since, until in self.case.plateaus:
            samples = [sample for sample in self.samples if since <= sample.at < until]
            if len(samples) < 2:
                continue
            first, last = samples[0].at, samples[-1].at
            came, went = _count(self.lives, "came", first, last), _count(self.lives, "left", first, last)
            moved += needless(samples, came, went)
            minutes += (last - first) / 60
        return moved / self.case.jobs / minutes if minutes else 0.0

    @property
    def all_back(self) -> bool:
        """Whether all pods of the last step run at the end."""
        return self.samples[-1].web >= self.case.web[-1]

    @property
    def slowest(self) -> float:
        """Longest time of a step up until all new pods were bound, in seconds; the step's length if they were not."""
        waits = [
            step.bound if step.bound is not None else self.case.step for step in self.steps if step.least is not None
        ]
        return max(waits, default=0.0)

    def bands(self) -> Bands:
        """Return the data of the picture."""
        owners = sorted({owner for sample in self.samples for owner in sample.cores} - {WEB}, key=_number)
        named = {**{owner: owner for owner in owners}, WEB: "foreign pods"} if self.case.web else {o: o for o in owners}
        times = tuple(sample.at for sample in self.samples)
        cores = {
            label: tuple(float(sample.cores.get(owner, 0)) for sample in self.samples) for owner, label in named.items()
        }
        return Bands(times=times, cores=cores, capacity=float(self.case.cores))

    def as_json(self) -> dict[str, Any]:
        """Return the outcome as plain values, in a compact form."""
        jobs = sorted({life.job for life in self.lives}, key=_number)
        return {
            "steps": [asdict(step) for step in self.steps],
            "packable": self.packable,
            "never_ran": self.never_ran,
            "places": dict(self.places),
            "columns": ["seconds", "requested", "fits", "pending", "web", *jobs],
            "samples": [
                [round(each.at, 1), each.running, each.fits, each.pending, each.web]
                + [each.at_work.get(job, 0) for job in jobs]
                for each in self.samples
            ],
        }


def _number(name: str) -> tuple[int, str]:
    digits = "".join(filter(str.isdigit, name))
    return int(digits or 0), name


def _count(lives: Sequence[Life], what: str, since: float, until: float) -> Mapping[str, int]:
    found: dict[str, int] = {}
    for life in lives:
        if since < getattr(life, what) <= until:
            found[life.job] = found.get(life.job, 0) + 1
    return found
