"""Why pods of parameter servers or of the master are not made: their controllers tell only the log of events.

So the API server is asked for such a pod, without making it, when one has been missing for a moment, and again while it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from shoal.api import TrainingJob
from shoal.kube import Kube, KubeConflictError, KubeError, KubeFencedError
from shoal.operator.controller.preflight import as_pod
from shoal.operator.core.reconcile import Observed
from shoal.operator.resources.pods import JobIdentity, master_pod, names, server_pod
from shoal.operator.status.reasons import PodProblem

__all__ = ["PendingDiagnostics"]

_PATIENCE_SECONDS: Final = 1.0
"""Controllers make pods within so long, as a rule."""
_AGAIN_SECONDS: Final = 5.0
_LONGEST_SECONDS: Final = 60.0
"""A thousand jobs may wait for hours, and when the pods come they say so by themselves."""


@dataclass
class _Wait:
    """Pods of one job are missing.

    Attributes:
        ask: When to ask.
        pause: For how long to wait after that.
        found: What was said last.
    """

    ask: float
    pause: float = _AGAIN_SECONDS
    found: list[PodProblem] = field(default_factory=list)


class PendingDiagnostics:
    """Asks why pods are missing, seldom enough.

    Args:
        kube: The gateway.
        clock: Seconds that only go forward.
    """

    def __init__(self, kube: Kube, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._kube = kube
        self._clock = clock
        self._waits: dict[str, _Wait] = {}

    def forget(self, uid: str) -> None:
        """The job is gone."""
        self._waits.pop(uid, None)

    async def why(
        self, job: TrainingJob, identity: JobIdentity, seen: Observed, *, waits: bool = False
    ) -> tuple[list[PodProblem], float | None]:
        """What the API server has against the pods that are missing, and in how many seconds to ask again."""
        pods = list(_missing(job, identity, seen)) if not waits else []
        if not pods:
            self.forget(identity.uid)
            return [], None
        wait = self._waits.setdefault(identity.uid, _Wait(self._clock() + _PATIENCE_SECONDS))
        if self._clock() >= wait.ask:
            found = [await self._asked(role, pod) for role, pod in pods]
            wait.found = [each for each in found if each is not None]
            wait.ask = self._clock() + wait.pause
            wait.pause = min(2 * wait.pause, _LONGEST_SECONDS)
        return wait.found, max(0.1, wait.ask - self._clock())

    async def _asked(self, role: str, pod: dict[str, Any]) -> PodProblem | None:
        try:
            await self._kube.create(pod, dry_run=True)
        except KubeConflictError:
            return None  # it has come meanwhile
        except KubeFencedError:
            raise
        except KubeError as error:
            return PodProblem(role, pod["metadata"]["name"], error.reason or "Unavailable", str(error))
        return None


def _missing(job: TrainingJob, identity: JobIdentity, seen: Observed) -> Iterator[tuple[str, dict[str, Any]]]:
    """One pod of each role that should have more."""
    if job.spec.suspend or seen.ended is not None:
        return
    known = names(job)
    there = {pod.name for pod in seen.servers}
    lacking = [name for name in (f"{known['pserver']}-{n}" for n in range(job.servers)) if name not in there]
    if lacking and ("StatefulSet", known["pserver"]) in seen.applied:
        yield "pserver", as_pod(job, server_pod(job, identity), lacking[0])
    if not seen.masters and ("Deployment", known["master"]) in seen.applied:
        yield "master", as_pod(job, master_pod(job, identity), known["master"])
