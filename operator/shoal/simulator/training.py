"""A job of a simulation: its pods, and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.simulator.cluster import Phase, Pod
from shoal.simulator.trace import JobSpec

__all__ = ["SimulatedJob"]


@dataclass(eq=False, kw_only=True)
class SimulatedJob:
    """One job from its arrival on.

    It advances at the speed of its *running* trainers, however few (trainers and servers work without waiting for each
    other, so one is enough), while its master and all its servers run.

    Attributes:
        number: Its place in the trace.
        shape: Of a trainer.
        others: (shape, how many) of its master and servers.
        uid: What policies know it by.
        trainers: That are not leaving, by number.
        rest: Its master and servers that are not leaving, by number.
        leaving: Trainers on their way out.
        wanted: Trainers that the policy wishes for.
        begun: Whether its master and servers were created.
        done: Samples, as of ``counted``.
        rate: Samples per second since then.
        version: Goes up whenever the rate changes, so that ends that were foretold before can be told apart.
    """

    number: int
    spec: JobSpec
    shape: int
    others: tuple[tuple[int, int], ...] = ()
    trainers: dict[int, Pod] = field(default_factory=dict)
    rest: dict[int, Pod] = field(default_factory=dict)
    leaving: int = 0
    wanted: int = 0
    begun: bool = False
    first: float | None = None
    ended: float | None = None
    done: float = 0.0
    rate: float = 0.0
    counted: float = 0.0
    version: int = 0

    @property
    def uid(self) -> str:
        """Its name: unique in a trace."""
        return self.spec.name

    @property
    def arrival(self) -> float:
        """Seconds."""
        return self.spec.arrival

    @property
    def running(self) -> int:
        """Trainers that work."""
        return sum(pod.phase is Phase.RUNNING for pod in self.trainers.values())

    @property
    def bound(self) -> list[Pod]:
        """Trainers that have a node and stay."""
        return [pod for pod in self.trainers.values() if pod.phase is not Phase.PENDING]

    @property
    def waiting(self) -> list[Pod]:
        """Trainers without a node, oldest first."""
        return [pod for pod in self.trainers.values() if pod.phase is Phase.PENDING]

    @property
    def spare(self) -> int:
        """Running trainers above the minimum."""
        return max(self.running - self.spec.min, 0)

    def advance(self, now: float) -> bool:
        """Count what was done until now and take the present speed; whether that changed."""
        self.done = min(self.done + self.rate * (now - self.counted), self.spec.work)
        self.counted = now
        ready = all(pod.phase is Phase.RUNNING for pod in self.rest.values()) and self.begun
        rate = self.spec.speed(self.running) if ready and self.ended is None else 0.0
        changed = rate != self.rate
        if changed:
            self.rate = rate
            self.version += 1
        return changed

    @property
    def complete(self) -> bool:
        """Whether its work is done, though its last trainer may stop at this very moment."""
        return self.done >= self.spec.work

    def remaining(self) -> float:
        """Seconds to its end at the present speed, which is not 0 unless it is complete."""
        return 0.0 if self.complete else (self.spec.work - self.done) / self.rate

    def end(self, now: float) -> None:
        """All is done."""
        self.done, self.rate, self.ended, self.counted = self.spec.work, 0.0, now, now
        self.version += 1
