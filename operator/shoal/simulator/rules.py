"""What every policy is told and what it answers, and the policies that can be named.

A policy sees the planner's own `Snapshot`. The older ones need more than that (pods that pend, what they once wished for),
which stands beside it in `PolicyView`. None of them sees the future or the work that a job has left.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from shoal.autoscaler.planner.model import Counts, Snapshot

__all__ = ["ObservedWorld", "PolicyView", "Rule", "Trigger", "Wish"]


class Trigger(Enum):
    """What makes a policy look before its next cycle."""

    JOB = "a job arrives or ends"
    TRAINER = "a trainer is gone, or was evicted"
    FOREIGN = "a foreign pod finds no room"


@dataclass(frozen=True, kw_only=True)
class ObservedWorld:
    """What is known of a job beside the snapshot.

    Attributes:
        wanted: Trainers that the policy wished for last; 0 for a new job.
        running: Trainers that work.
        pending: Trainers that do not yet: without a node, or starting.
        leaving: Trainers on their way out.
    """

    wanted: int
    running: int
    pending: int
    leaving: int


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyView:
    """The world at one moment, as policies see it.

    Attributes:
        snapshot: As the planner gets it; jobs in order of arrival.
        seen: More of each job, by its uid.
        allocatable: [N, R].
        free: [N, R] allocatable less all that is bound, leaving pods included.
        requested: [R] by all pods that are not gone, those without a node included.
    """

    snapshot: Snapshot
    seen: Mapping[str, ObservedWorld]
    allocatable: Counts
    free: Counts
    requested: Counts


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a job shall have.

    Attributes:
        trainers: How many.
        stays: Node -> how many stay there; None: any may go, those that do not run yet first, then the newest.
        comes: Node -> how many without a node there may be now that prefer it; None: as many as are missing, anywhere.
        others: (shape, node) that its other pods prefer.
    """

    trainers: int
    stays: Mapping[int, int] | None = None
    comes: Mapping[int, int] | None = None
    others: Sequence[tuple[int, int]] = ()


class Rule(ABC):
    """A policy: one method that says how many trainers each job shall have.

    Attributes:
        name: On the command line.
        scheduler_evicts: Whether its cluster has priority classes by which the scheduler preempts.
        surplus: Whether trainers above the minimum have a class below all others.
        triggers: When it looks before its next cycle.
    """

    name: ClassVar[str]
    scheduler_evicts: bool = False
    surplus: ClassVar[bool] = False
    triggers: ClassVar[frozenset[Trigger]] = frozenset({Trigger.JOB})

    @abstractmethod
    def wish(self, view: PolicyView) -> Mapping[str, Wish]:
        """What each job shall have, by its uid; a job that is not named stays as it is."""
