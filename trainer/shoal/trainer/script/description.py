"""Describes a script's model, optimizers and data as a model spec; refuses what is not supported, with the fix."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from shoal.protocol.epoch_plan import EpochPlan, default_task_batches
from shoal.protocol.messages import Buffer, DenseParameter, Group, ModelSpec, SparseTable
from shoal.protocol.messages import Tensor as TensorShape
from shoal.protocol.slot_layout import ITEM_SIZES
from shoal.tensors.optimizers import UnsupportedOptimizer, check_dense, check_sparse, group_options, optimizer_name
from shoal.tensors.table_rows import GIVEN, GIVEN_TABLE_BYTES
from shoal.trainer.data.dataset import DataDescription
from shoal.trainer.refusal import Refusal, Refused
from shoal.trainer.script.prepare_checks import check_model, check_numbers, check_state
from shoal.trainer.script.tensor_names import clean_name

__all__ = ["FIXED_BYTES", "AfterStep", "BufferPlace", "ScriptDescription", "TableModule", "describe"]

Named = tuple[str, nn.Parameter]
Match = Callable[[str, str], list[Named]]
"""(option, pattern) -> the parameters that the pattern matches."""

FIXED_BYTES = 64 * 2**20
"""Fixed tensors up to this total size are sent from the first trainer to the others; larger ones are only compared. Bytes."""
SAMPLED_VALUES = 100_000
"""Number of a table's values from which its distribution is estimated."""
NORMAL, UNIFORM, KURTOSIS_TOLERANCE = 3.0, 1.8, 0.15
"""Kurtosis of normal values, of uniform values, and the tolerance for a sample."""


@dataclass(frozen=True)
class TableModule:
    """A sparse table and the module that uses it."""

    index: int
    name: str
    module: nn.Embedding | nn.EmbeddingBag


@dataclass(frozen=True)
class BufferPlace:
    """The location of a buffer, independent of its current tensor: a script may assign a new one."""

    name: str
    buffers: dict[str, Any]
    key: str

    @property
    def tensor(self) -> Tensor:
        """The current tensor.

        Raises:
            Refusal: The buffer was removed.
        """
        found = self.buffers.get(self.key)
        if not isinstance(found, Tensor):
            raise Refusal(f"buffer {self.name} was removed after prepare; keep it, or make the model without it")
        return found


@dataclass(frozen=True)
class ScriptDescription:
    """The model spec, and the live objects in the same order."""

    shape: ModelSpec
    dense: list[nn.Parameter]
    tables: list[TableModule]
    groups: list[dict[str, Any]]
    """The optimizers' parameter groups."""
    buffers: list[BufferPlace]
    """The buffers that are merged."""
    fixed: list[tuple[str, Tensor]]
    """Frozen parameters and non-persistent buffers; all trainers use the first trainer's."""
    watched: list[tuple[str, nn.Parameter]]
    """The parameters that only the job may write, dense and frozen."""

    def buffer_tensors(self) -> list[Tensor]:
        """Return the current tensors of the merged buffers.

        Raises:
            Refused: A buffer's shape or dtype changed since ``prepare``, so that trainers could not merge it.
        """
        found = []
        for place, spec in zip(self.buffers, self.shape.buffers, strict=True):
            try:
                tensor = place.tensor
            except Refusal as error:
                raise Refused(str(error)) from None
            if list(tensor.shape) != spec.shape or str(tensor.dtype) != f"torch.{spec.dtype}":
                raise Refused(
                    f"buffer {place.name} is {tensor.dtype} {list(tensor.shape)} by now, and was torch.{spec.dtype} "
                    f"{spec.shape} at prepare: trainers could not merge it; keep its shape, or register it with "
                    "persistent=False"
                )
            found.append(tensor)
        return found


@dataclass(frozen=True, slots=True)
class AfterStep:
    """What the parameter servers do with the parameters after each step.

    Attributes:
        ema: Decay of the moving average. Default: 0, no average.
        clamp: Bounds (low, high) by parameter name.
        max_norm: Maximum norm of a row, by parameter name.
    """

    ema: float = 0.0
    clamp: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    max_norm: Mapping[str, float] = field(default_factory=dict)


_NOTHING = AfterStep()


