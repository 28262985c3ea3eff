"""The order of samples: a function of the dataset's fingerprint, the seed and the epoch, the same in every trainer."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from shoal.wire.messages import Shape
from shoal.wire.plan import Plan

__all__ = ["Order", "plan_of"]

EPOCHS_KEPT = 2


def plan_of(shape: Shape) -> Plan:
    """How a job of this shape cuts its epochs."""
    return Plan(
        samples=shape.samples,
        batch_size=shape.batch_size,
        drop_last=shape.drop_last,
        task_batches=shape.task_batches,
    )


class Order:
    """Which samples each batch has.

    Args:
        shape: What the job trains.
        seed: The job's.
    """

    def __init__(self, shape: Shape, seed: int) -> None:
        self.plan = plan_of(shape)
        self._samples = shape.samples
        self._shuffle = shape.shuffle
        self._key = f"{shape.fingerprint}/{seed}"
        self._permutations: dict[int, Tensor] = {}

    def indices(self, epoch: int, task: int, batch: int) -> list[int]:
        """The dataset's indices of a batch."""
        positions = self.plan.positions(task, batch)
        if not self._shuffle:
            return list(positions)
        found: list[int] = self._permutation(epoch)[positions.start : positions.stop].tolist()
        return found

    def _permutation(self, epoch: int) -> Tensor:
        known = self._permutations.get(epoch)
        if known is None:
            digest = hashlib.blake2b(f"{self._key}/{epoch}".encode(), digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
            known = torch.randperm(self._samples, generator=generator)
            self._permutations[epoch] = known
            for old in sorted(self._permutations)[:-EPOCHS_KEPT]:
                del self._permutations[old]
        return known
