"""The interface of policies: their input, their output and their base class.

The input of a policy is the planner's `Snapshot`. Policies other than the planner need more (pending trainers, their own last
decision), which `PolicyView` adds. No policy has access to the future or to the work that a job has left.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from shoal.autoscaler.planner.model import Counts, Snapshot

__all__ = ["ObservedWorld", "PolicyDecision", "PolicyView", "Rule", "Trigger"]


class Trigger(Enum):
    """An event that runs a policy before its next cycle."""

    JOB = "a job arrives or ends"
    TRAINER = "a trainer is gone, or was evicted"
    FOREIGN = "a foreign pod finds no room"


@dataclass(frozen=True, kw_only=True)
class ObservedWorld:
    """The observed state of a job that is not in the snapshot.

    Attributes:
        desired: Trainers by the policy's last decision; 0 for a new job.
        running: Running trainers.
        pending: Trainers without a node, or starting.
        leaving: Trainers that are being deleted.
    """

    desired: int
    running: int
    pending: int
    leaving: int


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyView:
    """The state of the cluster at one point in time, as the input of policies.

    Attributes:
        snapshot: The planner's input; jobs in the order of arrival.
        seen: Job's uid -> further observed state of the job.
        allocatable: [N, R] allocatable of each node.
        free: [N, R] allocatable less the requests of all bound pods, leaving pods included.
        requested: [R] requests of all pods that exist, pending pods included.
    """

    snapshot: Snapshot
    seen: Mapping[str, ObservedWorld]
    allocatable: Counts
    free: Counts
    requested: Counts


@dataclass(frozen=True, kw_only=True)
class PolicyDecision:
    """The decision of a policy for one job.

    Attributes:
        trainers: Number of trainers.
        kept: Node -> trainers that stay there. None: no choice of nodes; trainers that do not run yet are deleted first,
            then the newest.
        added: Node -> pending trainers that may exist now and prefer that node. None: all missing trainers, without a
            preference.
        others: (shape, preferred node) of the job's master and parameter servers. Default: none.
    """

    trainers: int
    kept: Mapping[int, int] | None = None
    added: Mapping[int, int] | None = None
    others: Sequence[tuple[int, int]] = ()


class Rule(ABC):
    """The base class of policies: one method decides how many trainers each job has.

    Attributes:
        name: Name on the command line.
        scheduler_evicts: Whether the scheduler preempts by PriorityClasses under this policy.
        surplus: Whether trainers beyond the minimum have a PriorityClass below all others.
        triggers: Events that run the policy before its next cycle.
    """

    name: ClassVar[str]
    scheduler_evicts: bool = False
    surplus: ClassVar[bool] = False
    triggers: ClassVar[frozenset[Trigger]] = frozenset({Trigger.JOB})

    @abstractmethod
    def decide(self, view: PolicyView) -> Mapping[str, PolicyDecision]:
        """Return job's uid -> decision; a job that is left out stays as it is."""
