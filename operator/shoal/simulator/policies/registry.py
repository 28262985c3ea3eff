"""The policies, by their names on the command line."""

from __future__ import annotations

from typing import Final

from shoal.simulator.policies.ancestor import Ancestor
from shoal.simulator.policies.fixed import Fixed
from shoal.simulator.policies.gang import Gang
from shoal.simulator.policies.rules import Rule
from shoal.simulator.policies.shoal_planner import Planner

__all__ = ["POLICIES"]

POLICIES: Final[dict[str, type[Rule]]] = {rule.name: rule for rule in (Planner, Fixed, Ancestor, Gang)}
