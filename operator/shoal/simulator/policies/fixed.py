"""The policy `fixed`: all trainers of a job are created at once and stay pending until there is room, as in a batch Job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from shoal.simulator.policies.rules import PolicyDecision, PolicyView, Rule

__all__ = ["Fixed"]


class Fixed(Rule):
    """The policy that gives each job its maximum at its arrival.

    Args:
        scheduler_evicts: Whether foreign pods of higher priority may preempt trainers. Default: False.
    """

    name: ClassVar[str] = "fixed"

    def __init__(self, *, scheduler_evicts: bool = False) -> None:
        self.scheduler_evicts = scheduler_evicts

    def decide(self, view: PolicyView) -> Mapping[str, PolicyDecision]:
        """Return the maximum of each job."""
        return {job.uid: PolicyDecision(trainers=job.max) for job in view.snapshot.jobs}
