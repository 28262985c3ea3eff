"""Describes the dataset of a script, which must be the same in all trainers; refuses data that cannot be divided.

Of the dataset's code only ``__len__`` runs here: the rest runs in the DataLoader's workers, as in a plain script.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import itertools
from collections.abc import Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    StackDataset,
    Subset,
    TensorDataset,
)

from shoal.trainer.data.sample_order import SamplerOrder
from shoal.trainer.refusal import Refusal

__all__ = ["DataDescription", "as_loader", "describe_data"]

SAMPLED_ROWS = 64
"""Number of rows of each tensor of a TensorDataset that its fingerprint contains."""
DEEPEST = 16
"""Maximum depth of nested datasets that a fingerprint follows."""


@dataclasses.dataclass(frozen=True)
class DataDescription:
    """The loader, and all its properties that determine the samples of a batch."""

    loader: DataLoader[Any]
    samples: int
    """Number of positions in the order of an epoch."""
    batch_size: int
    drop_last: bool
    shuffle: bool
    """Whether Shoal shuffles the samples (``shuffle=True``)."""
    sampler: str
    """The class name of the script's own sampler or batch sampler; empty if there is none."""
    order: SamplerOrder | None
    """The order of that sampler, for ``SampleOrder``; None if there is none."""
    fingerprint: str
    """Digest of the contents, as far as they are readable without running the script's code, and of the sampler's order."""


def describe_data(data: Any, *, batch_size: int | None) -> DataDescription:
    """Describe the loader that ``prepare`` received.

    Args:
        data: A DataLoader or a Dataset.
        batch_size: Batch size in samples; for a Dataset only.

    Raises:
        Refusal: Its samples cannot be divided among trainers; the message has the reason and the fix.
    """
    loader = as_loader(data, batch_size=batch_size)
    dataset: Any = loader.dataset
    length = len(dataset)
    digest = hashlib.blake2b(digest_size=16)
    _add_contents(digest, dataset, DEEPEST)
    sampler, batches = _sampler_of(loader)
    cut = loader.batch_sampler if loader.batch_size is None else loader
    described = DataDescription(
        loader=loader,
        samples=length,
        batch_size=getattr(cut, "batch_size", 0),
        drop_last=getattr(cut, "drop_last", False),
        shuffle=type(sampler) is RandomSampler,
        sampler="",
        order=None,
        fingerprint=digest.hexdigest(),
    )
    if _is_default(sampler, length):
        return described
    return _with_order(described, SamplerOrder(sampler, batches=batches), digest)


def as_loader(data: Any, *, batch_size: int | None) -> DataLoader[Any]:
    """Return a DataLoader for the loader or Dataset that ``prepare`` received.

    Raises:
        Refusal: Its samples cannot be divided among trainers.
    """
    if isinstance(data, DataLoader):
        _check_loader(data, batch_size)
        return data
    if not isinstance(data, Dataset):
        raise Refusal(f"prepare got a {type(data).__name__} as loader; give it a torch DataLoader or Dataset")
    _check_dataset(data)
    if batch_size is None:
        raise Refusal("prepare got a Dataset without batch_size; add batch_size=..., or give it a DataLoader")
    return DataLoader(data, batch_size=batch_size, shuffle=True)


def _check_dataset(dataset: Any) -> None:
    if isinstance(dataset, IterableDataset):
        raise Refusal(
            f"{type(dataset).__name__} is an IterableDataset: it has no samples that could be named, so they cannot be "
            "counted exactly once; make it a map-style Dataset whose __len__ is the number of samples and whose "
            "__getitem__(i) reads the i-th, for example from an index of files and offsets"
        )
    if not isinstance(dataset, Sized):
        raise Refusal(f"the dataset {type(dataset).__name__} has no __len__; add it")
    if not len(dataset):
        raise Refusal("the dataset has no samples: training needs at least one")


def _check_loader(loader: DataLoader[Any], batch_size: int | None) -> None:
    kind = type(loader)
    if kind.__iter__ is not DataLoader.__iter__:
        raise Refusal(
            f"the loader is a {kind.__name__}, a DataLoader with an __iter__ of its own, which Shoal would pass over; "
            "do in the loop what its __iter__ does, or in collate_fn, and give prepare a plain DataLoader"
        )
    _check_dataset(loader.dataset)
    if loader.batch_sampler is None:
        raise Refusal(
            "the DataLoader has batch_size=None, so it gives samples and no batches; write batch_size=..., and where "
            "the dataset makes whole batches itself, let it give single samples"
        )
    if batch_size is not None and batch_size != loader.batch_size:
        raise Refusal(
            f"prepare got batch_size={batch_size} beside a DataLoader with batch_size={loader.batch_size}; "
            "the DataLoader's counts: leave prepare's away"
        )


# --- Samplers ---


def _sampler_of(loader: DataLoader[Any]) -> tuple[Any, bool]:
    """Return the sampler that determines the order, and whether it yields whole batches."""
    if loader.batch_size is not None:
        return loader.sampler, False
    if type(loader.batch_sampler) is BatchSampler:
        return loader.batch_sampler.sampler, False
    return loader.batch_sampler, True


