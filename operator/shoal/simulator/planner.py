"""Shoal's own planner as a policy of the simulator: the very function that the operator calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from shoal.autoscaler.planner.model import PlannerMemory, Policy
from shoal.autoscaler.planner.plan import plan
from shoal.simulator.rules import PolicyView, Rule, Trigger, Wish

__all__ = ["Planner"]


class Planner(Rule):
    """What `plan` says.

    Args:
        policy: Its choices; with ``scheduler_evicts=False`` nobody but the planner makes room.
    """

    name: ClassVar[str] = "shoal"
    surplus: ClassVar[bool] = True
    triggers: ClassVar[frozenset[Trigger]] = frozenset(Trigger)

    def __init__(self, policy: Policy | None = None) -> None:
        self._policy = policy or Policy()
        self._memory = PlannerMemory()
        self.scheduler_evicts = self._policy.scheduler_evicts

    def wish(self, view: PolicyView) -> Mapping[str, Wish]:
        """The allocation, job by job."""
        allocation, self._memory = plan(view.snapshot, self._memory, self._policy)
        return {
            uid: Wish(
                trainers=given.trainers,
                stays=given.stays,
                comes=given.now,
                others=given.others,
            )
            for uid, given in allocation.jobs.items()
        }
