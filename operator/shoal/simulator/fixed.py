"""Jobs of a fixed size: all trainers are asked for at once and wait for room, as those of a plain batch Job do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from shoal.simulator.rules import PolicyView, Rule, Wish

__all__ = ["Fixed"]


class Fixed(Rule):
    """Each job gets its maximum at its arrival.

    Args:
        scheduler_evicts: Let foreign pods of higher priority preempt trainers.
    """

    name: ClassVar[str] = "fixed"

    def __init__(self, *, scheduler_evicts: bool = False) -> None:
        self.scheduler_evicts = scheduler_evicts

    def wish(self, view: PolicyView) -> Mapping[str, Wish]:
        """The maximum of each."""
        return {job.uid: Wish(trainers=job.max) for job in view.snapshot.jobs}
