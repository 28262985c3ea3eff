"""The job in one process: the same script under plain ``python``, with real optimizers and without any server."""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from torch import nn
from torch.optim import Optimizer

from shoal.trainer.describe import Description, as_loader, describe
from shoal.trainer.exports import save_model
from shoal.trainer.feed import Feed
from shoal.trainer.job import Job
from shoal.trainer.loop import BatchLoader, Values, scored
from shoal.trainer.optimizer import SharedOptimizer
from shoal.trainer.order import Order
from shoal.trainer.schedule import Schedule, steps_per_value

__all__ = ["AloneJob"]

PROGRESS_SECONDS = 2.0

Model = TypeVar("Model", bound=nn.Module)


class AloneJob(Job):
    """One process that does everything; the samples come in the same order as in a job of many.

    Args:
        epochs: How often every sample counts.
        seed: Of the samples' order.
    """

    def __init__(self, *, epochs: int, seed: int) -> None:
        self._epochs, self._seed = epochs, seed
        self._epoch = 0
        self._values = Values()
        self._model: nn.Module | None = None
        self._description: Description | None = None
        self._order: Order | None = None
        self._feed: Feed | None = None
        self._schedule: Schedule | None = None
        self._optimizers: list[SharedOptimizer] = []
        self._place: tuple[int, int] = (0, 0)
        self._open = False
        self._stepped = False
        self._samples = 0
        self._begun = self._said = time.monotonic()

    def prepare(
        self,
        model: Model,
        optimizer: Any,
        loader: Any,
        *,
        scheduler: Any = None,
        scheduler_interval: str = "step",
        accumulate: int = 1,
        batch_size: int | None = None,
        task_batches: int | None = None,
    ) -> tuple[Model, Any, Any]:
        """See ``Job.prepare``."""
        many = isinstance(optimizer, list | tuple)
        optimizers: list[Optimizer] = list(optimizer) if many else [optimizer]
        data = as_loader(loader, batch_size=batch_size)
        described = describe(model, optimizers, data, accumulate=accumulate, task_batches=task_batches)
        order = Order(described.shape, self._seed)
        per_value = steps_per_value(scheduler_interval, order.plan.batches)
        self._model, self._description, self._order = model, described, order
        self._schedule = Schedule(scheduler, described.groups, steps_per_value=per_value)
        self._feed = Feed(data, order)
        self._optimizers = [
            SharedOptimizer(inner, closing=self._closes, stepped=self._step_made) for inner in optimizers
        ]
        # A thread that still runs at the very end would take the interpreter down with it.
        atexit.register(self._feed.close)
        on_main_thread = threading.current_thread() is threading.main_thread()
        if on_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        batches = BatchLoader(begin=self._begin_loop, following=self._following, left=self._left)
        return model, (list(self._optimizers) if many else self._optimizers[0]), batches

    def epochs(self) -> Iterator[int]:
        """See ``Job.epochs``."""
        for epoch in range(self._epochs):
            self._epoch = epoch
            yield epoch
            self._close()

    def _begin_loop(self) -> None:
        self._close()
        assert self._feed is not None
        assert self._order is not None
        self._feed.clear()
        self._place = (0, 0)
        for task in range(self._order.plan.tasks):
            self._feed.assign(self._epoch, task, 0)

    def _left(self) -> int:
        assert self._order is not None
        task, batch = self._place
        return self._order.plan.batches - task * self._order.plan.task_batches - batch

    def _following(self) -> tuple[bool, Any]:
        self._close()
        assert self._feed is not None
        assert self._order is not None
        assert self._schedule is not None
        plan = self._order.plan
        task, batch = self._place
        if task >= plan.tasks:
            return False, None
        self._schedule.apply(self._epoch * plan.batches + task * plan.task_batches + batch)
        data = self._feed.get().data
        self._open, self._stepped = True, False
        return True, data

    def _closes(self) -> bool:
        assert self._order is not None
        assert self._description is not None
        task, batch = self._place
        size = self._description.shape.accumulate
        return (batch + 1) % size == 0 or batch + 1 == self._order.plan.batches_in(task)

    def _step_made(self) -> None:
        self._stepped = True

    def _close(self) -> None:
        """Take the step that the script asked for, with the gradients of that moment."""
        if not self._open:
            return
        assert self._order is not None
        self._open = False
        closes = self._closes()
        if closes and self._stepped:
            for optimizer in self._optimizers:
                _step(optimizer)
        for optimizer in self._optimizers:
            optimizer.in_accumulation(not closes)
        task, batch = self._place
        self._samples += self._order.plan.samples_in(task, batch)
        done = batch + 1 == self._order.plan.batches_in(task)
        self._place = (task + 1, 0) if done else (task, batch + 1)
        self._say()

    def _say(self) -> None:
        now = time.monotonic()
        if now - self._said < PROGRESS_SECONDS:
            return
        self._said = now
        assert self._order is not None
        left = self._left() / self._order.plan.batches
        rate = self._samples / (now - self._begun)
        values = " ".join(f"{name} {value:.4g}" for name, value in self._values.latest.items())
        line = f"epoch {self._epoch + 1}/{self._epochs}  {1 - left:4.0%}  {rate:,.0f} samples/s  {values}"
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - the script's own terminal

    def log(self, **values: Any) -> None:
        """See ``Job.log``."""
        self._values.add(values)
        self._values.collect()

    def evaluate(self, score: Callable[[Any], Any]) -> Any:
        """See ``Job.evaluate``."""
        assert self._model is not None
        self._close()
        return json.loads(scored(self._model, score))

    def save(self, path: str | os.PathLike[str]) -> str:
        """See ``Job.save``."""
        assert self._model is not None
        self._close()
        save_model(self._model, Path(path))
        return os.path.abspath(path)  # noqa: PTH100 - of a name


def _step(optimizer: SharedOptimizer) -> None:
    """Let the user's own optimizer step with the gradients that were taken, whatever was done to them since."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    present = [parameter.grad for parameter in parameters]
    taken = optimizer.take()
    for parameter in parameters:
        parameter.grad = taken.get(id(parameter))
    optimizer.inner.step()
    for parameter, gradient in zip(parameters, present, strict=True):
        parameter.grad = gradient
