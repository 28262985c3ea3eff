"""A small model, its data, and the usual training loop over a job's batches in their order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from shoal.trainer.data.dataset import describe_data
from shoal.trainer.data.sample_order import SampleOrder
from shoal.trainer.script.description import describe
from shoal.trainer.session import TrainingSession

EPOCHS, SEED = 2, 11
SAMPLES, SIZE = 40, 4
STEPS = SAMPLES // SIZE
"""Batches in an epoch."""
POISONED = 13


@dataclass
class AnyJob:
    """A job under test, alone or with servers."""

    job: TrainingSession
    together: bool
    skipped: Callable[[], int]
    """Samples that the job counts as skipped."""


def data(*, poison: bool = False) -> TensorDataset:
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(SAMPLES, 4, generator=generator), torch.randn(SAMPLES, 1, generator=generator)
    if poison:
        x[POISONED] = float("inf")
    return TensorDataset(x, y)


def loader_of(**options: Any) -> DataLoader[Any]:
    return DataLoader(data(), **({"batch_size": SIZE, "shuffle": True} | options))


def model() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def sgd(m: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9)


def halves(m: nn.Module) -> list[torch.optim.Optimizer]:
    return [torch.optim.Adam(m[0].parameters(), lr=0.01), torch.optim.SGD(m[2].parameters(), lr=0.1)]


def loss_of(m: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(m(x), y)


def order_of(
    m: nn.Module,
    optimizers: Any,
    loader: Any,
    *,
    accumulate: int = 1,
    task_batches: int | None = None,
    seed: int = SEED,
) -> SampleOrder:
    """Return the job's order of batches."""
    many = optimizers if isinstance(optimizers, list) else [optimizers]
    described = describe_data(loader, batch_size=None)
    shape = describe(m, many, described, accumulate=accumulate, task_batches=task_batches).shape
    return SampleOrder(shape, seed, described.order)


def places(order: SampleOrder) -> Iterator[tuple[int, int]]:
    """Yield the task and the number of each batch of an epoch."""
    for task in range(order.plan.tasks):
        for batch in range(order.plan.batches_in(task)):
            yield task, batch


def plain_epochs(
    order: SampleOrder, loader: DataLoader[Any], *, epochs: int = EPOCHS
) -> Iterator[tuple[int, Iterable[Any]]]:
    """Yield the epochs of a loop without Shoal, each with its batches."""
    collate: Any = loader.collate_fn
    for epoch in range(epochs):
        yield (
            epoch,
            (collate([loader.dataset[i] for i in order.indices(epoch, *place)]) for place in places(order)),
        )


def job_epochs(job: TrainingSession, batches: Iterable[Any]) -> Iterator[tuple[int, Iterable[Any]]]:
    for epoch in job.epochs():
        yield epoch, batches


@dataclass
class Side:
    """The objects that a loop under test uses: the script's own, or those that ``prepare`` returned."""

    model: Any
    optimizer: Any
    """One optimizer, or a list of them."""
    scheduler: Any
    epochs: Iterator[tuple[int, Iterable[Any]]]
    job: TrainingSession | None
    """The job. None: the loop runs without Shoal."""

    @property
    def batches(self) -> Iterator[Any]:
        """The batches of all epochs."""
        return itertools.chain.from_iterable(batches for _, batches in self.epochs)

    def closes(self, number: int, accumulate: int) -> bool:
        """Return whether the accumulation's step belongs to the batch with this number."""
        return self.optimizer.closes if self.job is not None else number % accumulate == accumulate - 1


def compare(
    any_job: AnyJob,
    train: Callable[[Side], Any],
    *,
    make: Callable[[Any], Any] = sgd,
    build: Callable[[], nn.Module] = model,
    loader: DataLoader[Any] | None = None,
    schedule: Callable[[Any], Any] | None = None,
    tolerance: float = 1e-6,
    **prepare: Any,
) -> Any:
    """Train with and without Shoal; check that the models and the results of ``train`` are equal; return the result."""
    loader = loader or loader_of()
    plain = build()
    own = make(plain)
    order = order_of(
        plain, own, loader, accumulate=prepare.get("accumulate", 1), task_batches=prepare.get("task_batches")
    )
    expected = train(Side(plain, own, schedule(own) if schedule else None, plain_epochs(order, loader), None))
    m = build()
    own = make(m)
    scheduler = schedule(own) if schedule else None
    m, optimizer, batches = any_job.job.prepare(m, own, loader, scheduler=scheduler, **prepare)
    found = train(Side(m, optimizer, scheduler, job_epochs(any_job.job, batches), any_job.job))
    equal(m, plain, tolerance=tolerance)
    assert found == expected
    return found


def equal(found: nn.Module, expected: nn.Module, *, tolerance: float = 1e-6) -> None:
    mine = found.state_dict()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(
            mine[name], value, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def plainly(side: Side) -> None:
    for x, y in side.batches:
        side.optimizer.zero_grad()
        loss_of(side.model, x, y).backward()
        side.optimizer.step()


def step(m: nn.Module, optimizer: Any, batch: Any) -> None:
    """Train on one batch."""
    optimizer.zero_grad()
    loss_of(m, *batch).backward()
    optimizer.step()


def total(m: nn.Module) -> float:
    """Return the sum of all parameters, which changes with every step."""
    with torch.no_grad():
        return float(sum(p.sum() for p in m.parameters()))
