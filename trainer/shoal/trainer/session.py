"""The training session: follows the script's loop, in the same way alone and in a job of many processes.

It tracks the open batch, the steps that count, the passes over the loader and the script's changes of the model, so that a
script is refused, or trains in the same order, in both cases. ``alone`` and ``distributed`` implement the abstract methods.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import nn
from torch.optim import Optimizer

from shoal.trainer.data.current_batch import Batch, Pass, Place
from shoal.trainer.data.dataset import describe_data
from shoal.trainer.data.feed import BatchFeed
from shoal.trainer.data.loader import BatchLoader
from shoal.trainer.data.sample_order import SampleOrder
from shoal.trainer.job import Job
from shoal.trainer.logged_values import Values, numbers
from shoal.trainer.optim.accumulation import Accumulation
from shoal.trainer.optim.optimizer import closed_over, share, zero_together
from shoal.trainer.optim.schedule import LearningRateSchedule
from shoal.trainer.refusal import Refusal, Refused
from shoal.trainer.script import sentences
from shoal.trainer.script.description import AfterStep, ScriptDescription, describe
from shoal.trainer.script.foreign_optimizers import guard
from shoal.trainer.script.meta_tables import materialise
from shoal.trainer.script.mutations import MutationDetector, refuse_averages
from shoal.trainer.script.parameter_reuse import Reuse
from shoal.trainer.script.prepare_checks import check_optimizers
from shoal.trainer.script.tensor_names import plain_module

__all__ = ["TrainingSession"]

Model = TypeVar("Model", bound=nn.Module)


class TrainingSession(Job):
    """The job of one script.

    Args:
        epochs: Number of epochs; every sample counts once in each.
        seed: Seed of the order of samples.
    """

    def __init__(self, *, epochs: int, seed: int) -> None:
        self._epochs, self._seed = epochs, seed
        self._epoch = 0
        self._values = Values()
        self._prepared = False
        self._open: Batch | None = None
        self._optimizers: list[Optimizer] = []
        self._pass = Pass(0)
        self._passes = 0
        self._exhausted = False
        self._begun = self._finished = self._inside = False
        self._stopping = ""
        self._calls: dict[tuple[str, int], int] = {}

    # --- Preparing ---

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
        ema: float = 0.0,
        clamp: Mapping[str, tuple[float, float]] | None = None,
        max_norm: Mapping[str, float] | None = None,
    ) -> tuple[Model, Any, Any]:
        """See ``Job.prepare``."""
        if self._prepared:
            raise Refused(sentences.PREPARE_TWICE)
        many = isinstance(optimizer, list | tuple)
        optimizers: list[Optimizer] = list(optimizer) if many else [optimizer]
        try:
            check_optimizers(optimizers)
            data = describe_data(loader, batch_size=batch_size)
            module = plain_module(model)
            drawn = materialise(module, optimizers) if isinstance(module, nn.Module) else frozenset()
            after = AfterStep(ema, clamp or {}, max_norm or {})
            described = describe(
                module, optimizers, data, accumulate=accumulate, task_batches=task_batches, after=after, drawn=drawn
            )
            self._module, self._description, self._optimizers = module, described, optimizers
            self._register(described)
            self._order = SampleOrder(described.shape, self._seed, data.order)
            self._schedule = self._schedule_of(scheduler, scheduler_interval)
        except Refusal as error:
            raise Refused(str(error)) from None
        self._feed = BatchFeed(data.loader, self._order)
        self._accumulation = Accumulation(described.dense)
        self._reuse = Reuse(module, optimizers, used=self._used)
        self._held = {id(one): [id(group) for group in one.param_groups] for one in optimizers}
        for one in optimizers:
            share(one, self)
        if accumulate > 1:
            zero_together(module, optimizers)
        self._begin()
        self._watch = MutationDetector(
            module, described.watched, groups=described.groups, versions_constant=self._writes_past_counters
        )
        refuse_averages(module)
        guard(self)
        self._prepared = True
        batches = BatchLoader(data.loader, self, batches=self._order.plan.batches)
        return model, (optimizers if many else optimizer), batches

    def _schedule_of(self, scheduler: Any, interval: str) -> LearningRateSchedule:
        several = isinstance(scheduler, list | tuple)
        return LearningRateSchedule(
            list(scheduler) if several else [scheduler] if scheduler is not None else [],
            self._description.groups,
            interval=interval,
            steps=self._order.plan.steps(self._description.shape.accumulate),
            epochs=self._epochs,
            place=self._scheduler_place,
            measured=self._measured,
        )

    _writes_past_counters = False
    """Whether the job's own writes into parameters do not increase autograd's version counters."""

    @abstractmethod
    def _register(self, described: ScriptDescription) -> None:
        """Register the model spec; afterwards epochs, seed and the current epoch are those of the job."""

    @abstractmethod
    def _begin(self) -> None:
        """Load the job's parameters, fixed tensors and buffers into the model."""

    # --- Epochs ---

    def epochs(self) -> Iterator[int]:
        """See ``Job.epochs``."""
        if not self._prepared:
            raise Refused(sentences.EPOCHS_BEFORE_PREPARE)
        if self._begun:
            raise Refused(sentences.EPOCHS_TWICE)
        self._begun = True
        return self._run_epochs()

    def _run_epochs(self) -> Iterator[int]:
        while True:
            self._inside, self._exhausted = True, False
            self._calls.clear()
            try:
                yield self._epoch
            except GeneratorExit:
                self._inside = False
                raise
            self._close()
            self._inside = False
            if not self._exhausted and not self._stopping:
                raise Refused(sentences.unfinished_epoch(self._epoch))
            if not self._stopping:
                self._schedule.ended("epoch", self._passes, lambda _: True)
            if self._epoch_over():
                break
        self._finished = True
        self._end()

    @abstractmethod
    def _epoch_over(self) -> bool:
        """Advance to the next epoch after the script's loop finished one; return whether it was the last one."""

    @abstractmethod
    def _end(self) -> None:
        """Finish after the last epoch, when the job is complete."""

    # --- Passes and batches ---

    def begin_pass(self) -> int:
        """See ``Passes.begin_pass``."""
        self._close()
        if self._exhausted and self._inside:
            raise Refused(sentences.second_pass(self._epoch, trained=self._pass.trained))
        self._watch.check_all()
        self._passes += 1
        self._pass = Pass(self._passes)
        self._feed.begin_pass()
        self._pass_begins()
        return self._passes

    @abstractmethod
    def _pass_begins(self) -> None:
        """Start a pass over the loader in the current epoch."""

    def following(self, number: int) -> tuple[bool, Any]:
        """See ``Passes.following``."""
        if number != self._pass.number:
            raise Refused(sentences.OLD_ITERATOR)
        accumulating = self._close()
        if not self._inside and self._pass.batches:
            raise Refused(sentences.OUTSIDE_OF_EPOCHS)
        place = accumulating or self._next_place()
        if place is None:
            self._finish_pass()
            return False, None
        if not accumulating:
            self._first = place[2]
        data = self._data(place)
        self._open = Batch(*place, self._first)
        self._pass.batches += 1
        self._schedule.apply(self._step_of(self._open))
        self._batch_begins(self._open)
        self._watch.batch_begins()
        return True, data

    def _data(self, place: Place) -> Any:
        """Return the data of a batch; reassign the feed if it would return another batch."""
        self._fetching = place
        if not self._feed.expects(place):
            self._feed.clear()
            self._assign_from(place)
        try:
            return self._feed.get().data
        except Refusal as error:
            raise Refused(str(error)) from None

    _first = 0
    _fetching: Place | None = None

    def leave_pass(self, number: int) -> None:
        """See ``Passes.leave_pass``."""
        if number != self._pass.number:
            return
        if self._open is not None:
            self._open.abandoned = True
        self._feed.end_pass()

    def _finish_pass(self) -> None:
        self._exhausted = True
        self._fetching = None
        self._feed.end_pass()
        if self._pass.batches > 1 and not self._pass.trained and not self._stopping:
            self._warn(sentences.untrained_pass(self._epoch))
        self._watch.check_all()
        self._watch.set_reference(whole=True)

    @abstractmethod
    def _warn(self, text: str) -> None:
        """Report a warning to the user."""

    @abstractmethod
    def _next_place(self) -> Place | None:
        """Return the next batch of the current epoch, with the newest parameters loaded; None at the end of the epoch."""

    @abstractmethod
    def _assign_from(self, place: Place) -> None:
        """Assign the coming batches to the feed, beginning with this one."""

    @abstractmethod
    def _batch_begins(self, batch: Batch) -> None:
        """Prepare for a batch that the script is about to receive."""

    def _step_of(self, batch: Batch) -> int:
        """Return the number of the optimizer step that closes the batch's accumulation, in the job's order."""
        plan, size = self._order.plan, self._description.shape.accumulate
        return batch.epoch * plan.steps(size) + batch.task * plan.task_batches // size + batch.batch // size

    def _closes(self, batch: Batch) -> bool:
        size = self._description.shape.accumulate
        return (batch.batch + 1) % size == 0 or batch.batch + 1 == self._order.plan.batches_in(batch.task)

    def _close(self) -> Place | None:
        """Close the open batch; return the next batch of an accumulation that is not complete, otherwise None."""
        batch, self._open = self._open, None
        if batch is None:
            return None
        self._watch.check()
        gradients = self._accumulation.end_batch(stepped=bool(batch.step_called), accumulating=not self._closes(batch))
        self._pass.trained = self._pass.trained or gradients or bool(batch.step_called)
        if batch.abandoned and not batch.stepped:
            # The batch is processed again, as it was not trained. Earlier batches of its accumulation are computed again, too.
            if batch.first != batch.batch:
                self._clear_gradients()
            return None
        if not self._closes(batch):
            self._accumulates(batch)
            return batch.epoch, batch.task, batch.batch + 1
        if not batch.abandoned:
            self._schedule.ended("step", (self._passes, self._pass.batches), lambda one: id(one) in batch.stepped)
        if not batch.committed:
            self._commit(batch, skipped=not batch.stepped)
        self._closed(batch)
        return None

    def _clear_gradients(self) -> None:
        for group in self._description.groups:
            for parameter in group["params"]:
                parameter.grad = None

    @abstractmethod
    def _accumulates(self, batch: Batch) -> None:
        """Note the end of a batch whose gradients belong to a later step."""

    @abstractmethod
    def _commit(self, batch: Batch, *, skipped: bool) -> None:
        """Make the batch's steps part of the job, or count the batch as skipped."""

    @abstractmethod
    def _closed(self, batch: Batch) -> None:
        """Note the end of a batch that was committed."""

    # --- Steps (the optimizers' Stepper) ---

    def closes(self) -> bool:
        """See ``Stepper.closes``."""
        return self._open is None or self._closes(self._open)

    def may_clear(self, optimizer: Optimizer) -> bool:
        """See ``Stepper.may_clear``."""
        batch = self._open
        self._accumulation.cleared()
        if batch is None:
            return True
        # Before the batch's step the gradients are those of the accumulation so far; after it, of the next one.
        return self._closes(batch) if id(optimizer) in batch.step_called else batch.first == batch.batch

    def scaled(self, optimizer: Optimizer) -> None:
        """See ``Stepper.scaled``."""
        if self._open is not None:
            self._open.step_called.add(id(optimizer))

    def step(self, optimizer: Optimizer, closure: Callable[[], Any] | None) -> Any:
        """See ``Stepper.step``."""
        batch = self._open
        if batch is None or batch.abandoned:
            raise Refused(sentences.STEP_OUTSIDE_OF_LOOP)
        if not self._inside:
            raise Refused(sentences.STEP_OUTSIDE_OF_EPOCHS)
        if not self._closes(batch):
            batch.step_called.add(id(optimizer))
            return closed_over(closure)
        if id(optimizer) in batch.stepped:
            raise Refused(sentences.second_step(optimizer))
        if id(optimizer) in batch.scheduled:
            raise Refused(sentences.SCHEDULER_FIRST)
        if [id(group) for group in optimizer.param_groups] != self._held[id(optimizer)]:
            raise Refused(sentences.groups_changed(optimizer))
        if batch.committed:
            raise Refused(sentences.used_between(batch.used, optimizer))
        self._accumulation.check()
        self._watch.check()
        try:
            self._schedule.check()
        except Refusal as error:
            raise Refused(str(error)) from None
        result = self._take_step(batch, optimizer, closure)
        batch.step_called.add(id(optimizer))
        batch.stepped.add(id(optimizer))
        self._reuse.stepped(optimizer)
        if len(batch.stepped) == len(self._optimizers):
            self._commit(batch, skipped=False)
        return result

    def foreign_step(self, optimizer: Optimizer) -> None:
        """See ``Guarded.foreign_step``."""
        batch = self._open
        if batch is not None and not batch.abandoned and not self._scoring:
            raise Refused(sentences.foreign_step(optimizer))

    @abstractmethod
    def _take_step(self, batch: Batch, optimizer: Optimizer, closure: Callable[[], Any] | None) -> Any:
        """Execute one optimizer's step, or keep its gradients for the commit; return the closure's result."""

    def _scheduler_place(self, optimizer: Optimizer) -> tuple[str, Any]:
        batch = self._open
        if batch is None or batch.abandoned:
            if self._inside and not self._exhausted and not self._stopping and self._pass.batches:
                raise Refused(sentences.unfinished_epoch(self._epoch))
            behind = self._inside and (self._exhausted or bool(self._stopping))
            return "behind" if behind else "outside", self._passes
        key = (self._passes, self._pass.batches)
        if not self._closes(batch):
            return "accumulating", key
        if id(optimizer) in batch.stepped:
            return "stepped", key
        batch.scheduled.add(id(optimizer))
        return "open", key

    # --- Values, scores, files ---

    def log(self, **values: Any) -> None:
        """See ``Job.log``."""
        self._values.add(values)
        self._values.collect()

    def _call(self, kind: str) -> tuple[int, int]:
        """Return the epoch of a call, and its number among the calls of its kind in that epoch."""
        epoch = self._epochs if self._finished else self._epoch
        number = self._calls.get((kind, epoch), 0)
        self._calls[kind, epoch] = number + 1
        return epoch, number

    def evaluate(self, score: Callable[[Any], Any]) -> Any:
        """See ``Job.evaluate``."""
        self._need_prepared("job.evaluate")
        self._check_model()
        self._scoring = True
        try:
            result = self._score(*self._call("evaluate"), score)
        finally:
            self._scoring = False
        self._scores = numbers(result)
        return result

    _scoring = False
    _scores: frozenset[float] = frozenset()
    """The numbers of the last evaluation."""

    def _measured(self, value: float) -> bool:
        """Record the metric that the script passed to ReduceLROnPlateau; return whether it counts."""
        if value not in self._scores and value == value:  # noqa: PLR0124 - NaN never equals a score
            raise Refused(sentences.foreign_metric(value))
        return self._metric(*self._call("metric"), value)

    @abstractmethod
    def _metric(self, epoch: int, number: int, value: float) -> bool:
        """Record the n-th metric of an epoch; return whether it is new in this trainer."""

    @abstractmethod
    def _score(self, epoch: int, number: int, score: Callable[[Any], Any]) -> Any:
        """Return the n-th score of an epoch."""

    def save(self, path: str | os.PathLike[str]) -> str:
        """See ``Job.save``."""
        self._need_prepared("job.save")
        if self._begun and not self._inside and not self._finished:
            if not self._stopping:
                raise Refused(sentences.left_epochs(self._epoch, self._epochs))
            self._complete_stopped()
        self._check_model()
        target = self._folder() / path
        self._write(target, *self._call(f"save {target}"))
        return str(target)

    @abstractmethod
    def _folder(self) -> Path:
        """Return the directory to which relative paths refer."""

    @abstractmethod
    def _write(self, path: Path, epoch: int, number: int) -> None:
        """Write the current model, once for all trainers."""

    def stop(self, reason: str) -> None:
        """See ``Job.stop``."""
        self._need_prepared("job.stop")
        if not self._stopping:
            self._stopping = str(reason) or "no reason given"
            self._stop(self._stopping)

    @abstractmethod
    def _stop(self, reason: str) -> None:
        """Stop the job early."""

    def _check_model(self) -> None:
        """Before an evaluation or a save: refuse writes of the script into the model, and commit the steps made so far."""
        self._description.buffer_tensors()
        if self._open is None:
            self._watch.check_all()
            return
        self._watch.check()
        self._used("job.evaluate or job.save")

    def _used(self, what: str) -> None:
        """Commit the open batch's steps because the model is used; further steps for the batch are then refused."""
        batch = self._open
        if batch is not None and batch.stepped and not batch.committed:
            batch.used = what
            self._commit(batch, skipped=False)

    @abstractmethod
    def _complete_stopped(self) -> None:
        """Complete a job that the script stopped before it left its loops."""

    def _need_prepared(self, what: str) -> None:
        if not self._prepared:
            raise Refused(f"{what} before job.prepare(...): prepare the model, the optimizer and the loader first")

    def _unfinished(self) -> str:
        """Return why the job is not complete although the script ends; empty if it is complete."""
        if self._finished or self._stopping:
            return ""
        in_batch = self._open is not None and not self._open.abandoned
        return sentences.unfinished(
            self._epoch, self._epochs, prepared=self._prepared, begun=self._begun, in_batch=in_batch
        )
