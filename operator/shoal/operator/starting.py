"""Why pods that have a node do not start: a kubelet tells what it cannot mount, and the like, only by the log of events.

So the events of such a pod are listed, when it has not started for some seconds, and again while it does not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from shoal.kube import Kube, KubeError
from shoal.operator.facets import PodFacets
from shoal.operator.reasons import Trouble

__all__ = ["Starting"]

_PATIENCE_SECONDS: Final = 5.0
"""A pod starts within so long, as a rule."""
_AGAIN_SECONDS: Final = 10.0
_LONGEST_SECONDS: Final = 120.0
_MOST: Final = 3
"""Pods of one job whose events are listed at a time: those of a role fail alike."""

log = logging.getLogger("shoal.operator")


@dataclass
class _Wait:
    """One pod that does not start.

    Attributes:
        ask: When its events are listed next.
        pause: For how long to wait after that.
        found: What they said last; None: nothing.
    """

    ask: float
    pause: float = _AGAIN_SECONDS
    found: Trouble | None = None


class Starting:
    """Lists events of pods that do not start, seldom enough.

    Args:
        kube: The gateway.
        clock: Seconds that only go forward.
    """

    def __init__(self, kube: Kube, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._kube = kube
        self._clock = clock
        self._waits: dict[str, dict[str, _Wait]] = {}

    def forget(self, uid: str) -> None:
        """The job is gone."""
        self._waits.pop(uid, None)

    async def why(self, uid: str, namespace: str, pods: Iterable[PodFacets]) -> tuple[list[Trouble], float | None]:
        """What kubelets say about a job's pods that do not start, and in how many seconds to ask again.

        Args:
            uid: The job's.
            namespace: Its namespace.
            pods: Its pods.
        """
        slow = [pod for pod in pods if pod.node and pod.pending and not (pod.deleting or pod.troubles)]
        before = self._waits.pop(uid, {})
        if not slow:
            return [], None
        now = self._clock()
        waits = {pod.uid: before.get(pod.uid) or _Wait(now + _PATIENCE_SECONDS) for pod in slow}
        self._waits[uid] = waits
        due = [pod for pod in slow if waits[pod.uid].ask <= now][:_MOST]
        for pod in due:
            wait = waits[pod.uid]
            wait.found = await self._said(pod, namespace)
            wait.ask = self._clock() + wait.pause
            wait.pause = min(2 * wait.pause, _LONGEST_SECONDS)
        soonest = min(wait.ask for wait in waits.values())
        return [wait.found for wait in waits.values() if wait.found is not None], max(0.1, soonest - self._clock())

    async def _said(self, pod: PodFacets, namespace: str) -> Trouble | None:
        fields = f"involvedObject.uid={pod.uid},type=Warning"
        try:
            found = await self._kube.list("CoreEvent", namespace=namespace, fields=fields)
        except KubeError as error:
            log.warning("the events of Pod %s cannot be listed: %s", pod.name, error)
            return None
        last = max(found, key=_when, default=None)
        if last is None:
            return None
        return Trouble(pod.role, pod.name, str(last.get("reason", "")), str(last.get("message", "")))


def _when(event: Mapping[str, Any]) -> str:
    """When it happened last; times of the same form are in the order of their texts."""
    series = event.get("series") or {}
    found = series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
    return str(found or event["metadata"].get("creationTimestamp", ""))
