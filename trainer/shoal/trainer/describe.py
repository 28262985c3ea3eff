"""What a script trains, put into words that all processes share; and what cannot be trained so, refused with the fix."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from shoal.pserver.optimizers import UnsupportedOptimizer, check_dense, check_sparse, group_options, optimizer_name
from shoal.wire.layout import ITEM_SIZES
from shoal.wire.messages import Buffer, DenseParameter, Group, Shape, SparseTable
from shoal.wire.plan import Plan, default_task_batches

__all__ = ["Description", "Refusal", "TableModule", "as_loader", "describe"]

SAMPLED_VALUES = 100_000
FEWEST_VALUES = 1_000


class Refusal(ValueError):  # noqa: N818 - what the user reads
    """The script asks for something that Shoal does not do; the message says what, and what to do instead."""


@dataclass(frozen=True)
class TableModule:
    """A sparse table and the module that uses it."""

    index: int
    module: nn.Embedding | nn.EmbeddingBag


@dataclass(frozen=True)
class Description:
    """The shape, and the live objects in its order."""

    shape: Shape
    dense: list[nn.Parameter]
    tables: list[TableModule]
    groups: list[dict[str, Any]]
    """The optimizers' parameter groups."""
    buffers: list[Tensor]


def as_loader(data: Any, *, batch_size: int | None) -> DataLoader[Any]:
    """A DataLoader of what ``prepare`` was given.

    Raises:
        Refusal: It cannot be cut into tasks.
    """
    if isinstance(data, DataLoader):
        _check_loader(data)
        return data
    if isinstance(data, IterableDataset):
        raise Refusal(_ITERABLE)
    if isinstance(data, Dataset):
        if not isinstance(data, Sized):
            raise Refusal(f"the dataset {type(data).__name__} has no __len__; add it")
        if not len(data):
            raise Refusal(_EMPTY)
        if batch_size is None:
            raise Refusal("prepare got a Dataset without batch_size; add batch_size=..., or give it a DataLoader")
        return DataLoader(data, batch_size=batch_size, shuffle=True)
    raise Refusal(f"prepare got a {type(data).__name__} as loader; give it a torch DataLoader or Dataset")


_ITERABLE = (
    "an IterableDataset has no samples that could be named, so they cannot be counted exactly once; "
    "use a map-style Dataset with __len__ and __getitem__"
)


_EMPTY = "the dataset has no samples: training needs at least one"


def _check_loader(loader: DataLoader[Any]) -> None:
    if isinstance(loader.dataset, IterableDataset):
        raise Refusal(_ITERABLE)
    if loader.batch_size is None:
        raise Refusal(
            "the DataLoader has a custom batch_sampler, or batch_size=None; Shoal cuts the batches itself: use batch_size=..."
        )
    if type(loader.sampler) not in {RandomSampler, SequentialSampler}:
        raise Refusal(
            f"the DataLoader's sampler {type(loader.sampler).__name__} is a custom one; Shoal orders the samples "
            "itself, so that each counts exactly once: use shuffle=True or shuffle=False instead of sampler=..."
        )
    drawn = loader.sampler
    if isinstance(drawn, RandomSampler) and (drawn.replacement or drawn.num_samples != len(drawn)):
        raise Refusal("the RandomSampler draws with replacement or only a part; use shuffle=True instead")
    if not isinstance(loader.dataset, Sized):
        raise Refusal(f"the dataset {type(loader.dataset).__name__} has no __len__; add it")


