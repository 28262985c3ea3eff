"""A job of a simulation: its pods and its progress."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.simulator.trace import JobSpec
from shoal.simulator.world.cluster import Phase, Pod

__all__ = ["SimulatedJob"]


@dataclass(eq=False, kw_only=True)
class SimulatedJob:
    """A job from its arrival on.

    The job progresses at the speed of its *running* trainers while its master and all of its servers run. One running trainer
    is enough, as trainers and servers work asynchronously.

    Attributes:
        number: Index of the job in the trace.
        spec: The job in the trace.
        shape: Shape of a trainer.
        others: (shape, count) of the master and the servers.
        uid: Identifies the job in the input and output of policies.
        trainers: Trainers that are not leaving, by number.
        other_pods: Master and servers that are not leaving, by number.
        leaving: Number of trainers that are being deleted.
        desired: Number of trainers by the policy's last decision.
        started: Whether the master and the servers were created.
        first: When the first trainer started to run, in seconds; None: none has.
        ended: When the job ended, in seconds; None: it has not.
        done: Samples done until ``counted``.
        rate: Samples per second since ``counted``.
        counted: Time of the last update of ``done``, in seconds.
        version: Increases whenever the rate changes, so that an end that was scheduled before is recognised as outdated.
    """

    number: int
    spec: JobSpec
    shape: int
    others: tuple[tuple[int, int], ...] = ()
    trainers: dict[int, Pod] = field(default_factory=dict)
    other_pods: dict[int, Pod] = field(default_factory=dict)
    leaving: int = 0
    desired: int = 0
    started: bool = False
    first: float | None = None
    ended: float | None = None
    done: float = 0.0
    rate: float = 0.0
    counted: float = 0.0
    version: int = 0

    @property
    def uid(self) -> str:
        """The name of the job, which is unique in a trace."""
        return self.spec.name

    @property
    def arrival(self) -> float:
        """The arrival time, in seconds."""
        return self.spec.arrival

    @property
    def running(self) -> int:
        """The number of running trainers."""
        return sum(pod.phase is Phase.RUNNING for pod in self.trainers.values())

    @property
    def bound(self) -> list[Pod]:
        """Trainers that have a node and are not leaving."""
        return [pod for pod in self.trainers.values() if pod.phase is not Phase.PENDING]

    @property
    def waiting(self) -> list[Pod]:
        """Trainers without a node, oldest first."""
        return [pod for pod in self.trainers.values() if pod.phase is Phase.PENDING]

    @property
    def spare(self) -> int:
        """The number of running trainers beyond the minimum."""
        return max(self.running - self.spec.min, 0)

    def advance(self, now: float) -> bool:
        """Add the samples done until now and update the rate; return whether the rate has changed."""
        self.done = min(self.done + self.rate * (now - self.counted), self.spec.work)
        self.counted = now
        ready = all(pod.phase is Phase.RUNNING for pod in self.other_pods.values()) and self.started
        rate = self.spec.speed(self.running) if ready and self.ended is None else 0.0
        changed = rate != self.rate
        if changed:
            self.rate = rate
            self.version += 1
        return changed

    @property
    def complete(self) -> bool:
        """Whether the work is done, even if the last trainer stops at the same time."""
        return self.done >= self.spec.work

    def remaining(self) -> float:
        """Return the seconds to the job's end at the present rate, which must not be 0 unless the job is complete."""
        return 0.0 if self.complete else (self.spec.work - self.done) / self.rate

    def end(self, now: float) -> None:
        """Mark the job as ended."""
        self.done, self.rate, self.ended, self.counted = self.spec.work, 0.0, now, now
        self.version += 1