def describe(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    data: DataDescription,
    *,
    accumulate: int,
    task_batches: int | None,
    after: AfterStep = _NOTHING,
    drawn: frozenset[int] = frozenset(),
) -> ScriptDescription:
    """Describe a script's model, optimizers and data.

    Args:
        model: The module, without torch.compile's wrapper.
        optimizers: Its optimizers.
        data: The description of the data.
        accumulate: Number of batches in one optimizer step.
        task_batches: Number of batches in a task; None: ``default_task_batches``.
        after: What the servers do after each step. Default: nothing.
        drawn: The ids of sparse weights whose values are to be drawn. Default: none.

    Raises:
        Refusal: Parameter servers cannot train it; the message has the name and the fix.
    """
    check_model(model)
    check_numbers(accumulate, after.ema)
    groups = check_state(optimizers)
    names = {id(p): clean_name(name) for name, p in model.named_parameters()}
    placed = _place(names, groups)
    tables = _tables(model, names, placed)
    _check_average(after.ema, tables)
    sparse = [_table(table, placed, drawn=id(table.module.weight) in drawn) for table in tables]
    parameters = [(names[id(p)], p) for p in model.parameters()]
    rows = {id(table.module.weight) for table in tables}
    match = partial(_matching, parameters, placed, rows)
    free = [(name, p) for name, p in parameters if id(p) in placed and id(p) not in rows]
    dense = _dense(free, placed, _limits(after.clamp, match), _norms(after.max_norm, match))
    merged, passing = _buffers(model)
    frozen: list[tuple[str, Any]] = [(name, p) for name, p in parameters if id(p) not in placed]
    fixed = [*frozen, *passing]
    large = sum(tensor.nbytes for _, tensor in fixed) > FIXED_BYTES
    shape = ModelSpec(
        **_data_of_shape(data, accumulate, task_batches),
        dense=[described for described, _ in dense],
        tables=sparse,
        groups=_groups(optimizers, dense, sparse),
        buffers=[_buffer(place) for place in merged],
        fixed=[] if large else [_tensor(name, tensor) for name, tensor in fixed],
        frozen=_digest(fixed) if large else "",
        ema=after.ema,
    )
    return ScriptDescription(
        shape=shape,
        dense=[parameter for _, parameter in dense],
        tables=tables,
        groups=groups,
        buffers=merged,
        fixed=[] if large else fixed,
        watched=[*((d.name, p) for d, p in dense), *frozen],
    )


def _data_of_shape(data: DataDescription, accumulate: int, task_batches: int | None) -> dict[str, Any]:
    names = ("samples", "fingerprint", "batch_size", "drop_last", "shuffle", "sampler")
    cut = {"task_batches": _task_batches(data, accumulate, task_batches), "accumulate": accumulate}
    return {name: getattr(data, name) for name in names} | cut


def _check_average(ema: float, tables: Sequence[TableModule]) -> None:
    if ema and tables:
        raise Refusal(
            f"ema={ema} cannot average the sparse table {tables[0].name}; make the embedding with sparse=False"
        )


def _task_batches(data: DataDescription, accumulate: int, requested: int | None) -> int:
    batches = EpochPlan(
        samples=data.samples, batch_size=data.batch_size, drop_last=data.drop_last, task_batches=1
    ).batches
    if not batches:
        raise Refusal(
            f"drop_last leaves no batch: {data.samples} samples are fewer than one batch of {data.batch_size}"
        )
    if requested is None:
        return default_task_batches(batches, accumulate=accumulate)
    if requested < 1 or requested % accumulate:
        raise Refusal(f"task_batches={requested}; it must be a positive multiple of accumulate={accumulate}")
    return requested


def _dtype(tensor: Tensor, name: str) -> str:
    text = str(tensor.dtype).removeprefix("torch.")
    if text not in ITEM_SIZES or tensor.is_complex():
        raise Refusal(f"{name} has the dtype {text}, which parameter servers do not hold; use a real one")
    return text


