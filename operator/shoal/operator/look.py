"""One look at one job: from what is known to what is done."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from shoal.api import ManifestError, TrainingJob, from_mapping
from shoal.operator.executor import Executor
from shoal.operator.pods import Identity
from shoal.operator.reconcile import reconcile, template_of
from shoal.operator.store import ClusterStore

__all__ = ["Looker"]

_PATIENCE_SECONDS = 60.0
"""Who was told to leave for so long is sent away by its kubelet."""


class Looker:
    """Looks at jobs.

    Args:
        store: What is known.
        executor: Acts.
        etcd: Endpoint of etcd, for the masters.
        classes: The PriorityClasses of servers, minimum and surplus trainers; None: none.
    """

    def __init__(
        self, store: ClusterStore, executor: Executor, *, etcd: str, classes: tuple[str, str, str] | None = None
    ) -> None:
        self._store = store
        self._executor = executor
        self._etcd = etcd
        self._classes = classes
        self._told: dict[str, dict[int, float]] = {}
        """Uid -> index -> since when it was told to leave."""

    async def look(self, uid: str) -> float | None:
        """Bring one job a step further.

        Returns:
            After how many seconds to look again though nothing changes; None: never.

        Raises:
            KubeError: The API server refused something, or was away for too long.
            StoreError: etcd did.
        """
        manifest = self._store.jobs.get(uid)
        if manifest is None or manifest["metadata"].get("deletionTimestamp") is not None:
            self._told.pop(uid, None)
            return None
        job = self._read(manifest)
        if job is None:
            return None
        identity = Identity(uid=uid, etcd=self._etcd, classes=self._classes)
        seen = self._store.observed(uid, template=template_of(job, identity))
        overdue, again = self._overdue(uid, seen.wanted.drain if seen.wanted is not None else [])
        actions = reconcile(job, identity, seen, trainers=job.wanted_trainers(), overdue=overdue)
        await self._executor.carry_out(job, identity, actions)
        return again

    def _read(self, manifest: Mapping[str, Any]) -> TrainingJob | None:
        try:
            return from_mapping(manifest)
        except ManifestError:
            return None

    def _overdue(self, uid: str, drain: list[int]) -> tuple[set[int], float | None]:
        """Who was told too long ago, and when the next one will be."""
        now = time.monotonic()
        before = self._told.get(uid, {})
        told = self._told[uid] = {index: before.get(index, now) for index in drain}
        overdue = {index for index, since in told.items() if now - since >= _PATIENCE_SECONDS}
        waiting = [since + _PATIENCE_SECONDS - now for index, since in told.items() if index not in overdue]
        return overdue, max(0.1, min(waiting)) if waiting else None
