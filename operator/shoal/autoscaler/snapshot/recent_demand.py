"""The recent demand of foreign pods, from which the head-room is computed.

A pod that is created while there is head-room binds at once. The number of future pods is not known; the most that arrived
within one grace period of a trainer is the burst for which eviction would be too slow.
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
"""Grace period of a trainer."""
_MEMORY_SECONDS: Final = 600.0
_MOST: Final = 10_000
"""Most pods that are remembered by uid."""
_MOST_SPARE: Final = 1_000
"""Most pods of one kind for which room is kept."""


@dataclass
class _Kind:
    """Pods with equal requests and constraints.

    Attributes:
        pod: Manifest of one of these pods.
        arrivals: Arrival times in seconds, oldest first.
    """

    pod: Manifest
    arrivals: list[float] = field(default_factory=list)


class RecentDemand:
    """The arrivals of foreign pods in the last `_MEMORY_SECONDS`."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}
        self._seen: dict[str, None] = {}

    def pod_arrived(self, manifest: Mapping[str, Any], *, now: float) -> None:
        """Record a foreign pod that has no node yet; each pod counts once."""
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
        kind.arrivals = [*kind.arrivals[-_MOST_SPARE:], now]

    def spare(self, multiple: float, *, now: float) -> list[tuple[Manifest, int]]:
        """Return the head-room: (manifest, number of such pods for which room is kept).

        Args:
            multiple: Multiple of the most pods that arrived within one grace period; 0: no head-room.
            now: Time in seconds, by the clock of `arrivals`.
        """
        self._kinds = {key: kind for key, kind in self._kinds.items() if now - kind.arrivals[-1] < _MEMORY_SECONDS}
        if not multiple:
            return []
        spare = [
            (kind.pod, math.ceil(multiple * _most(kind.arrivals, since=now - _MEMORY_SECONDS)))
            for kind in self._kinds.values()
        ]
        return [(pod, min(count, _MOST_SPARE)) for pod, count in spare if count]


def _most(arrivals: list[float], *, since: float) -> int:
    """Return the most arrivals within one window of `_WINDOW_SECONDS`.

    Args:
        arrivals: Arrival times in seconds, oldest first.
        since: Arrivals before this time are ignored.
    """
    recent = [arrival for arrival in arrivals if arrival >= since]
    most, first = 0, 0
    for last, arrival in enumerate(recent):
        while arrival - recent[first] > _WINDOW_SECONDS:
            first += 1
        most = max(most, last - first + 1)
    return most
