"""What foreign pods needed lately: for so much of it again room is kept, if an operator of the cluster wants that.

A pod that comes while room is kept binds at once. How many will come is not known; as many as came at most within the time
that a trainer may take to leave is what eviction would be too slow for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from shoal.autoscaler.snapshot.resources import Manifest, part, request_of

__all__ = ["RecentDemand"]

_WINDOW_SECONDS: Final = 60.0
"""The grace that a trainer has."""
_LATELY_SECONDS: Final = 600.0
_MOST: Final = 10_000
"""Pods that are remembered."""
_MOST_SPARE: Final = 1_000
"""Pods of one kind for which room is kept."""


@dataclass
class _Kind:
    """Pods that need the same.

    Attributes:
        pod: One of them.
        came: When each came, oldest first.
    """

    pod: Manifest
    came: list[float] = field(default_factory=list)


class RecentDemand:
    """Remembers which foreign pods came."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}
        self._seen: dict[str, None] = {}

    def came(self, manifest: Mapping[str, Any], *, now: float) -> None:
        """A foreign pod is there that has no node yet; each counts once."""
        uid = str(manifest["metadata"]["uid"])
        if uid in self._seen:
            return
        self._seen[uid] = None
        if len(self._seen) > _MOST:
            del self._seen[next(iter(self._seen))]
        spec = part(manifest.get("spec"))
        constraints = {key: spec[key] for key in ("nodeSelector", "affinity", "tolerations") if key in spec}
        key = json.dumps([request_of(manifest), constraints], sort_keys=True, default=str)
        kind = self._kinds.setdefault(key, _Kind({"spec": dict(spec)}))
        kind.came = [*kind.came[-_MOST_SPARE:], now]

    def spare(self, multiple: float, *, now: float) -> list[tuple[Manifest, int]]:
        """(a pod, for how many of it room is to be kept): so many times the most that came within one grace period."""
        self._kinds = {key: kind for key, kind in self._kinds.items() if now - kind.came[-1] < _LATELY_SECONDS}
        if not multiple:
            return []
        wanted = [
            (kind.pod, math.ceil(multiple * _most(kind.came, since=now - _LATELY_SECONDS)))
            for kind in self._kinds.values()
        ]
        return [(pod, min(count, _MOST_SPARE)) for pod, count in wanted if count]


def _most(came: list[float], *, since: float) -> int:
    """How many came within one window at most."""
    lately = [moment for moment in came if moment >= since]
    most, first = 0, 0
    for last, moment in enumerate(lately):
        while moment - lately[first] > _WINDOW_SECONDS:
            first += 1
        most = max(most, last - first + 1)
    return most
