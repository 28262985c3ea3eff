"""Writes the values that jobs' scripts log, over time, to a ConfigMap of each job.

The writer is apart from the syncs: its requests delay none, and its errors fail none. An error is logged, and the job's reports
are written later.

It keeps no series in memory, only the reports since the last write. A write reads the ConfigMap, appends the reports and writes it
again. So an operator that was restarted, or that has just become the leader, continues the series of its predecessor.

The ConfigMap belongs to the job and is deleted with it. It has not the label with the job's UID, by which the informers follow a
job's objects: the operator neither follows nor repairs it. One of the same name that is not the job's own is never changed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

from shoal.api.metric_series import METRICS_KEY, EpochScore, MetricSeries, metrics_name
from shoal.kube import Kube, KubeConflictError, KubeError, KubeGoneError
from shoal.operator.core.reconcile import Ended
from shoal.operator.resources.object_fields import controlled
from shoal.operator.resources.pods import GROUP
from shoal.store import ReportedState

__all__ = ["MOST_WAITING", "SeriesWriter"]

_PAUSE_SECONDS: Final = 30.0
_CHECK_SECONDS: Final = 1.0
"""Interval of the check whether a write is due."""
MOST_WAITING: Final = 60
"""Reports of one job that wait for a write. While the API server is unreachable, every second one of the older is dropped."""

log = logging.getLogger("shoal.operator")


@dataclass(frozen=True)
class _Report:
    """What a master reported, and when it was observed. Arguments as in `MetricSeries.add`."""

    time: datetime
    epoch: int
    samples: int
    values: Mapping[str, float]
    scores: tuple[EpochScore, ...]

    @classmethod
    def of(cls, state: ReportedState, now: datetime) -> _Report:
        def from_one(epoch: int) -> int:
            number = max(epoch, 0) + 1
            return min(number, state.epochs) if state.epochs > 0 else number

        scores = tuple(EpochScore(from_one(each.epoch), each.values) for each in state.scores)
        return cls(now, from_one(state.epoch), max(state.samples, 0), state.values, scores)

    def repeats(self, other: _Report) -> bool:
        """Return whether another report has the same content."""
        return replace(self, time=other.time) == other


@dataclass
class _Waiting:
    """The reports of one job that wait for a write.

    Attributes:
        reports: The reports, the oldest first.
        due: When the next write is due, in seconds of the monotonic clock.
        last: The last report, whether it was written or not.
        ended: Whether the job has ended.
        problem: Why the last write failed; empty: it did not.
    """

    reports: list[_Report] = field(default_factory=list)
    due: float = 0.0
    last: _Report | None = None
    ended: bool = False
    problem: str = ""


class SeriesWriter:
    """Writes the series of each job when it has new values: at most once per `pause_seconds`, and at the job's end.

    Args:
        kube: Client of the API server.
        job_of: Returns the manifest of the job with a UID; None: it was deleted.
        pause_seconds: Shortest time between two writes for one job, in seconds. Default: 30.
    """

    def __init__(
        self, kube: Kube, job_of: Callable[[str], Mapping[str, Any] | None], *, pause_seconds: float = _PAUSE_SECONDS
    ) -> None:
        self._kube = kube
        self._job_of = job_of
        self._pause = pause_seconds
        self._most = 1
        """Reports of a job that are kept: an operator that stands by keeps the last one only."""
        self._jobs: dict[str, _Waiting] = {}

    def reported(self, uid: str, record: object) -> None:
        """Handle a new record of a job in etcd: the state that its master reported, or its end. Others are ignored."""
        if isinstance(record, Ended):
            waiting = self._jobs.get(uid)
            if waiting is not None:
                waiting.ended, waiting.due = True, 0.0
        elif isinstance(record, ReportedState) and (record.values or record.scores):
            waiting = self._jobs.setdefault(uid, _Waiting())
            report = _Report.of(record, datetime.now(UTC))
            if waiting.last is not None and report.repeats(waiting.last):
                return
            waiting.last = report
            waiting.reports.append(report)
            waiting.due = 0.0 if waiting.ended else waiting.due
            if len(waiting.reports) > self._most:
                del waiting.reports[:-1:2]

    async def run(self) -> None:
        """Write until cancelled."""
        self._most = MOST_WAITING
        while True:
            for uid in self._due():
                await self._try(uid)
            await asyncio.sleep(_CHECK_SECONDS)

    def _due(self) -> list[str]:
        """Return the jobs that are to be written now, and forget those that were deleted."""
        for uid in [uid for uid in self._jobs if self._job_of(uid) is None]:
            del self._jobs[uid]
        now = time.monotonic()
        return [uid for uid, waiting in self._jobs.items() if waiting.reports and waiting.due <= now]

    async def _try(self, uid: str) -> None:
        """Write the reports of one job; those that could not be written wait for the next try."""
        waiting, problem = self._jobs[uid], ""
        reports, waiting.reports = waiting.reports, []
        waiting.due = time.monotonic() + self._pause
        try:
            problem = await self._write(uid, reports)
        except KubeError as error:
            problem = str(error)
        except Exception as error:
            # An unknown error must not end the operator: the values are for people only.
            log.exception("the logged values of job %s cannot be written", uid)
            problem = repr(error)
        if problem:
            waiting.reports = [*reports, *waiting.reports]
            while len(waiting.reports) > self._most:
                del waiting.reports[:-1:2]
        if problem and problem != waiting.problem:
            log.warning(
                "the logged values of job %s are not written: %s; next attempt in %.0f s", uid, problem, self._pause
            )
        waiting.problem = problem

    async def _write(self, uid: str, reports: list[_Report]) -> str:
        """Append reports to a job's ConfigMap; return why they were not written.

        Raises:
            KubeError: The API server refused a request or did not answer.
        """
        job = self._job_of(uid)
        if job is None or job["metadata"].get("deletionTimestamp") is not None:
            return ""
        name, namespace = metrics_name(job["metadata"]["name"]), job["metadata"]["namespace"]
        found = await self._kube.get("ConfigMap", name, namespace=namespace)
        if found is not None and not controlled(found, "TrainingJob", uid=uid):
            return f"ConfigMap {namespace}/{name} exists and is not of this job; remove it"
        text = str(((found or {}).get("data") or {}).get(METRICS_KEY, "[]"))
        series = MetricSeries.from_json(text)
        new = [
            series.add(time=each.time, epoch=each.epoch, samples=each.samples, values=each.values, scores=each.scores)
            for each in reports
        ]
        if not any(new):
            return ""
        data = {METRICS_KEY: series.to_json()}
        try:
            if found is None:
                await self._kube.create(_manifest(job, name, data))
            else:
                own = str(found["metadata"]["uid"])
                await self._kube.change("ConfigMap", name, {"data": data}, uid=own, namespace=namespace)
        except (KubeConflictError, KubeGoneError) as error:
            return f"ConfigMap {namespace}/{name} was changed by another client: {error}"
        return ""


def _manifest(job: Mapping[str, Any], name: str, data: Mapping[str, str]) -> dict[str, Any]:
    """Return the ConfigMap of a job, which is deleted with the job."""
    metadata = job["metadata"]
    owner = {
        "apiVersion": job["apiVersion"],
        "kind": job["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            "namespace": metadata["namespace"],
            "labels": {
                "app.kubernetes.io/part-of": "shoal",
                "app.kubernetes.io/component": "metrics",
                f"{GROUP}/job": metadata["name"],
            },
            "ownerReferences": [owner],
        },
        "data": dict(data),
    }