def _is_default(sampler: Any, length: int) -> bool:
    """Return whether the sampler is the default one of ``shuffle=True`` or ``shuffle=False``."""
    if type(sampler) is RandomSampler:
        whole = len(sampler.data_source) == sampler.num_samples == length
        return whole and not sampler.replacement
    return type(sampler) is SequentialSampler and len(sampler) == length


def _with_order(described: DataDescription, order: SamplerOrder, digest: Any) -> DataDescription:
    sampler: Any = order.sampler
    if any(isinstance(part, DistributedSampler) for part in order.parts()):
        raise Refusal(
            "the DataLoader has a DistributedSampler; Shoal hands the samples out to the trainers itself: leave the "
            "sampler away and write shuffle=True"
        )
    what = "batch sampler" if order.batches else "sampler"
    if not isinstance(sampler, Sized):
        raise Refusal(
            f"the {what} {order.name} has no __len__, so it may never end; add it: the number of "
            f"{'batches' if order.batches else 'samples'} in an epoch"
        )
    # Draw epoch 0 twice, and again after epoch 1: state in a sampler must not change its order.
    first, again, _, later = (order.draw(seed=0, epoch=epoch) for epoch in (0, 0, 1, 0))
    if not repr(first) == repr(again) == repr(later):
        raise Refusal(
            f"the {what} {order.name} does not give the same order twice for the same seed, but all trainers must "
            "draw the same; draw only from the generators of torch, numpy and random or from a generator that is an "
            "attribute of the sampler, and let the epoch come from set_epoch(epoch)"
        )
    digest.update(repr(first).encode())
    changes: dict[str, Any] = {"shuffle": False, "sampler": order.name, "order": order}
    if order.batches:
        changes |= {"batch_size": _size_of(first, order.name), "drop_last": False}
        first = list(itertools.chain.from_iterable(first))
    if not first:
        raise Refusal(f"the {what} {order.name} gives nothing: training needs at least one sample")
    return dataclasses.replace(described, **changes, samples=len(first), fingerprint=digest.hexdigest())


def _size_of(batches: list[list[Any]], name: str) -> int:
    """Return the size of a batch sampler's batches.

    Raises:
        Refusal: The sizes differ; only the last batch may be smaller.
    """
    full = len(batches[0]) if batches else 0
    for number, batch in enumerate(batches):
        last = number + 1 == len(batches)
        if not batch or len(batch) > full or (len(batch) < full and not last):
            raise Refusal(
                f"the batch sampler {name} gives batches of different sizes: {full} samples, then {len(batch)} in "
                f"batch {number}; all but a smaller last one must have one size"
            )
    return full


# --- Fingerprints ---


def _add_contents(digest: Any, dataset: Any, depth: int) -> None:
    """Add the length, the type, and the contents that are readable without running the script's code."""
    length = len(dataset) if isinstance(dataset, Sized) else "?"
    digest.update(f"/{type(dataset).__name__}/{length}".encode())
    for name in ("_fingerprint", "fingerprint"):
        # Read statically, as a property would run the script's code.
        own = inspect.getattr_static(dataset, name, None)
        if isinstance(own, str):
            digest.update(own.encode())
            return
    held = getattr(dataset, "__dict__", {})
    if isinstance(dataset, TensorDataset):
        for tensor in held.get("tensors", ()):
            _add_rows(digest, tensor)
    elif depth and isinstance(dataset, Subset):
        _add_indices(digest, held.get("indices"))
        _add_contents(digest, held.get("dataset", ()), depth - 1)
    elif depth and isinstance(dataset, ConcatDataset | StackDataset):
        parts = held.get("datasets", ())
        for part in parts.values() if isinstance(parts, dict) else parts:
            _add_contents(digest, part, depth - 1)


def _add_rows(digest: Any, tensor: Any) -> None:
    """Add a tensor's dtype and shape, and ``SAMPLED_ROWS`` evenly spread rows."""
    digest.update(f"/{tensor.dtype}/{list(tensor.shape)}".encode())
    if type(tensor) is not Tensor or tensor.layout is not torch.strided or tensor.is_quantized or not tensor.numel():
        return
    rows = len(tensor)
    chosen = sorted({rows * part // SAMPLED_ROWS for part in range(SAMPLED_ROWS)} | {rows - 1})
    values = tensor.detach()[torch.tensor(chosen, device=tensor.device)].cpu().resolve_conj().resolve_neg().contiguous()
    digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())


def _add_indices(digest: Any, indices: Any) -> None:
    """Add a Subset's indices if they are integers in a plain container."""
    if isinstance(indices, Tensor):
        indices = indices.tolist()
    if isinstance(indices, np.ndarray | list | tuple | range) and len(indices):
        numbers = np.asarray(indices)
        if numbers.dtype.kind in "iu":
            digest.update(numbers.astype(np.int64).tobytes())
