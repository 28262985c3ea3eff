"""What job controller and autoscaler exchange: demands are built once for each version of a job, and reported when they change."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from shoal.api import TrainingJob
from shoal.api.status import Reason
from shoal.autoscaler.config.types import AutoscalerConfig, priority_of, weight_of
from shoal.autoscaler.job_demand import JobDemand
from shoal.autoscaler.loop import Autoscaler, JobDecision
from shoal.operator.controller.preflight import as_pod
from shoal.operator.core.reconcile import PlannedNodes
from shoal.operator.resources.object_fields import parse_time
from shoal.operator.resources.pods import JobIdentity, master_pod, names, server_pod, trainer_pod

__all__ = ["Demands", "autoscaled_condition", "planned_nodes"]


class Demands:
    """Reports demands to the autoscaler.

    Args:
        autoscaler: The autoscaler. None: nothing is reported.
    """

    def __init__(self, autoscaler: Autoscaler | None) -> None:
        self._autoscaler = autoscaler
        self._reported: dict[str, tuple[int, JobIdentity, AutoscalerConfig, int | None]] = {}
        self._since: dict[str, float] = {}

    def forget(self, uid: str) -> None:
        """Withdraw the demand of a job that was deleted."""
        self._since.pop(uid, None)
        self._withdraw(uid)

    def _withdraw(self, uid: str) -> None:
        self._reported.pop(uid, None)
        if self._autoscaler is not None:
            self._autoscaler.set_demand(uid, None)

    def report(
        self,
        manifest: Mapping[str, Any],
        job: TrainingJob,
        identity: JobIdentity,
        *,
        needs_trainers: bool,
        most: int | None = None,
    ) -> None:
        """Report a job's demand if it has changed.

        Args:
            manifest: Manifest of the job.
            job: The job in force.
            identity: The job's identity on this cluster.
            needs_trainers: Whether the job wants trainers: it is neither suspended nor has it ended.
            most: The most trainers that a full quota permits at present. None: no quota limits them.
        """
        if self._autoscaler is None:
            return
        if not needs_trainers:
            self._withdraw(identity.uid)
            return
        config = self._autoscaler.config
        version = (int(manifest["metadata"].get("generation", 0)), identity, config, most)
        if self._reported.get(identity.uid) == version:
            return
        self._reported[identity.uid] = version
        priority = priority_of(config, job.spec.priority)
        trainer = job.spec.trainer
        pinned = trainer.replicas is not None
        low, high = trainer.replicas or trainer.min_replicas, trainer.replicas or trainer.most
        known = names(job)
        demand = JobDemand(
            uid=identity.uid,
            name=job.metadata.name,
            namespace=job.metadata.namespace,
            trainer=trainer_pod(job, identity, 0),
            priority=_UNKNOWN_PRIORITY,
            min=low,
            max=high if most is None else max(low, min(high, most)),
            weight=weight_of(config, priority, labels=job.metadata.labels),
            since=self._since.setdefault(identity.uid, _created(manifest)),
            pinned=pinned,
            fixed=(
                (as_pod(job, server_pod(job, identity), known["pserver"]), job.servers, "pserver"),
                (as_pod(job, master_pod(job, identity), known["master"]), 1, "master"),
            ),
        )
        self._autoscaler.set_demand(identity.uid, demand, minimum=priority.minimum, surplus=priority.surplus)


def autoscaled_condition(autoscaler: Autoscaler | None, job: TrainingJob) -> tuple[Reason, str] | None:
    """Return reason and message of the condition Autoscaled, without what changes with each plan; None: no autoscaler."""
    if autoscaler is None:
        return None
    if autoscaler.problem:
        return Reason.CONFIG_REFUSED, autoscaler.problem
    if not autoscaler.config.enabled:
        return Reason.DISABLED, ""
    if autoscaler.config.dry_run:
        return Reason.DRY_RUN, ""
    return (Reason.PINNED if job.spec.trainer.replicas is not None else Reason.FOLLOWING), ""


def planned_nodes(decision: JobDecision) -> PlannedNodes:
    """Return the nodes that a decision assigns to a job's pods."""
    return PlannedNodes(
        kept=decision.kept,
        added=decision.added,
        servers=decision.servers,
        master=decision.master,
        servers_wait=decision.servers_wait,
        later=decision.trainers - decision.now,
    )


_UNKNOWN_PRIORITY = -11
"""Priority of a job whose PriorityClass was never observed: below all others, as the API server refuses its pods."""


def _created(manifest: Mapping[str, Any]) -> float:
    """Return when a job was created, but not later than now: a wrong clock would make it the youngest job for ever."""
    created = parse_time(manifest["metadata"].get("creationTimestamp"))
    return min(created.timestamp(), datetime.now(UTC).timestamp()) if created is not None else 0.0
