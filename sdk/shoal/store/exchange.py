"""What the operator and a job's master tell each other through etcd: two records, each written by one side only.

Both are levels, not orders: whoever reads one late, twice or after a restart does the same. A field that a reader does
not know is left alone, so that operator and masters may be of different versions for a while.
"""

from __future__ import annotations

import msgspec

__all__ = ["DesiredState", "ReportedState"]


class DesiredState(msgspec.Struct, frozen=True):
    """What the operator wants of a job; the master obeys as long as it stands.

    Attributes:
        drain: Trainers with these indices hand back what they hold and leave, and get nothing more.
        suspend: All of them do.
    """

    drain: list[int] = []
    suspend: bool = False

    def leaves(self, index: int) -> bool:
        """Whether the trainer with this index has to leave."""
        return self.suspend or index in self.drain


class ReportedState(msgspec.Struct, frozen=True):
    """How far a job is, as its master sees it; written when it changed, once in a second at most.

    Attributes:
        generation: Which master of this job says so, from 1.
        state: Starting, Running, Saving, Complete or Failed.
        epoch: The open epoch, from 0.
        epochs: How many there are; 0 while no script has said so.
        samples: Committed over all epochs.
        expected: How many that will be; 0 while unknown.
        rate: Samples per second; 0 while unknown.
        moved: When a task was last committed (seconds since 1970); 0 before the first.
        trainers: Indices of the trainers that are here.
        servers: Indices of the parameter servers that are here.
        served: Whether every slot is served, so that trainers can work.
        why: Why nothing moves, when nothing moves.
    """

    generation: int
    state: str
    epoch: int
    epochs: int
    samples: int
    expected: int
    rate: float
    moved: float
    trainers: list[int]
    servers: list[int]
    served: bool
    why: str
