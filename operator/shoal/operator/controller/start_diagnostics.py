"""Finds why pods that have a node do not start: the kubelet reports failed mounts and the like only in events.

The events of such a pod are listed when it has not started for ``_DELAY_SECONDS``, and again at growing intervals.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from shoal.kube import Kube, KubeError
from shoal.operator.cache.pod_summary import PodSummary
from shoal.operator.status.reasons import PodProblem
from shoal.retry import KeyedBackOff

__all__ = ["StartDiagnostics"]

_DELAY_SECONDS: Final = 5.0
"""A pod usually starts within this time."""
_LONGEST_SECONDS: Final = 120.0
_FORGET_SECONDS: Final = 3600.0
_MOST: Final = 3
"""Most pods of one job whose events are listed at a time: pods of a role usually fail for the same reason."""

log = logging.getLogger("shoal.operator")


class StartDiagnostics:
    """Lists events of pods that do not start, at growing intervals.

    Args:
        kube: Client of the API server.
        clock: Monotonic clock, in seconds.
    """

    def __init__(self, kube: Kube, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._kube = kube
        self._clock = clock
        self._back_offs: dict[str, KeyedBackOff[str]] = {}
        """UID of a job -> back-off of the listings for each of its pods."""
        self._found: dict[str, dict[str, PodProblem]] = {}
        """UID of a job -> the last problem of each of its pods, from the events."""

    def forget(self, uid: str) -> None:
        """Drop what is kept of a job that was deleted."""
        self._back_offs.pop(uid, None)
        self._found.pop(uid, None)

    async def check(
        self, uid: str, namespace: str, pods: Iterable[PodSummary]
    ) -> tuple[list[PodProblem], float | None]:
        """Return the problems of a job's pods that do not start, and the seconds until the next listing.

        Args:
            uid: UID of the job.
            namespace: Namespace of the job.
            pods: Pods of the job.
        """
        slow = {pod.uid: pod for pod in pods if pod.node and pod.pending and not (pod.deleting or pod.problems)}
        if not slow:
            self.forget(uid)
            return [], None
        back_off = self._back_offs.setdefault(uid, KeyedBackOff(0, _DELAY_SECONDS, _LONGEST_SECONDS, _FORGET_SECONDS))
        found = self._found.setdefault(uid, {})
        for deleted in [each for each in back_off if each not in slow]:
            back_off.forget(deleted)
            found.pop(deleted, None)
        now = self._clock()
        due = [each for each in slow if back_off.tries(each) and not back_off.left(each, now)][:_MOST]
        for each in due:
            warning = await self._last_warning(slow[each], namespace)
            if warning is not None:
                found[each] = warning
        for each in slow:
            if each in due or not back_off.tries(each):
                back_off.tried(each, self._clock())
        return list(found.values()), max(0.1, min(back_off.left(each, self._clock()) for each in slow))

    async def _last_warning(self, pod: PodSummary, namespace: str) -> PodProblem | None:
        fields = f"involvedObject.uid={pod.uid},type=Warning"
        try:
            found = await self._kube.list("CoreEvent", namespace=namespace, fields=fields)
        except KubeError as error:
            log.warning("the events of Pod %s cannot be listed: %s", pod.name, error)
            return None
        last = max(found, key=_when, default=None)
        if last is None:
            return None
        return PodProblem(pod.role, pod.name, str(last.get("reason", "")), str(last.get("message", "")))


def _when(event: Mapping[str, Any]) -> str:
    """Return when an event last happened, as text; times of the same format sort as text."""
    series = event.get("series") or {}
    found = series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
    return str(found or event["metadata"].get("creationTimestamp", ""))
