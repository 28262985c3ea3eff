"""The training session of a trainer in a job with a master and parameter servers."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from shoal.protocol import environment
from shoal.protocol import messages as m
from shoal.tensors.optimizers import UnsupportedOptimizer, group_options
from shoal.tensors.table_rows import GIVEN
from shoal.trainer.data.current_batch import Batch, Place
from shoal.trainer.engine.engine import IN_BATCH, Engine
from shoal.trainer.engine.exports import average_path, other_format, save_model, write_problem
from shoal.trainer.engine.servers import Gradients, ServerLost
from shoal.trainer.engine.sparse_tables import Tables, rows_of
from shoal.trainer.job import seed_everything
from shoal.trainer.logged_values import scored
from shoal.trainer.optim.optimizer import run_post_hooks, run_pre_hooks
from shoal.trainer.optim.options import option_messages, options_changed
from shoal.trainer.process import ProcessWatch, take_place
from shoal.trainer.refusal import Refusal, Refused
from shoal.trainer.script.description import ScriptDescription
from shoal.trainer.session import TrainingSession
from shoal.trainer.step_watchdog import StepWatchdog
from shoal.transport import auth

__all__ = ["DistributedJob"]

REPORT_SECONDS = 0.2
SAMPLES_SHOWN = 20


class DistributedJob(TrainingSession):
    """The training session of one trainer of a job.

    Args:
        engine: The protocol client of this trainer, not started yet.
        epochs: Number of epochs from the script; replaced by the job's in ``prepare``.
        seed: Seed from the script; replaced by the job's in ``prepare``.
        folder: The directory to which relative paths refer.
    """

    _writes_past_counters = True

    def __init__(self, engine: Engine, *, epochs: int, seed: int, folder: Path) -> None:
        super().__init__(epochs=epochs, seed=seed)
        self._engine = engine
        self._started_in = folder
        self._watch_process: ProcessWatch | None = None
        self._furthest: dict[tuple[int, int], int] = {}
        self._counts = {"batches": 0, "skipped": 0, "replayed": 0}
        self._reported = 0.0
        self._reported_not_finite = 0
        self._taken: dict[int, Tensor] = {}
        self._options: dict[int, dict[str, Any]] = {}
        self._bases: list[Tensor] = []
        self._unmerged = False
        """Whether a batch ran since the module's buffers were last merged with the job's."""
        self._looping = False
        self._failed = False
        self._steps = StepWatchdog(lambda: engine.info.step_seconds, warn=self._warn, hung=engine.hung)
        engine.on_wait = self._steps.record_progress

    @classmethod
    def from_environment(cls, *, epochs: int, seed: int, folder: Path) -> DistributedJob:
        """Create the session of the job that the environment variables of this process name.

        Raises:
            Refused: Another process on this host already runs this trainer.
        """
        seed = environment.number(environment.SEED) if os.environ.get(environment.SEED) else seed
        index, uid = environment.number(environment.INDEX), environment.text(environment.UID)
        place = take_place(uid, index)
        seed_everything(seed)
        if "OMP_NUM_THREADS" not in os.environ and not torch.cuda.is_available():
            torch.set_num_threads(1)
        engine = Engine(
            environment.text(environment.MASTER),
            identity=auth.Identity(role="trainer", index=index, life=auth.new_life()),
            token=auth.Token.read(environment.text(environment.TOKEN_FILE)),
            uid=uid,
            epochs=epochs,
            seed=seed,
        )
        job = cls(engine, epochs=epochs, seed=seed, folder=folder)
        job._watch_process = ProcessWatch(drain=job._drain, failed=job._script_failed, leave=job._leave)
        job._watch_process.hold(place)
        return job

    # --- The end of the process ---

    def _drain(self) -> None:
        """Handle SIGTERM: leave the job after the current batch; exit at once if not registered yet."""
        if self._engine.registered is None:
            sys.exit(0)
        self._engine.draining.set()

    def _script_failed(self, error: BaseException) -> None:
        self._failed = True
        self._engine.failed(self._explain(error))

    def _explain(self, error: BaseException) -> str:
        text = "".join(traceback.format_exception(error)).rstrip()
        return text if self._fetching is None else f"{text}\n({self._describe_batch(self._fetching)})"

    def _describe_batch(self, place: Place) -> str:
        """Return a description of a batch for users; also called by other threads."""
        epoch, task, batch = place
        shown = self._samples(place)
        more = ", ..." if len(shown) == SAMPLES_SHOWN else ""
        return f"{IN_BATCH} {batch} of task {task}, epoch {epoch + 1}: samples {', '.join(map(str, shown))}{more}"

    def _samples(self, place: Place) -> list[int]:
        """Return up to ``SAMPLES_SHOWN`` of a batch's dataset indices; only those that are integers."""
        return [index for index in self._order.indices(*place)[:SAMPLES_SHOWN] if isinstance(index, int)]

    def _leave(self) -> None:
        self._steps.stop()
        if self._prepared:
            self._feed.close()
            if self._stopping and not self._finished:
                with contextlib.suppress(SystemExit):
                    self._complete_stopped()
        self._report(now=True)
        is_expected = self._failed or Refused.raised or self._engine.draining.is_set() or self._engine.ended
        reason = "" if is_expected else self._unfinished()
        if reason:
            print(reason, file=sys.stderr, flush=True)  # noqa: T201 - where the script's own errors go
        self._engine.leave(reason)

    # --- Preparing ---

    def _register(self, described: ScriptDescription) -> None:
        """Register at the master; the first trainer's values become the job's initial ones."""
        engine = self._engine
        dense = _flat(described.dense)
        buffers = _flat([place.tensor for place in described.buffers])
        fixed = _flat([tensor for _, tensor in described.fixed])
        given = [table.module.weight.detach().cpu() for table in described.tables]
        engine.provide = lambda message: engine.servers.provide(
            message, dense, tables=given, buffers=buffers, fixed=fixed
        )
        engine.start(described.shape)
        self._steps.start()
        # Every slot is in a snapshot now, so these values are not requested again.
        engine.provide = lambda _: False
        engine.servers.parameters = [parameter.data for parameter in described.dense]
        self._epoch, self._epochs, self._seed = engine.info.epoch, engine.info.epochs, engine.info.seed
        self._check_output()

    def _check_output(self) -> None:
        """Check before training that the model can be written.

        Raises:
            Refusal: It cannot be written to ``spec.output.path``.
        """
        output = self._engine.info.output
        reason = write_problem(self._started_in / output) if output else ""
        if reason:
            fix = "name another path, or on a cluster a volume with spec.output.volumeClaimName"
            raise Refusal(f"spec.output.path {output}: the model cannot be written there: {reason}; {fix}")

    def _begin(self) -> None:
        engine, described = self._engine, self._description
        engine.ahead = self._feed.ahead
        engine.on_new_lease = self._leased
        engine.samples_of = self._samples
        self._tables = Tables(described.tables, self._fetch)
        # The script may use its model before the first batch.
        engine.retry(lambda: engine.servers.pull(self._epoch, 0, idle=engine.idle))
        if described.fixed:
            engine.retry(lambda: engine.servers.take_fixed([t for _, t in described.fixed], idle=engine.idle))
        self._take_buffers()
        # Compare the options as the script set them, before a scheduler changes them.
        for text in option_messages(described.groups, engine.info.groups):
            engine.send(m.JobEvent(level="info", text=text))
        for metric in engine.info.metrics:
            self._schedule.follow(metric.value)
        self._known_metrics = {(metric.epoch, metric.number) for metric in engine.info.metrics}
        joins = engine.info.joins
        if joins > 1:
            # The first process draws the same random numbers as the script alone; every later process has its own seed.
            digest = hashlib.blake2b(f"{self._seed}/{joins}".encode(), digest_size=8).digest()
            seed_everything(int.from_bytes(digest, "little") >> 1)

    def _fetch(self, rows: list[tuple[int, Tensor]]) -> list[Tensor]:
        engine = self._engine
        return engine.retry(lambda: engine.servers.rows(rows, idle=engine.idle))

    # --- The loop ---

    def _epoch_over(self) -> bool:
        engine = self._engine
        self._stopping = self._stopping or engine.stopping
        # When the script stops the job, this trainer may already hold a task of the next epoch, which it must finish.
        if self._epoch + 1 < self._epochs and (not self._stopping or engine.holds_later(self._epoch)):
            self._epoch += 1
            return False
        return isinstance(engine.request(m.LoopFinished(), m.Complete, m.NotComplete), m.Complete)

    def _end(self) -> None:
        self._report(now=True)
        if self._engine.info.output:
            self._write(self._started_in / self._engine.info.output, self._epochs, 0)
        self._steps.stop()

    def _pass_begins(self) -> None:
        self._looping = True
        if self._inside:
            self._engine.loop_begins(self._epoch)

    def _leased(self, lease: m.Lease) -> None:
        if self._looping and lease.epoch <= self._epoch:
            self._feed.assign(lease.epoch, lease.task, 0)

    def _next_place(self) -> Place | None:
        found = self._engine.next_batch(self._epoch)
        if found is None:
            self._looping = False
            self._stopping = self._stopping or self._engine.stopping
            self._report(now=True)
            self._steps.between()
            return None
        lease, batch = found
        return lease.epoch, lease.task, batch

    def _data(self, place: Place) -> Any:
        self._steps.batch(functools.partial(self._describe_batch, place))
        return super()._data(place)

    def _assign_from(self, place: Place) -> None:
        self._feed.assign(*place)
        for lease in self._engine.work.waiting:
            if lease.epoch <= self._epoch:
                self._feed.assign(lease.epoch, lease.task, 0)

    def _batch_begins(self, batch: Batch) -> None:
        if self._watch_process is not None:
            self._watch_process.renew()
        self._tables.new_batch()
        self._unmerged = True
        task = (batch.epoch, batch.task)
        self._counts["batches"] += 1
        if batch.batch <= self._furthest.get(task, -1):
            self._counts["replayed"] += 1
        self._furthest = {task: max(batch.batch, self._furthest.get(task, -1))}

    def _accumulates(self, batch: Batch) -> None:
        del batch
        self._engine.leave_if_draining()

    # --- Steps ---

    def _take_step(self, batch: Batch, optimizer: Optimizer, closure: Callable[[], Any] | None) -> Any:
        run_pre_hooks(optimizer)
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        # Before the steps of the other optimizers the script may clear these gradients or add to them, so copy them.
        kept = len(batch.stepped) + 1 < len(self._optimizers)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    gradient = parameter.grad.detach()
                    self._taken[id(parameter)] = gradient.clone() if kept else gradient
        own = {id(group) for group in optimizer.param_groups}
        try:
            for number, group in enumerate(self._description.groups):
                if id(group) in own:
                    self._options[number] = group_options(group)
        except UnsupportedOptimizer as error:
            raise Refused(str(error)) from None
        return result

    def _commit(self, batch: Batch, *, skipped: bool) -> None:
        batch.committed = True
        gradients = Gradients(dense=[None] * len(self._description.dense)) if skipped else self._gradients()
        pushed = self._engine.close_batch(self._push(batch, skipped=skipped), gradients)
        self._taken.clear()
        self._options.clear()
        self._watch.set_reference()
        self._reuse.committed()
        if pushed and skipped:
            self._counts["skipped"] += 1
        for optimizer in self._optimizers:
            if id(optimizer) in batch.stepped:
                run_post_hooks(optimizer)

    def _push(self, batch: Batch, *, skipped: bool) -> m.Push:
        plan = self._order.plan
        return m.Push(
            grants=[],
            epoch=batch.epoch,
            task=batch.task,
            first=batch.first,
            batches=batch.batch + 1 - batch.first,
            samples=sum(plan.samples_in(batch.task, k) for k in range(batch.first, batch.batch + 1)),
            skipped=skipped,
            absent=[],
            options={} if skipped else options_changed(self._options, self._engine.info.groups),
            parts=[],
            next_epoch=batch.epoch,
            next_task=batch.task,
            values=True,
        )

    def _gradients(self) -> Gradients:
        described, taken = self._description, self._taken
        dense: list[Tensor | None] = []
        for parameter, spec in zip(described.dense, described.shape.dense, strict=True):
            found = taken.get(id(parameter))
            if found is not None and found.is_sparse:
                raise Refused(
                    f"parameter {spec.name} got a sparse gradient, but it is no nn.Embedding(sparse=True); use one, or "
                    "F.embedding(..., sparse=False)"
                )
            dense.append(None if found is None else found.reshape(-1).cpu())
        tables = []
        for table in described.tables:
            found = taken.get(id(table.module.weight))
            if found is not None:
                tables.append((table.index, *rows_of(found)))
        return Gradients(dense=dense, tables=tables)

    def _closed(self, batch: Batch) -> None:
        """After a task's last batch, merge the module's buffers (BatchNorm's running statistics) with the job's.

        If their server is not reachable, the merge is skipped until the next task: they are statistics, not counts.
        """
        if batch.batch + 1 == self._order.plan.batches_in(batch.task):
            with contextlib.suppress(ServerLost):
                self._exchange_buffers(trainers=max(1, self._engine.trainers))
        self._steps.batch_over()
        self._report()

    # --- Buffers ---

    def _take_buffers(self) -> None:
        """Copy the job's buffers into the module."""
        if self._description.buffers:
            self._engine.retry(lambda: self._exchange_buffers(trainers=0))

    def _exchange_buffers(self, *, trainers: int) -> None:
        """Merge the module's buffers with the job's; with ``trainers`` 0 only copy the job's."""
        described, engine = self._description, self._engine
        if not described.buffers:
            return
        tensors = self._description.buffer_tensors()
        bases = self._bases or [tensor.detach().clone() for tensor in tensors]
        engine.servers.merge_buffers(tensors, bases, trainers=trainers, idle=engine.idle)
        self._bases = [tensor.detach().clone() for tensor in tensors]
        self._unmerged = False

    # --- Reports ---

    def log(self, **values: Any) -> None:
        """See ``Job.log``."""
        self._values.add(values)
        self._steps.record_progress()

    def _report(self, *, now: bool = False) -> None:
        clock = time.monotonic()
        if not now and clock - self._reported < REPORT_SECONDS:
            return
        self._values.collect()
        not_finite = self._values.not_finite - self._reported_not_finite
        if not self._counts["batches"] and not self._values.latest:
            return
        message = m.LogValues(values=self._values.latest, not_finite=not_finite, **self._counts)
        if self._engine.send(message):
            self._reported = clock
            self._reported_not_finite += not_finite
            self._counts = dict.fromkeys(self._counts, 0)

    # --- Scores and models ---

    def _load_all(self) -> None:
        """Pull the newest parameters and buffers; within a task, first merge the module's own buffers."""
        engine = self._engine
        engine.retry(lambda: engine.servers.pull(self._epoch, 0, idle=engine.idle))
        if self._unmerged:
            with contextlib.suppress(ServerLost):
                self._exchange_buffers(trainers=max(1, engine.trainers))
        self._take_buffers()
        self._tables.new_batch()
        self._watch.set_reference(whole=self._open is None)

    def _score(self, epoch: int, number: int, score: Callable[[Any], Any]) -> Any:
        question = m.Evaluate(epoch=epoch, number=number)
        answer = self._engine.request(question, m.EvaluateTurn, m.Evaluated)
        if isinstance(answer, m.EvaluateTurn):
            self._load_all()
            with self._steps.activity("in job.evaluate"):
                text = scored(self._module, score)
            self._tables.new_batch()
            answer = self._engine.request(m.Evaluated(epoch=epoch, number=number, score=text), m.Evaluated)
        return json.loads(answer.score)

    def _metric(self, epoch: int, number: int, value: float) -> bool:
        if (epoch, number) in self._known_metrics:
            return False
        self._engine.send(m.Metric(epoch=epoch, number=number, value=value))
        return True

    def _folder(self) -> Path:
        return self._started_in

    def _write(self, path: Path, epoch: int, number: int) -> None:
        target = os.path.abspath(path)  # noqa: PTH100 - a name, not a file yet
        answer = self._engine.request(m.Save(path=target, epoch=epoch, number=number), m.SaveTurn, m.Saved)
        assigned = isinstance(answer, m.SaveTurn)
        # The complete model may have been written by an earlier process of this trainer, to a disk that was deleted with it.
        late = self._finished and not self._counts["batches"]
        if not assigned and (not late or Path(target).exists()):
            return
        self._load_all()
        self._load_tables()
        with self._steps.activity("in job.save"):
            save_model(self._module, Path(target))
        if self._description.shape.ema:
            engine = self._engine
            values = engine.retry(lambda: engine.servers.pull_average(idle=engine.idle))
            named = {d.name: value for d, value in zip(self._description.shape.dense, values, strict=True)}
            save_model(self._module, average_path(Path(target)), instead=named)
        self._tables.new_batch()
        if not assigned:
            return
        self._engine.request(m.Saved(path=target, epoch=epoch, number=number), m.Saved)
        if text := other_format(Path(target)):
            self._warn(text)
        output = self._engine.info.output
        if output and not self._finished and target == os.path.abspath(self._started_in / output):  # noqa: PTH100 - see above
            text = f"{target} is spec.output.path, which has the job's last model at the end; save the best under another name"
            self._warn(text)

    def _warn(self, text: str) -> None:
        self._engine.send(m.JobEvent(level="warning", text=text))

    def _call(self, kind: str) -> tuple[int, int]:
        # The model of a complete job is written to a path once.
        return (self._epochs, 0) if self._finished and kind.startswith("save") else super()._call(kind)

    def _load_tables(self) -> None:
        """Load all rows of the tables: initial values first, then the rows that were trained."""
        described, engine = self._description, self._engine
        if not described.tables:
            return
        exported = engine.retry(lambda: engine.servers.export_rows(idle=engine.idle))
        for table, spec, parts in zip(described.tables, described.shape.tables, exported, strict=True):
            if spec.family != GIVEN:
                self._tables.fill(table, spec, seed=engine.info.seed)
            for ids, values in parts:
                self._tables.write(table, ids, values)

    # --- Stopping early ---

    def _stop(self, reason: str) -> None:
        self._engine.request(m.StopEarly(reason=reason, epoch=self._epoch), m.Stopping)

    def _complete_stopped(self) -> None:
        """Complete a stopped job: count the remaining batches of begun tasks as skipped, and wait for the end.

        Raises:
            SystemExit: The job failed, or this trainer was drained.
        """
        self._close()
        engine = self._engine
        engine.loop_begins(self._epochs - 1)
        while True:
            while (found := engine.next_batch(self._epochs - 1)) is not None:
                lease, batch = found
                left = self._order.plan.batches_in(lease.task) - batch
                self._commit(Batch(lease.epoch, lease.task, batch + left - 1, batch), skipped=True)
            if isinstance(engine.request(m.LoopFinished(), m.Complete, m.NotComplete), m.Complete):
                break
            engine.loop_begins(self._epochs - 1)
        self._finished = True
        self._end()


def _flat(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return flat copies of tensors on the CPU."""
    return [tensor.detach().reshape(-1).cpu().clone() for tensor in tensors]
