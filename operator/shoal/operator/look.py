"""One look at one job: from what is known to what is done."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from shoal.api import ManifestError, TrainingJob, from_mapping
from shoal.kube import KubeError, KubeForbiddenError, KubeInvalidError
from shoal.operator.executor import Executor
from shoal.operator.pods import Identity
from shoal.operator.reconcile import Observed, reconcile, template_of
from shoal.operator.reporter import Reporter
from shoal.operator.status import Trouble, status_of
from shoal.operator.store import ClusterStore

__all__ = ["Looker"]

_PATIENCE_SECONDS = 60.0
"""Who was told to leave for so long is sent away by its kubelet."""


class Looker:
    """Looks at jobs.

    Args:
        store: What is known.
        executor: Acts.
        reporter: Writes statuses.
        etcd: Endpoint of etcd, for the masters.
        classes: The PriorityClasses of servers, minimum and surplus trainers; None: none.
    """

    def __init__(
        self,
        store: ClusterStore,
        executor: Executor,
        reporter: Reporter,
        *,
        etcd: str,
        classes: tuple[str, str, str] | None = None,
    ) -> None:
        self._store = store
        self._executor = executor
        self._reporter = reporter
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
            self._reporter.forget(uid)
            return None
        try:
            job = from_mapping(manifest)
        except ManifestError as error:
            return await self._say(manifest, None, Observed(), wanted=0, refused=str(error))
        identity = Identity(uid=uid, etcd=self._etcd, classes=self._classes)
        seen = self._store.observed(uid, template=template_of(job, identity))
        overdue, again = self._overdue(uid, seen.wanted.drain if seen.wanted is not None else [])
        wanted = job.wanted_trainers()
        actions = reconcile(job, identity, seen, trainers=wanted, overdue=overdue)
        try:
            await self._executor.carry_out(job, identity, actions)
        except* (KubeInvalidError, KubeForbiddenError) as group:
            troubles = [Trouble("trainer", job.metadata.name, error.reason, str(error)) for error in _each(group)]
            await self._say(manifest, job, seen, wanted=wanted, troubles=troubles)
            raise
        later = await self._say(manifest, job, seen, wanted=wanted)
        return min((each for each in (again, later) if each is not None), default=None)

    async def _say(
        self,
        manifest: Mapping[str, Any],
        job: TrainingJob | None,
        seen: Observed,
        *,
        wanted: int,
        refused: str = "",
        troubles: Sequence[Trouble] = (),
    ) -> float | None:
        uid = manifest["metadata"]["uid"]
        after = status_of(
            job,
            generation=manifest["metadata"].get("generation", 0),
            seen=seen,
            wanted=wanted,
            troubles=[*self._store.troubles(uid), *troubles],
            refused=refused,
            now=datetime.now(UTC),
            before=self._reporter.before(manifest),
            facts=self._store.facts(uid),
        )
        return await self._reporter.say(manifest, after)

    def _overdue(self, uid: str, drain: list[int]) -> tuple[set[int], float | None]:
        """Who was told too long ago, and when the next one will be."""
        now = time.monotonic()
        before = self._told.get(uid, {})
        told = self._told[uid] = {index: before.get(index, now) for index in drain}
        overdue = {index for index, since in told.items() if now - since >= _PATIENCE_SECONDS}
        waiting = [since + _PATIENCE_SECONDS - now for index, since in told.items() if index not in overdue]
        return overdue, max(0.1, min(waiting)) if waiting else None


def _each(group: BaseExceptionGroup[KubeError]) -> Iterator[KubeError]:
    """The errors of a group, however deep."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _each(error)
        else:
            yield error
