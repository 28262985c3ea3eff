"""The policies, by their names on the command line."""

from __future__ import annotations

from typing import Final

from shoal.simulator.ancestor import Ancestor
from shoal.simulator.fixed import Fixed
from shoal.simulator.gang import Gang
from shoal.simulator.planner import Planner
from shoal.simulator.rules import Rule

__all__ = ["POLICIES"]

POLICIES: Final[dict[str, type[Rule]]] = {rule.name: rule for rule in (Planner, Fixed, Ancestor, Gang)}
