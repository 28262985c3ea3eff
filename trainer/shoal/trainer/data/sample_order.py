"""The order of samples: a function of the data's fingerprint, the seed and the epoch, the same in every trainer."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import random
from collections.abc import Iterable, Iterator, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from shoal.protocol.epoch_plan import EpochPlan
from shoal.protocol.messages import ModelSpec
from shoal.trainer.refusal import Refusal

__all__ = ["SampleOrder", "SamplerOrder", "plan_of"]

EPOCHS_KEPT = 2
INT64 = torch.iinfo(torch.int64)


def plan_of(shape: ModelSpec) -> EpochPlan:
    """Return how a job with this model spec divides an epoch into tasks and batches."""
    return EpochPlan(
        samples=shape.samples,
        batch_size=shape.batch_size,
        drop_last=shape.drop_last,
        task_batches=shape.task_batches,
    )


class SamplerOrder:
    """The order of a script's own sampler, as a function of a seed and the epoch.

    The sampler is drawn with the global generators of torch (CPU), numpy and ``random`` seeded, and with its own generators
    replaced by seeded ones. Afterwards all of them are restored.

    Args:
        sampler: Yields the indices of an epoch, or whole batches of them. It must be finite and have ``__len__``.
        batches: Whether it is a batch sampler.
    """

    def __init__(self, sampler: Iterable[Any], *, batches: bool) -> None:
        self.sampler = sampler
        self.batches = batches

    @property
    def name(self) -> str:
        """Name of the sampler's class."""
        return type(self.sampler).__name__

    def parts(self) -> list[Any]:
        """Return the sampler and all samplers that it contains, each once."""
        found: list[Any] = []
        ahead: list[Any] = [self.sampler]
        while ahead:
            part = ahead.pop()
            if any(part is other for other in found):
                continue
            found.append(part)
            for name, value in getattr(part, "__dict__", {}).items():
                several = isinstance(value, list | tuple) and len(value) > 0 and isinstance(value[0], Sampler)
                if several:
                    ahead.extend(value)
                elif isinstance(value, Sampler) or name.endswith("sampler"):
                    ahead.append(value)
        return found

    def draw(self, *, seed: int, epoch: int) -> list[Any]:
        """Return the indices, or lists of indices, that the sampler yields in an epoch.

        Args:
            seed: Seed of the generators while the sampler is drawn, from 0 to 2**63 - 1.
            epoch: Passed to ``set_epoch`` of the samplers that have it.

        Raises:
            Refusal: The sampler yields more than its length; it may be infinite.
        """
        assert isinstance(self.sampler, Sized)
        parts = self.parts()
        with _seeded(parts, seed):
            for part in parts:
                if callable(getattr(part, "set_epoch", None)):
                    part.set_epoch(epoch)
            most = len(self.sampler)
            drawn = list(itertools.islice(iter(self.sampler), most + 1))
            if self.batches:
                drawn = [list(batch) for batch in drawn]
        if len(drawn) > most:
            what = "batches" if self.batches else "indices"
            raise Refusal(
                f"the sampler {self.name} gives more {what} than the {most} that its __len__ says; "
                "an epoch must be finite: let __iter__ end there, or correct __len__"
            )
        return drawn


class SampleOrder:
    """The samples of each batch.

    Args:
        shape: The model spec of the job.
        seed: Seed of the job.
        sampler: The order of the script's own sampler; None if ``shape.sampler`` is empty.
    """

    def __init__(self, shape: ModelSpec, seed: int, sampler: SamplerOrder | None = None) -> None:
        assert bool(shape.sampler) == (sampler is not None)
        self.plan = plan_of(shape)
        self._shape = shape
        self._key = f"{shape.fingerprint}/{seed}"
        self._sampler = sampler
        self._epochs: dict[int, Tensor | list[Any]] = {}

    def indices(self, epoch: int, task: int, batch: int) -> list[Any]:
        """Return the dataset indices of a batch.

        Raises:
            Refusal: The script's sampler yields another number of samples, or batches of other sizes, in this epoch.
        """
        positions = self.plan.positions(task, batch)
        if self._sampler is None and not self._shape.shuffle:
            return list(positions)
        part = self._epoch(epoch)[positions.start : positions.stop]
        return part.tolist() if isinstance(part, Tensor) else part

    def _epoch(self, epoch: int) -> Tensor | list[Any]:
        """Return the order of an epoch; the ``EPOCHS_KEPT`` last used epochs are cached."""
        known = self._epochs.pop(epoch, None)
        if known is None:
            digest = hashlib.blake2b(f"{self._key}/{epoch}".encode(), digest_size=8).digest()
            seed = int.from_bytes(digest, "little") >> 1
            known = self._permutation(seed) if self._sampler is None else self._drawn(self._sampler, seed, epoch)
        self._epochs[epoch] = known
        if len(self._epochs) > EPOCHS_KEPT:
            del self._epochs[next(iter(self._epochs))]
        return known

    def _permutation(self, seed: int) -> Tensor:
        return torch.randperm(self._shape.samples, generator=torch.Generator().manual_seed(seed))

    def _drawn(self, sampler: SamplerOrder, seed: int, epoch: int) -> Tensor | list[Any]:
        drawn = sampler.draw(seed=seed, epoch=epoch)
        if sampler.batches:
            full = self._shape.batch_size
            wrong = [len(batch) for batch in drawn[:-1] if len(batch) != full]
            if wrong:
                raise Refusal(
                    f"the batch sampler {sampler.name} gives a batch of {wrong[0]} samples in epoch {epoch + 1} "
                    f"beside batches of {full}; all but the last must have one size"
                )
            drawn = list(itertools.chain.from_iterable(drawn))
        if len(drawn) != self._shape.samples:
            raise Refusal(
                f"the sampler {sampler.name} gives {len(drawn)} samples in epoch {epoch + 1} and "
                f"{self._shape.samples} in the first; give the same number in every epoch"
            )
        return _compact(drawn)


def _compact(drawn: list[Any]) -> Tensor | list[Any]:
    """Return integers as a tensor, which needs a fifth of the memory; return other values unchanged."""
    if all(type(index) is int and INT64.min <= index <= INT64.max for index in drawn):
        return torch.tensor(drawn, dtype=torch.int64)
    return drawn


@contextlib.contextmanager
def _seeded(parts: list[Any], seed: int) -> Iterator[None]:
    """Seed the global generators and those of the samplers; restore all of them at exit."""
    # torch.manual_seed would also seed the GPUs.
    torch_state, random_state = torch.get_rng_state(), random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002 - the generator that samplers use
    held = [(part, name, value) for part in parts for name, value in list(getattr(part, "__dict__", {}).items())]
    replaced = [(part, name, value) for part, name, value in held if isinstance(value, _GENERATORS)]
    # A generator that two samplers share stays shared; different generators get different seeds.
    copies: dict[int, Any] = {}
    for _, _, value in replaced:
        copies.setdefault(id(value), _like(value, seed + 1 + len(copies)))
    try:
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        for part, name, value in replaced:
            setattr(part, name, copies[id(value)])
        yield
    finally:
        for part, name, value in replaced:
            setattr(part, name, value)
        torch.set_rng_state(torch_state)
        random.setstate(random_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def _like(value: Any, seed: int) -> Any:
    """Return a seeded generator of the same type."""
    if isinstance(value, torch.Generator):
        return torch.Generator(value.device).manual_seed(seed)
    if isinstance(value, np.random.Generator):
        return np.random.default_rng(seed)
    if isinstance(value, np.random.RandomState):
        return np.random.RandomState(seed % 2**32)
    return random.Random(seed)  # noqa: S311 - no secret
