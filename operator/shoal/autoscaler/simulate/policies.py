"""The policies by their names on the command line."""

from __future__ import annotations

from typing import Final

from shoal.autoscaler.simulate.ancestor import Ancestor
from shoal.autoscaler.simulate.fixed import Fixed
from shoal.autoscaler.simulate.gang import Gang
from shoal.autoscaler.simulate.planner import Planner
from shoal.autoscaler.simulate.rules import Rule

__all__ = ["POLICIES"]

POLICIES: Final[dict[str, type[Rule]]] = {rule.name: rule for rule in (Planner, Fixed, Ancestor, Gang)}
