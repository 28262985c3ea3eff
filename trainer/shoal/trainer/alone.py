"""The training session of a script under plain ``python``: one process, torch's optimizers, no servers."""

from __future__ import annotations

import atexit
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from shoal.tensors.constraints import constrain, is_constrained
from shoal.trainer.data.current_batch import Batch, Place
from shoal.trainer.engine.exports import average_path, other_format, save_model
from shoal.trainer.engine.sparse_tables import Tables
from shoal.trainer.logged_values import scored
from shoal.trainer.optim.optimizer import plain_step, run_post_hooks, run_pre_hooks
from shoal.trainer.refusal import Refused
from shoal.trainer.script.description import ScriptDescription
from shoal.trainer.session import TrainingSession

__all__ = ["AloneJob"]

PROGRESS_SECONDS = 2.0
"""Interval of the progress line. Seconds."""
SKIPS_WORTH_A_WARNING = 0.1
"""Share of skipped samples above which a warning is printed."""


class AloneJob(TrainingSession):
    """The training session without a job; the order of samples is the same as in a job with many trainers.

    Args:
        epochs: Number of epochs; every sample counts once in each.
        seed: Seed of the order of samples.
    """

    def __init__(self, *, epochs: int, seed: int) -> None:
        super().__init__(epochs=epochs, seed=seed)
        self._place: tuple[int, int] = (0, 0)
        self._samples = self._skipped = 0
        self._average: list[Tensor] = []
        self._started = self._printed = time.monotonic()
        self._process = os.getpid()
        atexit.register(self._report_unfinished)

    def _register(self, described: ScriptDescription) -> None:
        tables = Tables(described.tables, None)
        for table, spec in zip(described.tables, described.shape.tables, strict=True):
            if spec.family in {"normal", "uniform"}:
                tables.fill(table, spec, seed=self._seed)
        pairs = zip(described.shape.dense, described.dense, strict=True)
        self._constrained = [(p, dense) for dense, p in pairs if is_constrained(dense)]

    def _begin(self) -> None:
        """Do nothing: the model already has its values."""

    def _report_unfinished(self) -> None:
        if os.getpid() != self._process:
            return  # a child process that the script forked
        reason = self._unfinished()
        # If an error ended the script, its traceback is more useful.
        if reason and not Refused.raised and getattr(sys, "last_value", None) is None:
            self._print(reason)

    def _warn(self, text: str) -> None:
        self._print(f"warning: {text}")

    def _print(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - the script's own terminal

    # --- Batches ---

    def _epoch_over(self) -> bool:
        self._place = (0, 0)
        if self._stopping or self._epoch + 1 == self._epochs:
            return True
        self._epoch += 1
        return False

    def _end(self) -> None:
        self._feed.close()
        total = self._epochs * self._order.plan.samples_per_epoch
        if self._skipped > SKIPS_WORTH_A_WARNING * total:
            self._print(
                f"{self._skipped:,} of {total:,} samples were skipped: the script made no optimizer step for them (a check "
                "for NaN that always fires, an overflow of GradScaler, backward without step)"
            )

    def _pass_begins(self) -> None:
        """Do nothing: ``_place`` has the next batch."""

    def _next_place(self) -> Place | None:
        task, batch = self._place
        if task >= self._order.plan.tasks or (self._stopping and batch == 0):  # a task that was begun is completed
            return None
        return self._epoch, task, batch

    def _assign_from(self, place: Place) -> None:
        epoch, task, batch = place
        self._feed.assign(epoch, task, batch)
        for later in range(task + 1, self._order.plan.tasks):
            self._feed.assign(epoch, later, 0)

    def _batch_begins(self, batch: Batch) -> None:
        del batch
        self._print_progress()

    def _take_step(self, batch: Batch, optimizer: Optimizer, closure: Callable[[], Any] | None) -> Any:
        del batch
        run_pre_hooks(optimizer)
        with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 - the optimizer may use the whole of a sparse table
            result = plain_step(optimizer, closure)
        self._constrain([optimizer])
        run_post_hooks(optimizer)
        return result

    def _constrain(self, optimizers: Sequence[Optimizer]) -> None:
        """Apply the bounds and norms to the parameters of these optimizers."""
        if self._constrained:
            own = {id(p) for one in optimizers for group in one.param_groups for p in group["params"]}
            with torch.no_grad():
                for parameter, dense in self._constrained:
                    if id(parameter) in own:
                        constrain(parameter, dense)
        self._watch.set_reference()

    def _commit(self, batch: Batch, *, skipped: bool) -> None:
        batch.committed = True
        self._reuse.committed()
        if skipped:
            plan = self._order.plan
            self._skipped += sum(plan.samples_in(batch.task, k) for k in range(batch.first, batch.batch + 1))
            return
        others = [one for one in self._optimizers if id(one) not in batch.stepped]
        if others:
            self._constrain(others)
        if self._description.shape.ema:
            self._move_average(self._description.shape.ema)

    def _move_average(self, decay: float) -> None:
        with torch.no_grad():
            if not self._average:
                self._average = [parameter.detach().clone() for parameter in self._description.dense]
            else:
                torch._foreach_lerp_(self._average, [p.detach() for p in self._description.dense], 1 - decay)

    def _accumulates(self, batch: Batch) -> None:
        self._count(batch)

    def _closed(self, batch: Batch) -> None:
        if batch.batch + 1 == self._order.plan.batches_in(batch.task):
            self._description.buffer_tensors()
        self._count(batch)

    def _count(self, batch: Batch) -> None:
        plan = self._order.plan
        self._samples += plan.samples_in(batch.task, batch.batch)
        done = batch.batch + 1 == plan.batches_in(batch.task)
        self._place = (batch.task + 1, 0) if done else (batch.task, batch.batch + 1)

    def _print_progress(self) -> None:
        now = time.monotonic()
        if now - self._printed < PROGRESS_SECONDS:
            return
        self._printed = now
        task, batch = self._place
        plan = self._order.plan
        done = (task * plan.task_batches + batch) / plan.batches
        rate = self._samples / (now - self._started)
        values = " ".join(f"{name} {value:.4g}" for name, value in self._values.latest.items())
        self._print(f"epoch {self._epoch + 1}/{self._epochs}  {done:4.0%}  {rate:,.0f} samples/s  {values}")

    # --- Scores and files ---

    def _score(self, epoch: int, number: int, score: Callable[[Any], Any]) -> Any:
        del epoch, number
        return json.loads(scored(self._module, score))

    def _metric(self, epoch: int, number: int, value: float) -> bool:
        del epoch, number, value
        return True

    def _folder(self) -> Path:
        return Path.cwd()

    def _write(self, path: Path, epoch: int, number: int) -> None:
        del epoch, number
        save_model(self._module, path)
        if text := other_format(path):
            self._warn(text)
        if self._description.shape.ema:
            values = self._average or [p.detach() for p in self._description.dense]
            named = {d.name: value for d, value in zip(self._description.shape.dense, values, strict=True)}
            save_model(self._module, average_path(path), instead=named)

    def _stop(self, reason: str) -> None:
        self._print(f"stopped by the script in epoch {self._epoch + 1}: {reason}")

    def _complete_stopped(self) -> None:
        self._close()
        self._finished = True
        self._end()
