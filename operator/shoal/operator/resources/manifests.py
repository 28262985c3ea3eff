"""A job's manifests with their hashes, each built once: every sync needs all of them. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from shoal.api import TrainingJob
from shoal.operator.core.field_ownership import has_fields
from shoal.operator.resources import workloads
from shoal.operator.resources.pods import JobIdentity, pod_hash, trainer_pod

__all__ = ["HashedManifest", "JobManifests", "applied_hash"]


def applied_hash(manifest: dict[str, Any]) -> str:
    """Return the hash of a manifest, which an annotation of the object stores."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class HashedManifest:
    """The manifest of an object, with its hash."""

    content: dict[str, Any]
    hash: str
    _has_fields: dict[str, bool] = field(default_factory=dict, compare=False)

    @property
    def key(self) -> tuple[str, str]:
        """Kind and name of the object."""
        return self.content["kind"], self.content["metadata"]["name"]

    def has_fields(self, fields: str) -> bool:
        """Return whether the API server's record of Shoal's fields has all fields; computed again only for another record."""
        if fields not in self._has_fields:
            self._has_fields.clear()
            self._has_fields[fields] = has_fields(self.content, fields)
        return self._has_fields[fields]

    @classmethod
    def of(cls, content: dict[str, Any]) -> HashedManifest:
        """Build from a manifest."""
        return cls(content, applied_hash(content))


class JobManifests:
    """The manifests of one version of a job. Callers must not change them.

    Args:
        job: The job.
        identity: The job's identity on this cluster.
    """

    def __init__(self, job: TrainingJob, identity: JobIdentity) -> None:
        self.job = job
        self.identity = identity
        self._made: dict[object, HashedManifest] = {}

    @cached_property
    def template(self) -> str:
        """The hash label of the job's trainers' pods."""
        return pod_hash(trainer_pod(self.job, self.identity, 0))

    @cached_property
    def permanent(self) -> tuple[HashedManifest, ...]:
        """Manifests of the objects that exist for as long as the job runs."""
        return tuple(HashedManifest.of(each) for each in workloads.permanent(self.job, self.identity))

    def servers(self, replicas: int, nodes: Sequence[str] = ()) -> HashedManifest:
        """Return the parameter servers' StatefulSet."""
        key = ("servers", replicas, tuple(nodes))
        if key not in self._made:
            self._made[key] = HashedManifest.of(
                workloads.servers(self.job, self.identity, replicas=replicas, nodes=nodes)
            )
        return self._made[key]

    def master(self, replicas: int, nodes: Sequence[str] = ()) -> HashedManifest:
        """Return the master's Deployment."""
        key = ("master", replicas, tuple(nodes))
        if key not in self._made:
            self._made[key] = HashedManifest.of(
                workloads.master(self.job, self.identity, replicas=replicas, nodes=nodes)
            )
        return self._made[key]
