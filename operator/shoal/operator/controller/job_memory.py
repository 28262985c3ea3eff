"""What the job controller keeps of a job between two syncs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from shoal.api import TrainingJob, from_mapping
from shoal.api.status import Reason
from shoal.operator.controller.executor import Failure
from shoal.operator.core import run_policy
from shoal.operator.core.accepted_spec import in_force
from shoal.operator.core.reconcile import Action, Apply, CreatePod, Observed
from shoal.operator.resources.manifests import JobManifests
from shoal.operator.resources.pods import JobIdentity, label
from shoal.operator.status import events
from shoal.retry import KeyedBackOff

__all__ = ["JobMemory"]

_DRAIN_TIMEOUT_SECONDS: Final = 60.0
"""A trainer that still runs this long after its index was added to the drain list is deleted, so the kubelet terminates it."""
_FULL_SECONDS: Final = 60.0
"""How long after a quota refused a pod no more trainers are demanded of the autoscaler."""


@dataclass
class JobMemory:
    """What is kept of a job between syncs. Its loss costs at most one request or 60 s.

    Attributes:
        since: When the job was first synced, in seconds of the monotonic clock.
        draining: Index -> when it was first seen in the drain list, in seconds of the monotonic clock.
        failures: Consecutive errors of the script. None: those of the status.
        counted_ends: IDs of containers whose ends were counted. None: no end was counted yet.
        unwritten: Events to write with the next status.
        record_problems: The last reported problems of the job's keys in etcd.
        secrets: When its Secrets were last ensured. None: not by this process.
        checked: Generation that passed the preflight.
        accepted: The last accepted spec, as the ConfigMap stores it. None: not known.
        agreed: The job of that spec, if this process accepted it.
        pods: Back-off of each trainer's pods, by index.
        repairs: Back-off of objects that another client changes repeatedly, by kind and name.
        token: Version of the job's token for which an event reported that it replaced another one.
        full: When a quota last refused a pod, and how many trainers there were then. None: never.
    """

    since: float = field(default_factory=time.monotonic)
    draining: dict[int, float] = field(default_factory=dict)
    failures: run_policy.ConsecutiveFailures | None = None
    counted_ends: set[str] | None = None
    unwritten: list[events.EventNote] = field(default_factory=list)
    record_problems: Mapping[str, str] = field(default_factory=dict)
    secrets: float | None = None
    checked: int = 0
    accepted: str | None = None
    agreed: TrainingJob | None = None
    pods: KeyedBackOff[int] = field(
        default_factory=lambda: KeyedBackOff(free=3, first_seconds=5.0, longest_seconds=300.0, forget_seconds=600.0)
    )
    repairs: KeyedBackOff[tuple[str, str]] = field(
        default_factory=lambda: KeyedBackOff(free=1, first_seconds=1.0, longest_seconds=60.0, forget_seconds=60.0)
    )
    token: str = ""
    full: tuple[float, int] | None = None
    parsed: tuple[Mapping[str, Any], TrainingJob] | None = None
    in_force_cache: tuple[Mapping[str, Any], TrainingJob | None] | None = None
    rendered: JobManifests | None = None

    def newest(self, manifest: Mapping[str, Any]) -> TrainingJob:
        """Return the job of a manifest; the same object until the manifest changes.

        Raises:
            ManifestError: The manifest is no valid job.
        """
        if self.parsed is None or self.parsed[0] is not manifest:
            self.parsed = manifest, from_mapping(manifest)
        return self.parsed[1]

    def in_force(self, manifest: Mapping[str, Any]) -> TrainingJob | None:
        """Return the job in force while a manifest is refused; None: none was accepted. The same object for one manifest."""
        if self.accepted is None:
            return None
        if self.in_force_cache is None or self.in_force_cache[0] is not manifest:
            self.in_force_cache = manifest, in_force(self.accepted, manifest)
        return self.in_force_cache[1]

    def report_token_change(self, seen: str, current: str, *, has_claims: bool) -> None:
        """Report once, by an event, that the job's token differs from that of its processes: etcd was replaced."""
        if seen and current not in {seen, self.token}:
            self.token = current
            self.unwritten.append(events.etcd_lost(has_claims=has_claims))

    def most(self, now: float) -> int | None:
        """Return how many trainers a full quota permits; None: no quota is known to be full."""
        if self.full is None or now - self.full[0] > _FULL_SECONDS:
            return None
        return self.full[1]

    def backing_off(self, seen: Observed, now: float) -> dict[int, float]:
        """Return index -> seconds until its next pod is due. A trainer that works has its back-off reset."""
        for pod in seen.trainers:
            if pod.works:
                self.pods.forget(pod.index)
        left = {index: self.pods.left(index, now) for index in self.pods}
        return {index: seconds for index, seconds in left.items() if seconds > 0}

    def render(self, job: TrainingJob, identity: JobIdentity) -> JobManifests:
        """Return the job's manifests; the same object for one job and identity."""
        if self.rendered is None or self.rendered.job is not job or self.rendered.identity != identity:
            self.rendered = JobManifests(job, identity)
        return self.rendered

    def overdue(self, drain: Sequence[int]) -> tuple[set[int], float | None]:
        """Return the indices that have been in the drain list for too long, and in how many seconds the next one will be."""
        now = time.monotonic()
        self.draining = {index: self.draining.get(index, now) for index in drain}
        overdue = {index for index, since in self.draining.items() if now - since >= _DRAIN_TIMEOUT_SECONDS}
        waiting = [
            since + _DRAIN_TIMEOUT_SECONDS - now for index, since in self.draining.items() if index not in overdue
        ]
        return overdue, max(0.1, min(waiting)) if waiting else None

    def repairs_due(self, actions: Sequence[Action]) -> tuple[list[Action], float | None]:
        """Drop repairs that are in back-off because another client undoes them; return in how many seconds the next is due."""
        now, kept, waits = time.monotonic(), [], []
        for action in actions:
            if isinstance(action, Apply) and action.repair:
                key = action.manifest["kind"], action.manifest["metadata"]["name"]
                left = self.repairs.left(key, now)
                if left:
                    waits.append(left)
                    continue
                self.repairs.tried(key, now)
            kept.append(action)
        return kept, min(waits, default=None)

    def record_pods(self, seen: Observed, actions: Sequence[Action], failed: Sequence[Failure]) -> None:
        """Record which trainers' pods were created, and whether a quota refused some.

        A pod that the API server refused is retried with the work queue's back-off for failed syncs.
        """
        now = time.monotonic()
        refused = [each for each in failed if isinstance(each.action, CreatePod)]
        kept = {id(each.action) for each in refused}
        for action in actions:
            if isinstance(action, CreatePod) and id(action) not in kept:
                self.pods.tried(int(label(action.manifest, "index")), now)
        if any(each.problem.known is Reason.QUOTA_EXCEEDED for each in refused):
            self.full = now, sum(not (pod.ended or pod.lost) for pod in seen.trainers)
