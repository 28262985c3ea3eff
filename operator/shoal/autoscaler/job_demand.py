"""The demand of a job: the part of the planner's input that is not in the cluster's state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.autoscaler.snapshot.resources import Manifest

__all__ = ["JobDemand"]


@dataclass(frozen=True, kw_only=True)
class JobDemand:
    """The demand of a job: the part of the planner's input that is not in the cluster's state.

    The manifests are read again only when they change; passing the identical objects each time makes that check fast.

    Attributes:
        uid: Uid of the TrainingJob.
        name: Name of the TrainingJob, without the namespace.
        namespace: Namespace of the TrainingJob and its pods.
        trainer: Manifest of a trainer as it would be created now.
        priority: Priority of the minimum trainers.
        surplus: Priority of the trainers beyond the minimum; None: `priority`.
        min: Fewest trainers.
        max: Most trainers.
        weight: Divisor of the job's share among jobs of its class. Default: 1.
        since: Creation time of the job, in seconds.
        pinned: Whether the user has set the number of trainers.
        fixed: (manifest, desired number, role) of the job's other pods.
    """

    uid: str
    name: str
    namespace: str
    trainer: Manifest
    priority: int
    min: int
    max: int
    weight: float = 1.0
    since: float = 0.0
    pinned: bool = False
    surplus: int | None = None
    fixed: Sequence[tuple[Manifest, int, str]] = ()
