"""What an operator remembers of a job between two reconciliations of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shoal.api import TrainingJob, from_mapping
from shoal.operator.core import run_policy
from shoal.operator.core.accepted_spec import in_force
from shoal.operator.core.backoff import BackOff
from shoal.operator.core.reconcile import Observed
from shoal.operator.resources.manifests import JobManifests
from shoal.operator.resources.pods import JobIdentity
from shoal.operator.status import events

__all__ = ["JobMemory"]

_FULL_SECONDS = 60.0
"""So long after a quota refused a pod no more trainers are asked of the autoscaler."""


@dataclass
class JobMemory:
    """What is remembered of a job between looks; losing it costs a request or a minute, never more.

    Attributes:
        since: When it was looked at first.
        told: Index -> since when it was told to leave.
        tally: Of the script's errors; None: as the status has it.
        lives: Whose ends were looked at; None: nobody's yet.
        untold: Events that are to be told with the next status.
        complaints: What was said of its keys in etcd.
        secrets: When its Secrets were made sure of.
        checked: Generation for which the API server had no words against the job.
        accepted: The spec that was accepted last, as it is kept; None: not known.
        agreed: The job of that spec, where this process accepted it.
        pods: Back-off of each trainer's pods, by its index.
        repairs: Back-off of what another client changes again and again, by kind and name.
        token: Version of the job's token of which it was said that it took the place of another.
        full: Since when a quota refuses pods, and how many trainers there were then; None: none does.
    """

    since: float = field(default_factory=time.monotonic)
    told: dict[int, float] = field(default_factory=dict)
    tally: run_policy.FailureTally | None = None
    lives: set[str] | None = None
    untold: list[events.EventNote] = field(default_factory=list)
    complaints: Mapping[str, str] = field(default_factory=dict)
    secrets: float | None = None
    checked: int = 0
    accepted: str | None = None
    agreed: TrainingJob | None = None
    pods: BackOff[int] = field(
        default_factory=lambda: BackOff(free=3, first_seconds=5.0, longest_seconds=300.0, forget_seconds=600.0)
    )
    repairs: BackOff[tuple[str, str]] = field(
        default_factory=lambda: BackOff(free=1, first_seconds=1.0, longest_seconds=60.0, forget_seconds=60.0)
    )
    token: str = ""
    full: tuple[float, int] | None = None
    read: tuple[Mapping[str, Any], TrainingJob] | None = None
    standing: tuple[Mapping[str, Any], TrainingJob | None] | None = None
    rendered: JobManifests | None = None

    def newest(self, manifest: Mapping[str, Any]) -> TrainingJob:
        """The job of a manifest, which is the same one until the job changes.

        Raises:
            ManifestError: It is none.
        """
        if self.read is None or self.read[0] is not manifest:
            self.read = manifest, from_mapping(manifest)
        return self.read[1]

    def in_force(self, manifest: Mapping[str, Any]) -> TrainingJob | None:
        """The job that is in force while the manifest is refused, likewise; None: none was accepted."""
        if self.accepted is None:
            return None
        if self.standing is None or self.standing[0] is not manifest:
            self.standing = manifest, in_force(self.accepted, manifest)
        return self.standing[1]

    def note_token(self, seen: str, current: str, *, keeps: bool) -> None:
        """Say, once, that the job's token is another than that of its processes: etcd is another one."""
        if seen and current not in {seen, self.token}:
            self.token = current
            self.untold.append(events.etcd_lost(keeps=keeps))

    def most(self, now: float) -> int | None:
        """How many trainers a full quota leaves to the job; None: no quota is known to be full."""
        if self.full is None or now - self.full[0] > _FULL_SECONDS:
            return None
        return self.full[1]

    def resting(self, seen: Observed, now: float) -> dict[int, float]:
        """Index -> in how many seconds its next pod is due; a trainer that works has shown that its pods do."""
        for pod in seen.trainers:
            if pod.works:
                self.pods.forget(pod.index)
        left = {index: self.pods.left(index, now) for index in self.pods}
        return {index: seconds for index, seconds in left.items() if seconds > 0}

    def render(self, job: TrainingJob, identity: JobIdentity) -> JobManifests:
        """Its manifests, likewise."""
        if self.rendered is None or self.rendered.job is not job or self.rendered.identity != identity:
            self.rendered = JobManifests(job, identity)
        return self.rendered
