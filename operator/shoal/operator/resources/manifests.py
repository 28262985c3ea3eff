"""A job's manifests with their hashes, each made once: a look needs all of them, and there are many looks at one job. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from shoal.api import TrainingJob
from shoal.operator.core.field_ownership import holds
from shoal.operator.resources import workloads
from shoal.operator.resources.pods import JobIdentity, pod_hash, trainer_pod

__all__ = ["HashedManifest", "JobManifests", "applied_hash"]


def applied_hash(manifest: dict[str, Any]) -> str:
    """Tells one version of an object from the next; kept in an annotation of it."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class HashedManifest:
    """An object as it should be."""

    content: dict[str, Any]
    hash: str
    _held: dict[str, bool] = field(default_factory=dict, compare=False)

    @property
    def key(self) -> tuple[str, str]:
        """Kind and name."""
        return self.content["kind"], self.content["metadata"]["name"]

    def held(self, fields: str) -> bool:
        """Whether the API server's record of our fields has all of it; asked anew only for another record."""
        if fields not in self._held:
            self._held.clear()
            self._held[fields] = holds(self.content, fields)
        return self._held[fields]

    @classmethod
    def of(cls, content: dict[str, Any]) -> HashedManifest:
        """With its hash."""
        return cls(content, applied_hash(content))


class JobManifests:
    """Of one version of a job. What it gives is to be read only.

    Args:
        job: The job.
        identity: Its own on this cluster.
    """

    def __init__(self, job: TrainingJob, identity: JobIdentity) -> None:
        self.job = job
        self.identity = identity
        self._made: dict[object, HashedManifest] = {}

    @cached_property
    def template(self) -> str:
        """The hash that a trainer's pod bears."""
        return pod_hash(trainer_pod(self.job, self.identity, 0))

    @cached_property
    def standing(self) -> tuple[HashedManifest, ...]:
        """What stands for as long as the job."""
        return tuple(HashedManifest.of(each) for each in workloads.standing(self.job, self.identity))

    def servers(self, replicas: int, nodes: Sequence[str] = ()) -> HashedManifest:
        """The parameter servers' StatefulSet."""
        key = ("servers", replicas, tuple(nodes))
        if key not in self._made:
            self._made[key] = HashedManifest.of(
                workloads.servers(self.job, self.identity, replicas=replicas, nodes=nodes)
            )
        return self._made[key]

    def master(self, replicas: int, nodes: Sequence[str] = ()) -> HashedManifest:
        """The master's Deployment."""
        key = ("master", replicas, tuple(nodes))
        if key not in self._made:
            self._made[key] = HashedManifest.of(
                workloads.master(self.job, self.identity, replicas=replicas, nodes=nodes)
            )
        return self._made[key]
