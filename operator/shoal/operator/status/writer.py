"""Writes statuses and events of jobs."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from shoal.api.status import Status
from shoal.kube import Kube, KubeError
from shoal.operator.resources.object_fields import revision_of
from shoal.operator.status.events import EventNote

__all__ = ["StatusWriter", "pause_seconds"]

_PROGRESS_SECONDS: Final = 15.0
_COUNTS_SECONDS: Final = 2.0
_ANY_TIME: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FOR_EVER: Final = 1e9
_AGAIN_SECONDS: Final = 60.0
"""An event that repeats within this time is counted, but not written again."""
_MOST: Final = 64
"""Number of different events that are remembered for each job."""


def _ignore(_uid: str, _revision: int) -> None:
    pass


class StatusWriter:
    """Writes statuses and events. It keeps the statuses that it wrote, as those in the cache may be older.

    Args:
        kube: Client of the API server.
        written: Called with the UID and the new resource version of each job whose status was written.
    """

    def __init__(self, kube: Kube, *, written: Callable[[str, int], None] = _ignore) -> None:
        self._kube = kube
        self._on_written = written
        self._written: dict[str, tuple[Status, float]] = {}
        self._event_counts: dict[str, dict[str, _EventCount]] = {}
        # Part of the events' names: an event of an earlier operator process cannot be continued, as its count is not known.
        self._instance = secrets.token_hex(4)

    def last_status(self, manifest: Mapping[str, Any]) -> Status:
        """Return the last status of a job."""
        written = self._written.get(manifest["metadata"]["uid"])
        return written[0] if written is not None else Status.from_mapping(manifest.get("status"))

    def forget(self, uid: str) -> None:
        """Drop what is kept of a job that was deleted."""
        self._written.pop(uid, None)
        self._event_counts.pop(uid, None)

    async def write_status(self, manifest: Mapping[str, Any], after: Status) -> float | None:
        """Write a status, unless a write of this importance is not due yet.

        Returns:
            Seconds until the write is due; None: the status is written or unchanged.

        Raises:
            KubeError: The API server refused the write, or was unreachable for longer than the client retries.
        """
        metadata = manifest["metadata"]
        before = self.last_status(manifest)
        if before == after:
            return None
        now = time.monotonic()
        since = now - self._written[metadata["uid"]][1] if metadata["uid"] in self._written else _FOR_EVER
        pause = pause_seconds(before, after)
        if since < pause:
            return max(0.1, pause - since)
        name, namespace, uid = metadata["name"], metadata["namespace"], metadata["uid"]
        updated = await self._kube.set_status("TrainingJob", name, after.to_mapping(), uid=uid, namespace=namespace)
        if updated is not None:
            self._written[uid] = (after, now)
            self._on_written(uid, revision_of(updated))
        return None

    async def write_events(self, manifest: Mapping[str, Any], notes: Iterable[EventNote]) -> None:
        """Write events of a job; one that cannot be written is dropped, as events are only for people."""
        counts = self._event_counts.setdefault(manifest["metadata"]["uid"], {})
        for note in notes:
            key = f"{note.reason}\n{note.text}"
            now = time.monotonic()
            repeated = counts.pop(key, None) or _EventCount(datetime.now(UTC))
            counts[key] = repeated
            while len(counts) > _MOST:
                del counts[next(iter(counts))]
            repeated.count += 1
            if repeated.count > 1 and now - repeated.at < _AGAIN_SECONDS:
                continue
            repeated.at = now
            try:
                await self._kube.apply(self._event(manifest, note, repeated))
            except KubeError:
                continue

    def _event(self, manifest: Mapping[str, Any], note: EventNote, counts: _EventCount) -> dict[str, Any]:
        metadata = manifest["metadata"]
        text = f"{self._instance} {metadata['uid']} {note.reason} {note.text}"
        event = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {
                "name": f"{metadata['name']}.{hashlib.sha256(text.encode()).hexdigest()[:16]}",
                "namespace": metadata["namespace"],
            },
            "regarding": {
                "apiVersion": manifest["apiVersion"],
                "kind": manifest["kind"],
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "type": note.kind,
            "reason": note.reason,
            "note": note.text,
            "action": "Reconcile",
            "eventTime": _micro_time(counts.first),
            "reportingController": "shoal.dev/operator",
            "reportingInstance": self._instance,
        }
        if counts.count > 1:
            event["series"] = {"count": counts.count, "lastObservedTime": _micro_time(datetime.now(UTC))}
        return event


class _EventCount:
    """How often an event happened, and when it was first and last written."""

    def __init__(self, first: datetime) -> None:
        self.first = first
        self.at = 0.0
        self.count = 0


def _micro_time(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def pause_seconds(before: Status, after: Status) -> float:
    """Return the shortest time between the last write and this one, in seconds; 0 for decisive changes.

    A pod that becomes ready changes only a number; a job with many trainers would need a write for each.
    """
    if before.model_copy(update={"progress": after.progress}) == after:
        return _PROGRESS_SECONDS
    return _COUNTS_SECONDS if _decisive(before) == _decisive(after) else 0.0


def _decisive(status: Status) -> Status:
    """Return the status without counts of ready pods, messages, times, progress and allocation."""
    trainers, servers = status.trainers, status.servers
    conditions = [
        each.model_copy(update={"message": "", "last_transition_time": _ANY_TIME}) for each in status.conditions
    ]
    return status.model_copy(
        update={
            "conditions": conditions,
            "trainers": trainers.model_copy(update={"ready": 0}) if trainers is not None else None,
            "servers": servers.model_copy(update={"ready": 0}) if servers is not None else None,
            "progress": None,
            "allocation": None,
        }
    )
