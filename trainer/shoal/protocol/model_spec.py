"""Validation and comparison of model specs: pure, so that the master can refuse a trainer and name the difference."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from typing import Any

import msgspec

from shoal.protocol.messages import ModelSpec

__all__ = ["differences", "digest", "impossible"]

MOST_TASKS = 1_000_000
"""The limit of tasks in an epoch: each slot has a bit for each task."""
MOST_ELEMENTS = 1 << 48
"""The limit of elements of one tensor."""

_FIELDS = {
    "samples": "the dataset's length",
    "batch_size": "the batch size",
    "drop_last": "drop_last",
    "shuffle": "shuffle",
    "sampler": "the sampler",
    "task_batches": "task_batches",
    "accumulate": "accumulate",
    "ema": "the moving average's decay",
}


def digest(shape: ModelSpec) -> str:
    """Return a digest of a model spec; snapshots contain it."""
    return hashlib.blake2b(msgspec.json.encode(shape, order="deterministic"), digest_size=16).hexdigest()


def impossible(shape: ModelSpec) -> str:
    """Return why no job can train this model spec; empty if none of the checks fails."""
    return next(itertools.chain(_impossible_data(shape), _impossible_model(shape)), "")


def _impossible_data(shape: ModelSpec) -> Iterator[str]:
    if shape.samples < 1:
        yield "the dataset has no samples: training needs at least one"
    for name in ("batch_size", "task_batches", "accumulate"):
        if getattr(shape, name) < 1:
            yield f"{_FIELDS[name]} is {getattr(shape, name)}; it must be at least 1"
    tasks = shape.samples // (shape.batch_size * shape.task_batches)
    if tasks > MOST_TASKS:
        yield f"an epoch has {tasks:,} tasks, the limit is {MOST_TASKS:,}: give prepare a larger task_batches"


def _impossible_model(shape: ModelSpec) -> Iterator[str]:
    sizes: list[tuple[str, list[int]]] = [(table.name, [table.rows, table.dim]) for table in shape.tables]
    for tensors in (shape.dense, shape.buffers, shape.fixed):
        sizes += [(tensor.name, tensor.shape) for tensor in tensors]
    for label, size in sizes:
        if min(size, default=0) < 0 or math.prod(size) > MOST_ELEMENTS:
            yield f"{label} has the shape {size}"
    groups = [(dense.name, dense.group) for dense in shape.dense] + [
        (table.name, table.group) for table in shape.tables
    ]
    for label, group in groups:
        if not 0 <= group < len(shape.groups):
            yield f"{label} is in parameter group {group}; there are {len(shape.groups)}"
    numbers = [shape.ema, *(p.max_norm for p in shape.dense), *(x for t in shape.tables for x in (t.first, t.second))]
    if not all(map(math.isfinite, numbers)):
        yield "a number of the model's description is not finite"


def differences(here: ModelSpec, job: ModelSpec) -> list[str]:
    """Return the differences between a trainer's model spec and the job's, one text each; empty if they are equal."""
    found = [
        f"{label} is {getattr(here, name)} here, {getattr(job, name)} in the job"
        for name, label in _FIELDS.items()
        if getattr(here, name) != getattr(job, name)
    ]
    if here.fingerprint != job.fingerprint and here.samples == job.samples:
        found.append("the dataset's contents differ (its fingerprint changed since the job began)")
    for label, own, registered in (
        ("parameter", here.dense, job.dense),
        ("table", here.tables, job.tables),
        ("buffer", here.buffers, job.buffers),
        ("fixed tensor", here.fixed, job.fixed),
    ):
        found.extend(_named(label, list(own), list(registered)))
    if here.frozen != job.frozen:
        found.append(
            "the frozen parameters differ from those of the first trainer; make the model after trainer.join, which "
            "seeds, or load the same file everywhere"
        )
    if len(here.groups) != len(job.groups):
        found.append(f"{len(here.groups)} parameter groups here, {len(job.groups)} in the job")
    found.extend(
        f"parameter group {number}: {own.optimizer} here, {registered.optimizer} in the job"
        for number, (own, registered) in enumerate(zip(here.groups, job.groups, strict=False))
        if own.optimizer != registered.optimizer
    )
    return found


def _named(label: str, here: list[Any], job: list[Any]) -> list[str]:
    own, registered = {x.name: x for x in here}, {x.name: x for x in job}
    found = [f"{label} {name} is not in the job" for name in own if name not in registered]
    found += [f"{label} {name} of the job is not here" for name in registered if name not in own]
    for name in [name for name in own if name in registered]:
        left, right = _layout(own[name]), _layout(registered[name])
        if left != right:
            found.append(f"{label} {name} is {left} here, {right} in the job")
    if not found and [x.name for x in here] != [x.name for x in job]:
        found.append(f"the {label}s have another order")
    return found


def _layout(part: Any) -> str:
    size = part.shape if hasattr(part, "shape") else [part.rows, part.dim]
    group = f", group {part.group}" if hasattr(part, "group") else ""
    clamp = f", clamp {_bounds(part.clamp)}" if getattr(part, "clamp", None) else ""
    norm = f", max_norm {part.max_norm:g}" if getattr(part, "max_norm", 0) else ""
    return f"{part.dtype} {size}{group}{clamp}{norm}"


def _bounds(clamp: list[float | None]) -> list[float | None]:
    """Return bounds in the form of the record: None for an infinity, as JSON has none."""
    return [None if bound is None or math.isinf(bound) else float(bound) for bound in clamp]