def describe(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    loader: DataLoader[Any],
    *,
    accumulate: int,
    task_batches: int | None,
) -> Description:
    """Describe a script's model, optimizers and data.

    Raises:
        Refusal: Something cannot be trained by parameter servers; the message names it and the fix.
    """
    if isinstance(model, DataParallel | DistributedDataParallel):
        raise Refusal(f"the model is wrapped in {type(model).__name__}; give prepare the plain module (model.module)")
    if accumulate < 1:
        raise Refusal(f"accumulate={accumulate}; it must be at least 1")
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    tables = _tables(model)
    placed = _place(model, groups, tables)
    dense = _dense(model, placed, {id(table.module.weight) for table in tables})
    sparse = [_table(table, name, placed) for table, name in _named_tables(model, tables)]
    described = _groups(optimizers, dense, sparse)
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if name in model.state_dict()]
    samples = len(loader.dataset)  # type: ignore[arg-type]
    batch_size = loader.batch_size
    assert batch_size is not None
    shape = Shape(
        samples=samples,
        fingerprint=_fingerprint(loader.dataset, samples),
        batch_size=batch_size,
        drop_last=loader.drop_last,
        shuffle=isinstance(loader.sampler, RandomSampler),
        task_batches=_task_batches(samples, batch_size, loader.drop_last, accumulate, task_batches),
        accumulate=accumulate,
        dense=[described_parameter for described_parameter, _ in dense],
        tables=sparse,
        groups=described,
        buffers=[
            Buffer(name=name, shape=list(b.shape), dtype=_dtype(b, name), merge=_merge(b, name)) for name, b in buffers
        ],
    )
    return Description(
        shape=shape,
        dense=[parameter for _, parameter in dense],
        tables=tables,
        groups=groups,
        buffers=[buffer for _, buffer in buffers],
    )


def _task_batches(samples: int, batch_size: int, drop_last: bool, accumulate: int, wanted: int | None) -> int:  # noqa: FBT001
    if samples < 1:
        raise Refusal(_EMPTY)
    batches = Plan(samples=samples, batch_size=batch_size, drop_last=drop_last, task_batches=1).batches
    if not batches:
        raise Refusal(f"drop_last leaves no batch: {samples} samples are fewer than one batch of {batch_size}")
    if wanted is None:
        return default_task_batches(batches, accumulate=accumulate)
    if wanted < 1 or wanted % accumulate:
        raise Refusal(f"task_batches={wanted}; it must be a positive multiple of accumulate={accumulate}")
    return wanted


def _dtype(tensor: Tensor, name: str) -> str:
    text = str(tensor.dtype).removeprefix("torch.")
    if text not in ITEM_SIZES or tensor.is_complex():
        raise Refusal(f"{name} has the dtype {text}, which parameter servers do not hold; use a real one")
    return text


def _merge(buffer: Tensor, name: str) -> str:
    """How the trainers' copies of a buffer are merged."""
    if buffer.is_floating_point():
        return "mean"
    return "sum" if name.rpartition(".")[2] == "num_batches_tracked" else "last"


def _tables(model: nn.Module) -> list[TableModule]:
    found: list[TableModule] = []
    uses: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding | nn.EmbeddingBag) or not module.sparse:
            continue
        if not module.weight.requires_grad:
            continue
        if uses[id(module.weight)] > 1:
            raise Refusal(f"{name}.weight is sparse and shared between modules; use one module, or sparse=False")
        if module.max_norm is not None:
            raise Refusal(f"{name} has max_norm, which changes rows that are not pushed; leave max_norm out")
        found.append(TableModule(len(found), module))
    return found


