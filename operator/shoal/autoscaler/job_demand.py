"""What a job wants, as far as it does not show in the cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.autoscaler.snapshot.resources import Manifest

__all__ = ["JobDemand"]


@dataclass(frozen=True, kw_only=True)
class JobDemand:
    """What a job wants, as far as it does not show in the cluster.

    The manifests of its pods are read again only when they change: whoever hands in the same objects each time saves that.

    Attributes:
        uid: Of the TrainingJob.
        name: Its name, without the namespace.
        namespace: Where its pods are.
        trainer: A pod of its, as it would be created now.
        priority: Of its minimum trainers.
        surplus: Of its trainers beyond; None: the same.
        min: Fewest trainers.
        max: Most trainers.
        weight: Its claim to room among jobs of its class.
        since: When it was created, in seconds.
        pinned: Whether its number is the user's choice.
        fixed: (pod, how many there should be, role) of its other pods.
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