def _tensor(name: str, tensor: Tensor) -> TensorShape:
    return TensorShape(name=name, shape=list(tensor.shape), dtype=_dtype(tensor, name))


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors:
        digest.update(f"{name}/{list(tensor.shape)}/{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _buffers(model: nn.Module) -> tuple[list[BufferPlace], list[tuple[str, Tensor]]]:
    """Return the buffers that are merged, and those that are only copied (``persistent=False``), each tensor once."""
    merged: list[BufferPlace] = []
    passing: list[tuple[str, Tensor]] = []
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for key, buffer in module._buffers.items():  # noqa: SLF001 - has the current tensor of each name
            if buffer is None or id(buffer) in seen:
                continue
            seen.add(id(buffer))
            name = clean_name(f"{prefix}.{key}" if prefix else key)
            if key in module._non_persistent_buffers_set:  # noqa: SLF001
                passing.append((name, buffer))
            else:
                merged.append(BufferPlace(name, module._buffers, key))  # noqa: SLF001
    return merged, passing


def _buffer(place: BufferPlace) -> Buffer:
    tensor = place.tensor
    return Buffer(name=place.name, shape=list(tensor.shape), dtype=_dtype(tensor, place.name), merge=_merge(place))


def _merge(place: BufferPlace) -> str:
    """Return how trainers' values are merged: statistics are averaged, counts are summed, others take the last value."""
    if place.key == "num_batches_tracked":
        return "sum"
    return "mean" if place.tensor.is_floating_point() else "last"


def _tables(model: nn.Module, names: Mapping[int, str], placed: Mapping[int, int]) -> list[TableModule]:
    found: list[TableModule] = []
    uses: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    for prefix, module in model.named_modules():
        if not isinstance(module, nn.Embedding | nn.EmbeddingBag) or not module.sparse:
            continue
        name = clean_name(prefix)
        if nn.utils.parametrize.is_parametrized(module, "weight"):
            raise Refusal(f"{name} is sparse and its weight is parametrized, which needs all rows; use sparse=False")
        if id(module.weight) not in placed:
            continue
        if uses[id(module.weight)] > 1:
            raise Refusal(f"{name}.weight is sparse and shared between modules; use one module, or sparse=False")
        found.append(TableModule(len(found), names[id(module.weight)], module))
    return found


def _place(names: Mapping[int, str], groups: Sequence[dict[str, Any]]) -> dict[int, int]:
    """Return id of a parameter -> its group; check that every parameter of an optimizer is in exactly one group."""
    placed: dict[int, int] = {}
    for number, group in enumerate(groups):
        for parameter in group["params"]:
            if id(parameter) in placed:
                raise Refusal(f"parameter {names.get(id(parameter), '?')} is in two parameter groups; keep one")
            if id(parameter) not in names:
                raise Refusal(
                    f"an optimizer holds a parameter of shape {list(parameter.shape)} that the model does not have; "
                    "make the optimizer from the model that prepare gets, after model.to(device); several models go into "
                    "one nn.ModuleDict"
                )
            placed[id(parameter)] = number
    return placed


def _limits(clamp: Mapping[str, tuple[float, float]], match: Match) -> dict[int, list[float | None]]:
    """Return id of a parameter -> its bounds."""
    found: dict[int, list[float | None]] = {}
    for pattern, bounds in clamp.items():
        if not isinstance(bounds, tuple | list) or len(bounds) != 2 or not float(bounds[0]) <= float(bounds[1]):
            raise Refusal(f"clamp={{{pattern!r}: {bounds!r}}}; give (low, high), -inf or inf for none")
        for _, parameter in match("clamp", pattern):
            found[id(parameter)] = [float(bound) if math.isfinite(bound) else None for bound in bounds]
    return found


def _norms(max_norm: Mapping[str, float], match: Match) -> dict[int, float]:
    """Return id of a parameter -> the maximum norm of its rows."""
    found: dict[int, float] = {}
    for pattern, largest in max_norm.items():
        if isinstance(largest, bool) or not isinstance(largest, int | float) or not 0 < largest < math.inf:
            raise Refusal(f"max_norm={{{pattern!r}: {largest!r}}}; give a number above 0, the largest norm of a row")
        for name, parameter in match("max_norm", pattern):
            if parameter.dim() < 2:
                raise Refusal(
                    f"max_norm: parameter {name} has the shape {list(parameter.shape)}, and so no rows; leave it out, or "
                    "bound its values by clamp"
                )
            found[id(parameter)] = float(largest)
    return found


def _matching(
    parameters: Sequence[Named], placed: Mapping[int, int], tables: set[int], option: str, pattern: str
) -> list[Named]:
    """Return the parameters that the pattern of an option matches; refuse any that is not dense and trained."""
    matching = [(name, p) for name, p in parameters if fnmatchcase(name, pattern)]
    if not matching:
        raise Refusal(
            f"{option}: no parameter is named {pattern!r}; there are {', '.join(n for n, _ in parameters[:8])}"
        )
    for name, parameter in matching:
        if id(parameter) in tables or id(parameter) not in placed:
            what = "a sparse table" if id(parameter) in tables else "not in an optimizer"
            raise Refusal(f"{option}: parameter {name} is {what}; only dense trained parameters can be constrained")
    return matching


def _dense(
    free: Sequence[Named],
    placed: Mapping[int, int],
    limits: Mapping[int, list[float | None]],
    norms: Mapping[int, float],
) -> list[tuple[DenseParameter, nn.Parameter]]:
    """Describe all parameters of the optimizers, including frozen ones, as they may get a gradient at any step."""
    return [
        (
            DenseParameter(
                name=name,
                shape=list(p.shape),
                dtype=_dtype(p, f"parameter {name}"),
                group=placed[id(p)],
                clamp=limits.get(id(p), []),
                max_norm=norms.get(id(p), 0.0),
            ),
            p,
        )
        for name, p in free
    ]


def _table(table: TableModule, placed: Mapping[int, int], *, drawn: bool) -> SparseTable:
    weight = table.module.weight
    padding = table.module.padding_idx
    family, first, second = ("normal", 0.0, 1.0) if drawn else _family(table.name, weight.detach(), padding)
    zero = [int(padding)] if family != GIVEN and padding is not None and (drawn or not weight[padding].any()) else []
    return SparseTable(
        name=table.name,
        rows=weight.shape[0],
        dim=weight.shape[1],
        dtype=_dtype(weight, f"table {table.name}"),
        group=placed[id(weight)],
        family=family,
        first=first,
        second=second,
        zero_rows=zero,
    )


def _family(name: str, weight: Tensor, padding: int | None) -> tuple[str, float, float]:
    """Return the source of a table's initial values: the module itself, a constant, or a distribution for a large table.

    A row of a large table that was never used is not stored, so its initial value must be a function of (seed, table, row).
    It is drawn from the distribution with which the module was initialised: normal or uniform values with the same mean and
    deviation, distinguished by the kurtosis (3 for normal, 1.8 for uniform values). The padding row, which is zero, is
    excluded.

    Raises:
        Refusal: The values of a large table follow neither distribution: trained values would be lost.
    """
    rows = max(1, SAMPLED_VALUES // max(1, weight.shape[1]))
    step = max(1, weight.shape[0] // rows)
    chosen = torch.arange(0, weight.shape[0], step)[:rows]
    if padding is not None and weight.shape[0] > 1:
        chosen = chosen[chosen != padding]
    values = weight[chosen.to(weight.device)].double().flatten().cpu()
    mean, deviation = float(values.mean()), float(values.std(unbiased=False))
    if deviation == 0 and math.isfinite(mean) and _is_constant(weight, mean, padding):
        return "constant", mean, 0.0
    if weight.numel() * weight.element_size() <= GIVEN_TABLE_BYTES:
        return GIVEN, 0.0, 0.0
    kurtosis = float((((values - mean) / deviation) ** 4).mean()) if deviation else 0.0
    if abs(kurtosis - UNIFORM) < KURTOSIS_TOLERANCE:
        half = deviation * 3**0.5
        return "uniform", mean - half, mean + half
    if abs(kurtosis - NORMAL) < KURTOSIS_TOLERANCE:
        return "normal", mean, deviation
    raise Refusal(
        f"table {name} is larger than {GIVEN_TABLE_BYTES // 2**20} MiB and its values are not those of an initialiser: they "
        "would have to be sent to the parameter servers, and are too large for that. Keep trained vectors in a table with "
        "sparse=False or a frozen one; a table that begins at random may be made on the meta device"
    )


def _is_constant(weight: Tensor, value: float, padding: int | None) -> bool:
    same = (weight == value).all(dim=1)
    if padding is not None:
        same[padding] |= not weight[padding].any()
    return bool(same.all())


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