def _named_tables(model: nn.Module, tables: Sequence[TableModule]) -> Iterable[tuple[TableModule, str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [(table, names[id(table.module.weight)]) for table in tables]


def _place(model: nn.Module, groups: Sequence[dict[str, Any]], tables: Sequence[TableModule]) -> dict[int, int]:
    """Parameter's id -> its group; every trained parameter is in exactly one."""
    del tables
    placed: dict[int, int] = {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for number, group in enumerate(groups):
        for parameter in group["params"]:
            if id(parameter) in placed:
                raise Refusal(f"parameter {names.get(id(parameter), '?')} is in two parameter groups; keep one")
            if id(parameter) not in names:
                raise Refusal(
                    f"an optimizer holds a parameter of shape {list(parameter.shape)} that the model does not have; "
                    "make the optimizer from the model that prepare gets, after model.to(device)"
                )
            placed[id(parameter)] = number
    return placed


def _dense(model: nn.Module, placed: dict[int, int], tables: set[int]) -> list[tuple[DenseParameter, nn.Parameter]]:
    found = []
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise Refusal(f"parameter {name} is not initialised yet (a lazy module); run one forward pass first")
        if not parameter.requires_grad:
            continue
        if id(parameter) not in placed:
            raise Refusal(
                f"parameter {name} is trained but no optimizer holds it; add it to one, or call requires_grad_(False)"
            )
        if id(parameter) not in tables:
            dtype = _dtype(parameter, f"parameter {name}")
            described = DenseParameter(name=name, shape=list(parameter.shape), dtype=dtype, group=placed[id(parameter)])
            found.append((described, parameter))
    return found


def _table(table: TableModule, name: str, placed: dict[int, int]) -> SparseTable:
    weight = table.module.weight
    if id(weight) not in placed:
        raise Refusal(f"table {name} is trained but no optimizer holds it; add it to one")
    padding = table.module.padding_idx
    family, first, second = _family(weight.detach(), padding)
    zero = [int(padding)] if padding is not None and not weight.detach()[padding].any() else []
    return SparseTable(
        name=name,
        rows=weight.shape[0],
        dim=weight.shape[1],
        dtype=_dtype(weight, f"table {name}"),
        group=placed[id(weight)],
        family=family,
        first=first,
        second=second,
        zero_rows=zero,
    )


def _family(weight: Tensor, padding: int | None) -> tuple[str, float, float]:
    """From which distribution a table's first values are drawn.

    A row that nobody touched exists nowhere, so its first value must be a function of (seed, table, row). It is drawn
    from what the module was initialised with: a constant, or else normal or uniform with the same mean and deviation;
    which of the two is told by the kurtosis (3 for normal, 1.8 for uniform values; of few values it says nothing, and
    normal is taken). The padding row, zero by itself, is left out.
    """
    rows = max(1, SAMPLED_VALUES // max(1, weight.shape[1]))
    step = max(1, weight.shape[0] // rows)
    chosen = torch.arange(0, weight.shape[0], step)[:rows]
    if padding is not None and weight.shape[0] > 1:
        chosen = chosen[chosen != padding]
    values = weight[chosen.to(weight.device)].double().flatten().cpu()
    mean, deviation = float(values.mean()), float(values.std(unbiased=False))
    if deviation == 0:
        return "constant", mean, 0.0
    kurtosis = float((((values - mean) / deviation) ** 4).mean())
    if len(values) >= FEWEST_VALUES and kurtosis < 2.4:
        half = deviation * 3**0.5
        return "uniform", mean - half, mean + half
    return "normal", mean, deviation


def _groups(
    optimizers: Sequence[Optimizer],
    dense: Sequence[tuple[DenseParameter, nn.Parameter]],
    tables: Sequence[SparseTable],
) -> list[Group]:
    described: list[Group] = []
    dense_groups = {parameter.group for parameter, _ in dense}
    sparse_groups = {table.group: table.name for table in tables}
    try:
        for optimizer in optimizers:
            name = optimizer_name(optimizer)
            for group in optimizer.param_groups:
                options = group_options(group)
                number = len(described)
                if number in dense_groups:
                    check_dense(name, options)
                if number in sparse_groups:
                    check_sparse(name, options)
                described.append(Group(optimizer=name, options=options))
    except UnsupportedOptimizer as error:
        raise Refusal(str(error)) from None
    return described


def _fingerprint(dataset: Any, samples: int) -> str:
    """Length, kind and three samples, cheap and stable; contents that change from look to look are left out."""
    digest = hashlib.blake2b(f"{type(dataset).__name__}/{samples}".encode(), digest_size=16)
    for index in sorted({0, samples // 2, samples - 1}) if samples else ():
        once, again = _content(dataset[index]), _content(dataset[index])
        if once == again:
            digest.update(once)
    return digest.hexdigest()


def _content(value: Any) -> bytes:
    """The bytes of a sample where they are the same in every process, else what kind of thing it is."""
    if isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized:
        return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return b"".join(_content(key) + _content(part) for key, part in value.items())
    if isinstance(value, list | tuple):
        return b"".join(_content(part) for part in value)
    if isinstance(value, str | int | float | bool | bytes):
        return repr(value).encode()
    # An array of objects has their addresses as its bytes.
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        return value.tobytes()
    return type(value).__name__.encode()
