"""The job of many processes, in one trainer's process."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from shoal.pserver.optimizers import group_options
from shoal.trainer.describe import Description, Refusal, as_loader, describe
from shoal.trainer.embeddings import TableHooks, rows_of
from shoal.trainer.engine import Engine, Refused
from shoal.trainer.exports import save_model, why_unwritable
from shoal.trainer.feed import FedBatch, Feed
from shoal.trainer.job import Job, seed_everything
from shoal.trainer.loop import BatchLoader, Values, scored
from shoal.trainer.optimizer import SharedOptimizer
from shoal.trainer.order import Order
from shoal.trainer.schedule import Schedule, steps_per_value
from shoal.trainer.servers import Gradients, ServerLost
from shoal.wire import auth, environment
from shoal.wire import messages as m
from shoal.wire.rows import first_values

__all__ = ["DistributedJob"]

REPORT_SECONDS = 0.2
ROWS_AT_ONCE = 1 << 16

Model = TypeVar("Model", bound=nn.Module)


class DistributedJob(Job):
    """One trainer's view of the job.

    Args:
        engine: Its part in the job, not started yet.
        index: Of this trainer.
    """

    def __init__(self, engine: Engine, *, epochs: int, seed: int, index: int) -> None:
        self._engine = engine
        self._epochs, self._seed, self._index = epochs, seed, index
        self._values = Values()
        self._model: nn.Module | None = None
        self._description: Description | None = None
        self._order: Order | None = None
        self._feed: Feed | None = None
        self._hooks: TableHooks | None = None
        self._schedule: Schedule | None = None
        self._optimizers: list[SharedOptimizer] = []
        self._epoch = 0
        self._open: tuple[m.Lease, int] | None = None
        self._first = 0
        self._stepped = False
        self._furthest: dict[tuple[int, int], int] = {}
        self._counts = {"batches": 0, "skipped": 0, "replayed": 0}
        self._reported = 0.0
        self._reported_not_finite = 0

    @classmethod
    def from_environment(cls, *, epochs: int, seed: int) -> DistributedJob:
        """Join the job that this process was started for."""
        seed = environment.number(environment.SEED) if os.environ.get(environment.SEED) else seed
        seed_everything(seed)
        if "OMP_NUM_THREADS" not in os.environ and not torch.cuda.is_available():
            torch.set_num_threads(1)
        index = environment.number(environment.INDEX)
        engine = Engine(
            environment.text(environment.MASTER),
            identity=auth.Identity(role="trainer", index=index, life=auth.new_life()),
            token=auth.Token.read(environment.text(environment.TOKEN_FILE)),
            uid=environment.text(environment.UID),
            epochs=epochs,
            seed=seed,
        )
        job = cls(engine, epochs=epochs, seed=seed, index=index)
        job._watch_the_end()
        return job

    def _watch_the_end(self) -> None:
        """SIGTERM: finish the batch, hand back, leave. An exception: tell the master. Any end: say farewell."""
        engine = self._engine

        def drain(*_: object) -> None:
            if engine.registered is None:
                sys.exit(0)
            engine.draining.set()

        signal.signal(signal.SIGTERM, drain)
        before = sys.excepthook

        def failed(kind: type[BaseException], error: BaseException, trace: Any) -> None:
            before(kind, error, trace)
            if not issubclass(kind, KeyboardInterrupt):
                engine.failed(self._explain(error))

        sys.excepthook = failed
        atexit.register(self._leave)

    def _explain(self, error: BaseException) -> str:
        text = "".join(traceback.format_exception(error)).rstrip()
        if self._open is None or self._order is None:
            return text
        lease, batch = self._open
        indices = self._order.indices(lease.epoch, lease.task, batch)
        shown = ", ".join(map(str, indices[:20])) + (", ..." if len(indices) > 20 else "")
        return f"{text}\n(in batch {batch} of task {lease.task}, epoch {lease.epoch + 1}: samples {shown})"

    def _leave(self) -> None:
        if self._feed is not None:
            self._feed.close()
        self._report(now=True)
        self._engine.leave()

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
    ) -> tuple[Model, Any, Any]:
        """See ``Job.prepare``."""
        many = isinstance(optimizer, list | tuple)
        optimizers: list[Optimizer] = list(optimizer) if many else [optimizer]
        try:
            data = as_loader(loader, batch_size=batch_size)
            described = describe(model, optimizers, data, accumulate=accumulate, task_batches=task_batches)
            self._model, self._description = model, described
            self._join(described)
            self._check_output()
            self._order = Order(described.shape, self._engine.info.seed)
            per_value = steps_per_value(scheduler_interval, self._order.plan.batches)
            self._schedule = Schedule(scheduler, described.groups, steps_per_value=per_value)
        except Refusal as error:
            raise Refused(str(error)) from None
        self._feed = Feed(data, self._order)
        self._engine.on_new_lease = lambda lease: self._assign(lease, 0)
        for lease in self._engine.work.waiting:
            self._assign(lease, 0)
        self._hooks = TableHooks(described.tables, self._fetch)
        self._optimizers = [
            SharedOptimizer(inner, closing=self._closes, stepped=self._step_made) for inner in optimizers
        ]
        self._take_buffers()
        torch.manual_seed(hash((self._seed, self._index, time.time_ns())) & (2**63 - 1))
        batches = BatchLoader(begin=self._begin_loop, following=self._following, left=self._left)
        return model, (list(self._optimizers) if many else self._optimizers[0]), batches

    def _join(self, described: Description) -> None:
        """Register; if this is the first trainer, its parameters are the job's initial ones."""
        initial = [parameter.detach().reshape(-1).cpu().clone() for parameter in described.dense]
        engine = self._engine
        engine.provide = lambda message: engine.servers.provide(message, initial)
        engine.start(described.shape)
        engine.servers.parameters = [parameter.data for parameter in described.dense]
        self._epoch = engine.info.epoch

    def _check_output(self) -> None:
        """Now, not when all is trained.

        Raises:
            Refusal: The model could not be written in the end.
        """
        output = self._engine.info.output
        why = why_unwritable(Path(output).absolute()) if output else ""
        if why:
            fix = "name another path, or on a cluster a volume with spec.output.volumeClaimName"
            raise Refusal(f"spec.output.path {output}: the model cannot be written there: {why}; {fix}")

    def _assign(self, lease: m.Lease, first: int) -> None:
        if self._feed is not None:
            self._feed.assign(lease.epoch, lease.task, first)

    def _fetch(self, wanted: list[tuple[int, Tensor]]) -> list[Tensor]:
        engine = self._engine
        return engine.retry(lambda: engine.servers.rows(wanted, idle=engine.idle))

    # --- The loop ---

    def epochs(self) -> Iterator[int]:
        """See ``Job.epochs``."""
        last = self._engine.info.epochs - 1
        while True:
            yield self._epoch
            self._close()
            if self._epoch < last:
                self._epoch += 1
            elif isinstance(self._engine.ask(m.Finish(), m.Complete, m.More), m.Complete):
                break
        self._report(now=True)
        if self._engine.info.output:
            self.save(self._engine.info.output)

    def _begin_loop(self) -> None:
        self._close()
        self._engine.loop_begins(self._epoch)

    def _left(self) -> int:
        return self._engine.left_in_epoch

    def _following(self) -> tuple[bool, Any]:
        """Close the batch before, and get the next one."""
        accumulating = self._close()
        if accumulating is not None:
            lease, batch = accumulating
        else:
            found = self._engine.next_batch(self._epoch)
            if found is None:
                self._report(now=True)
                return False, None
            lease, batch = found
            self._first = batch
        data = self._fed(lease, batch).data
        self._count(lease, batch)
        self._open = (lease, batch)
        self._stepped = False
        for optimizer in self._optimizers:
            optimizer.in_accumulation(accumulating is not None)
        assert self._hooks is not None
        assert self._order is not None
        assert self._schedule is not None
        self._hooks.new_batch()
        plan = self._order.plan
        self._schedule.apply(lease.epoch * plan.batches + lease.task * plan.task_batches + batch)
        return True, data

    def _count(self, lease: m.Lease, batch: int) -> None:
        task = (lease.epoch, lease.task)
        self._counts["batches"] += 1
        if batch <= self._furthest.get(task, -1):
            self._counts["replayed"] += 1
        self._furthest = {task: max(batch, self._furthest.get(task, -1))}

    def _fed(self, lease: m.Lease, batch: int) -> FedBatch:
        """The batch's data; where the feed has other plans, it is told anew."""
        assert self._feed is not None
        if not self._feed.expects((lease.epoch, lease.task, batch)):
            self._feed.clear()
            self._assign(lease, batch)
            for later in self._engine.work.waiting:
                self._assign(later, 0)
        return self._feed.get()

    def _closes(self) -> bool:
        """Whether the open batch is the last of its accumulation."""
        if self._open is None or self._order is None or self._description is None:
            return True
        lease, batch = self._open
        size = self._description.shape.accumulate
        return batch + 1 - self._first >= size or batch + 1 == self._order.plan.batches_in(lease.task)

    def _step_made(self) -> None:
        self._stepped = True

    def _close(self) -> tuple[m.Lease, int] | None:
        """Push the open batch. In the middle of an accumulation: not yet; the next batch of it is returned."""
        if self._open is None:
            return None
        lease, batch = self._open
        if not self._closes():
            self._open = None
            self._engine.leave_if_draining()
            return lease, batch + 1
        self._open = None
        self._merge_buffers(lease, batch)
        pushed = self._engine.close_batch(self._push(lease, batch), self._gradients())
        if pushed and not self._stepped:
            self._counts["skipped"] += 1
        self._report()
        return None

    def _push(self, lease: m.Lease, batch: int) -> m.Push:
        assert self._order is not None
        assert self._description is not None
        plan, described = self._order.plan, self._description
        batches = batch + 1 - self._first
        return m.Push(
            grants=[],
            epoch=lease.epoch,
            task=lease.task,
            first=self._first,
            batches=batches,
            samples=sum(plan.samples_in(lease.task, k) for k in range(self._first, batch + 1)),
            skipped=not self._stepped,
            absent=[],
            options=_changed(described),
            parts=[],
            next_epoch=lease.epoch,
            next_task=lease.task,
            values=True,
        )

    def _gradients(self) -> Gradients:
        assert self._description is not None
        described = self._description
        if not self._stepped:
            return Gradients(dense=[None] * len(described.dense))
        taken: dict[int, Tensor] = {}
        try:
            for optimizer in self._optimizers:
                taken |= optimizer.take()
        except Refusal as error:
            raise Refused(str(error)) from None
        dense = [taken.get(id(parameter)) for parameter in described.dense]
        tables = []
        for table in described.tables:
            gradient = taken.get(id(table.module.weight))
            if gradient is not None:
                tables.append((table.index, *rows_of(gradient)))
        flat = [None if gradient is None else gradient.detach().reshape(-1).cpu() for gradient in dense]
        return Gradients(dense=flat, tables=tables)

    # --- Buffers ---

    def _take_buffers(self) -> None:
        """Begin with the buffers as the job has them."""
        assert self._description is not None
        described, engine = self._description, self._engine
        if described.buffers:
            engine.retry(lambda: engine.servers.merge_buffers(described.buffers, trainers=0, idle=engine.idle))

    def _merge_buffers(self, lease: m.Lease, batch: int) -> None:
        """With a task's last batch, merge the module's buffers with the job's (BatchNorm's running statistics).

        They are statistics, not counts: if their server is away just now, the next task's will do.
        """
        assert self._order is not None
        assert self._description is not None
        buffers = self._description.buffers
        if buffers and batch + 1 == self._order.plan.batches_in(lease.task):
            with contextlib.suppress(ServerLost):
                self._engine.servers.merge_buffers(
                    buffers, trainers=max(1, self._engine.trainers), idle=self._engine.idle
                )

    # --- Reports ---

    def log(self, **values: Any) -> None:
        """See ``Job.log``."""
        self._values.add(values)

    def _report(self, *, now: bool = False) -> None:
        clock = time.monotonic()
        if not now and clock - self._reported < REPORT_SECONDS:
            return
        self._values.collect()
        not_finite = self._values.not_finite - self._reported_not_finite
        if not self._counts["batches"] and not self._values.latest:
            return
        message = m.Log(values=self._values.latest, not_finite=not_finite, **self._counts)
        if self._engine.send(message):
            self._reported = clock
            self._reported_not_finite += not_finite
            self._counts = dict.fromkeys(self._counts, 0)

    # --- Scores and models ---

    def _bring_all(self) -> None:
        """Have the newest parameters and buffers of all slots."""
        engine = self._engine
        engine.retry(lambda: engine.servers.pull(self._epoch, 0, idle=engine.idle))
        self._take_buffers()
        if self._hooks is not None:
            self._hooks.new_batch()

    def evaluate(self, score: Callable[[Any], Any]) -> Any:
        """See ``Job.evaluate``."""
        assert self._model is not None
        self._close()
        epoch = self._epoch
        answer = self._engine.ask(m.Evaluate(epoch=epoch), m.EvaluateTurn, m.Evaluated)
        if isinstance(answer, m.EvaluateTurn):
            self._bring_all()
            text = scored(self._model, score)
            if self._hooks is not None:
                self._hooks.new_batch()
            answer = self._engine.ask(m.Evaluated(epoch=epoch, score=text), m.Evaluated)
        return json.loads(answer.score)

    def save(self, path: str | os.PathLike[str]) -> str:
        """See ``Job.save``."""
        assert self._model is not None
        target = os.path.abspath(self._engine.info.output or os.fspath(path))  # noqa: PTH100 - a name, not a file yet
        answer = self._engine.ask(m.Save(path=target), m.SaveTurn, m.Saved)
        if isinstance(answer, m.SaveTurn):
            self._bring_all()
            self._bring_tables()
            save_model(self._model, Path(target))
            self._engine.ask(m.Saved(path=target), m.Saved)
        return target

    def _bring_tables(self) -> None:
        """Make the tables whole: first values everywhere, and over them the rows that were touched."""
        assert self._description is not None
        described, engine = self._description, self._engine
        if not described.tables:
            return
        touched = engine.retry(lambda: engine.servers.export_rows(idle=engine.idle))
        for table, spec, parts in zip(described.tables, described.shape.tables, touched, strict=True):
            weight = table.module.weight.data
            for start in range(0, spec.rows, ROWS_AT_ONCE):
                rows = torch.arange(start, min(start + ROWS_AT_ONCE, spec.rows))
                weight[start : start + len(rows)] = first_values(spec, table.index, engine.info.seed, rows).to(
                    weight.device
                )
            for ids, values in parts:
                weight[ids.to(weight.device)] = values.to(weight.device)


def _changed(described: Description) -> dict[int, dict[str, Any]]:
    """Per parameter group the options that differ from the registered ones."""
    changed = {}
    for number, (group, registered) in enumerate(zip(described.groups, described.shape.groups, strict=True)):
        now = group_options(group)
        if now != registered.options:
            changed[number] = {name: value for name, value in now.items() if registered.options.get(name) != value}
    return changed
