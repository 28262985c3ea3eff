"""Finds why pods of parameter servers or of the master are not created: their controllers report that only in events.

When such a pod has been missing for ``_DELAY_SECONDS``, the API server is asked to create it as a dry run, and again at
growing intervals while it is missing.
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
from shoal.retry import BackOff

__all__ = ["MissingPodDiagnostics"]

_DELAY_SECONDS: Final = 1.0
"""Controllers usually create pods within this time."""
_AGAIN_SECONDS: Final = 5.0
_LONGEST_SECONDS: Final = 60.0
"""Longest interval: a thousand jobs may wait for hours, and the creation of a pod is an event that starts a sync."""


@dataclass
class _Wait:
    """The state of the checks for one job with missing pods.

    Attributes:
        next_check: When to check next.
        back_off: The pauses after that.
        found: Problems that the last check found.
    """

    next_check: float
    back_off: BackOff = field(default_factory=lambda: BackOff(_AGAIN_SECONDS, _LONGEST_SECONDS))
    found: list[PodProblem] = field(default_factory=list)


class MissingPodDiagnostics:
    """Checks at intervals why pods are missing.

    Args:
        kube: Client of the API server.
        clock: Monotonic clock, in seconds.
    """

    def __init__(self, kube: Kube, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._kube = kube
        self._clock = clock
        self._waits: dict[str, _Wait] = {}

    def forget(self, uid: str) -> None:
        """Drop what is kept of a job that was deleted."""
        self._waits.pop(uid, None)

    async def check(
        self, job: TrainingJob, identity: JobIdentity, seen: Observed, *, waits: bool = False
    ) -> tuple[list[PodProblem], float | None]:
        """Return why the API server refuses the missing pods, and the seconds until the next check; None: no pod is missing."""
        pods = list(_missing_pods(job, identity, seen)) if not waits else []
        if not pods:
            self.forget(identity.uid)
            return [], None
        wait = self._waits.setdefault(identity.uid, _Wait(self._clock() + _DELAY_SECONDS))
        if self._clock() >= wait.next_check:
            found = [await self._dry_run(role, pod) for role, pod in pods]
            wait.found = [each for each in found if each is not None]
            wait.next_check = self._clock() + wait.back_off.next()
        return wait.found, max(0.1, wait.next_check - self._clock())

    async def _dry_run(self, role: str, pod: dict[str, Any]) -> PodProblem | None:
        try:
            await self._kube.create(pod, dry_run=True)
        except KubeConflictError:
            return None  # it has been created meanwhile
        except KubeFencedError:
            raise
        except KubeError as error:
            return PodProblem(role, pod["metadata"]["name"], error.reason or "Unavailable", str(error))
        return None


def _missing_pods(job: TrainingJob, identity: JobIdentity, seen: Observed) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield one missing pod of each role whose controller exists."""
    if job.spec.suspend or seen.ended is not None:
        return
    known = names(job)
    there = {pod.name for pod in seen.servers}
    missing = [name for name in (f"{known['pserver']}-{n}" for n in range(job.servers)) if name not in there]
    if missing and ("StatefulSet", known["pserver"]) in seen.applied:
        yield "pserver", as_pod(job, server_pod(job, identity), missing[0])
    if not seen.masters and ("Deployment", known["master"]) in seen.applied:
        yield "master", as_pod(job, master_pod(job, identity), known["master"])
