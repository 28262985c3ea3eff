"""The policy `shoal`: Shoal's planner, the same function that the operator calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from shoal.autoscaler.planner.model import PlannerMemory, Policy
from shoal.autoscaler.planner.plan import plan
from shoal.simulator.policies.rules import PolicyDecision, PolicyView, Rule, Trigger

__all__ = ["Planner"]


class Planner(Rule):
    """The policy that applies `plan`.

    Args:
        policy: The planner's options; with ``scheduler_evicts=False`` only the planner makes room. Default: `Policy()`.
    """

    name: ClassVar[str] = "shoal"
    surplus: ClassVar[bool] = True
    triggers: ClassVar[frozenset[Trigger]] = frozenset(Trigger)

    def __init__(self, policy: Policy | None = None) -> None:
        self._policy = policy or Policy()
        self._memory = PlannerMemory()
        self.scheduler_evicts = self._policy.scheduler_evicts

    def decide(self, view: PolicyView) -> Mapping[str, PolicyDecision]:
        """Return the allocation of each job."""
        allocation, self._memory = plan(view.snapshot, self._memory, self._policy)
        return {
            uid: PolicyDecision(
                trainers=given.trainers,
                kept=given.kept,
                added=given.now,
                others=given.others,
            )
            for uid, given in allocation.jobs.items()
            if not given.keeps_pods
        }
