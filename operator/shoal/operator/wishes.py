"""What jobs want of the autoscaler: told when it changes, made once for each version of a job."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from shoal.api import TrainingJob
from shoal.autoscaler.config import AutoscalerConfig, priority_of, weight_of
from shoal.autoscaler.loop import Autoscaler
from shoal.autoscaler.wish import JobWish
from shoal.operator.check import as_pod
from shoal.operator.pods import Identity, master_pod, names, server_pod, trainer_pod

__all__ = ["Wishes"]


class Wishes:
    """Tells the autoscaler.

    Args:
        autoscaler: Whom; None: nobody.
    """

    def __init__(self, autoscaler: Autoscaler | None) -> None:
        self._autoscaler = autoscaler
        self._told: dict[str, tuple[int, Identity, AutoscalerConfig]] = {}

    def forget(self, uid: str) -> None:
        """The job is gone."""
        self._told.pop(uid, None)
        if self._autoscaler is not None:
            self._autoscaler.wants(uid, None)

    def tell(self, manifest: Mapping[str, Any], job: TrainingJob, identity: Identity, *, wants: bool) -> None:
        """What a job wants now.

        Args:
            manifest: Of the job.
            job: The same, read.
            identity: Its own on this cluster.
            wants: Whether it wants trainers: it is neither suspended nor at its end.
        """
        if self._autoscaler is None:
            return
        if not wants:
            self.forget(identity.uid)
            return
        config = self._autoscaler.config
        version = (int(manifest["metadata"].get("generation", 0)), identity, config)
        if self._told.get(identity.uid) == version:
            return
        self._told[identity.uid] = version
        priority = priority_of(config, job.spec.priority)
        trainer = job.spec.trainer
        pinned = trainer.replicas is not None
        known = names(job)
        wish = JobWish(
            uid=identity.uid,
            name=job.metadata.name,
            namespace=job.metadata.namespace,
            trainer=trainer_pod(job, identity, 0),
            priority=_UNKNOWN,
            min=trainer.replicas or trainer.min_replicas,
            max=trainer.replicas or trainer.most,
            weight=weight_of(config, priority, labels=job.metadata.labels),
            since=_created(manifest),
            pinned=pinned,
            fixed=(
                (as_pod(job, server_pod(job, identity), known["pserver"]), job.servers, "pserver"),
                (as_pod(job, master_pod(job, identity), known["master"]), 1, "master"),
            ),
        )
        self._autoscaler.wants(identity.uid, wish, minimum=priority.minimum)


_UNKNOWN = 0
"""The priority of pods whose class the cluster does not know."""


def _created(manifest: Mapping[str, Any]) -> float:
    text = manifest["metadata"].get("creationTimestamp")
    return datetime.fromisoformat(text).timestamp() if text else 0.0
