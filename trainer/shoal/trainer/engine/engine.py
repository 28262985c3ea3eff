"""A trainer's engine: leases tasks, synchronises with the parameter servers, pushes batches.

It runs on the script's thread, inside the loader's ``next``; only the link to the master has its own thread, which puts the
master's messages into an inbox. There is one recovery procedure for every failure of a server: ask each slot how many batches
of the task it has applied (``_synchronise``), and continue from the least advanced slot (rule 12). No gradients are kept for
that: the batch is computed again, and slots that already have it ignore the push.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from shoal.protocol import messages as m
from shoal.protocol.epoch_plan import EpochPlan
from shoal.trainer.engine.servers import Gradients, ServerLost, Servers
from shoal.trainer.engine.task_state import TaskState
from shoal.trainer.refusal import Refused
from shoal.transport import auth
from shoal.transport.master_link import MasterLink

__all__ = ["IN_BATCH", "Engine", "JobStopped", "Left"]

IN_BATCH = "in batch"
"""Prefix of the text that describes a script at work on a batch."""
REQUEST_SECONDS = 0.2
"""Minimum interval between two requests for the slot map. Seconds."""


class JobStopped(SystemExit):
    """The job failed or was stopped."""

    def __init__(self, reason: str) -> None:
        super().__init__(0)
        print(f"the job was stopped: {reason}", file=sys.stderr, flush=True)  # noqa: T201 - where the script's own errors go


class Left(SystemExit):
    """This trainer was drained and has returned its leases."""


Answer = TypeVar("Answer")


class Engine:
    """The protocol client of one trainer.

    Args:
        address: Address of the master.
        identity: Identity of this trainer.
        token: Token of the job.
        uid: UID of the job.
        epochs: Number of epochs from the script; used if the manifest has none.
        seed: Seed from the script; used if the manifest has none.
    """

    def __init__(
        self, address: str, *, identity: auth.Identity, token: auth.Token, uid: str, epochs: int, seed: int
    ) -> None:
        self.registered: m.Registered | None = None
        self.trainers = 1
        self.ahead = 0
        """Number of batches to lease beyond the current task, for the loader's workers."""
        self.stopping = ""
        """Why the job stops early; empty if it does not."""
        self.ended = False
        """Whether the job failed or refused this trainer; the script's unfinished loop is then not reported as its error."""
        self.draining = threading.Event()
        self.on_new_lease: Callable[[m.Lease], None] = lambda _: None
        self.samples_of: Callable[[tuple[int, int, int]], list[int]] = lambda _: []
        self.provide: Callable[[m.ProvideInitialValues], bool] = lambda _: False
        self.on_wait: Callable[[], None] = lambda: None
        """Called repeatedly while the engine waits for the master or a server."""
        self._identity, self._token, self._uid = identity, token, uid
        self._epochs, self._seed = epochs, seed
        self._shape: m.ModelSpec | None = None
        self._work: TaskState | None = None
        self._servers: Servers | None = None
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._requested = 0
        self._question: Any = None
        self._ended_epoch = -1
        self._suspect: set[tuple[int, int]] = set()
        """Leased tasks during which a trainer was killed before: each of their batches is reported to the master."""
        self._last_requested = 0.0
        self._link = MasterLink(
            address,
            identity=identity,
            token=token,
            job=uid,
            greetings=self._greetings,
            handle=self._inbox.put,
            refused=lambda reason: self._inbox.put(m.RegistrationRefused(reason=reason)),
        )

    # --- The link to the master ---

    def start(self, shape: m.ModelSpec) -> None:
        """Register at the master and wait until every slot is served.

        Raises:
            Refused: The master refused the registration, for example because the job trains another model.
        """
        self._shape = shape
        self._link.start()
        while self.registered is None or not self.work.served:
            self._wait_for_message()

    def _greetings(self) -> list[Any]:
        """Return the registration, which the link's thread sends at each connect (rule 3)."""
        assert self._shape is not None
        leases = self._work.leases() if self._work is not None else []
        return [
            m.Register(
                shape=self._shape,
                epochs=self._epochs,
                seed=self._seed,
                leases=leases,
                pid=os.getpid(),
                host=socket.gethostname(),
            )
        ]

    @property
    def work(self) -> TaskState:
        """Leases and watermarks; empty before the first registration."""
        if self._work is None:
            assert self._shape is not None
            shape = self._shape
            plan = EpochPlan(
                samples=shape.samples,
                batch_size=shape.batch_size,
                drop_last=shape.drop_last,
                task_batches=shape.task_batches,
            )
            slots = self.registered.slots if self.registered is not None else 0
            work = TaskState(plan, slots=slots)
            if self.registered is None:
                return work
            self._work = work
            self._servers = Servers(shape, slots=slots, identity=self._identity, token=self._token, uid=self._uid)
        return self._work

    @property
    def servers(self) -> Servers:
        """Connections to the parameter servers."""
        assert self._servers is not None
        return self._servers

    @property
    def info(self) -> m.Registered:
        """The master's reply to the registration."""
        assert self.registered is not None
        return self.registered

    def send(self, message: Any) -> bool:
        """Send the master a message that is not repeated; return False if there is no connection."""
        return self._link.send(message)

    def _wait_for_message(self, seconds: float = 0.1) -> None:
        """Wait up to ``seconds`` for a message, then handle all that arrived."""
        self.on_wait()
        with contextlib.suppress(queue.Empty):
            self._handle(self._inbox.get(timeout=seconds))
        self._handle_all()

    def _handle_all(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._handle(self._inbox.get_nowait())

    def _handle(self, message: Any) -> None:  # noqa: C901, PLR0912 - a plain list of messages
        match message:
            case m.Registered():
                self._on_registered(message)
            case m.SlotMap():
                self.work.mapped(message)
                self.servers.follow(message)
            case m.TaskLeased():
                self._requested = max(0, self._requested - 1)
                self.trainers = message.trainers
                if message.watched:
                    self._suspect.add((message.lease.epoch, message.lease.task))
                self.work.leased(message.lease)
                self.on_new_lease(message.lease)
            case m.TaskCommitted():
                self.work.committed(message.lease)
            case m.TaskReopened():
                self.work.reopened(message.lease)
            case m.EpochDone():
                self._requested = 0
                self._ended_epoch = max(self._ended_epoch, message.epoch)
            case m.ProvideInitialValues():
                self._provide(message)
            case m.Drain():
                self.draining.set()
            case m.RegistrationRefused():
                self.ended = True
                raise Refused(message.reason)
            case m.Stop():
                self.ended = True
                raise JobStopped(message.reason)
            case m.Stopping():
                self.stopping = message.reason
                self._answer(message)
            case _:
                self._answer(message)

    def _on_registered(self, message: m.Registered) -> None:
        """Repeat all unanswered requests, as the registration may have been at a new master."""
        self.registered = message
        if self.stopping and not message.stopping:
            # etcd did not keep the early stop, so the new master has not read it.
            self._link.send(m.StopEarly(reason=self.stopping, epoch=self._loop_epoch))
        self.stopping = message.stopping or self.stopping
        self._link.lease_seconds = message.lease_seconds
        unanswered = self.work.unanswered.values()
        self.servers.answer_timeout.lease_seconds = message.lease_seconds
        for done in unanswered:
            self._link.send(done)
        requested, self._requested = self._requested, 0
        for _ in range(requested):
            self._request_task(self._loop_epoch)
        if self._question is not None and self._reply is None:
            self._link.send(self._question)

    def _provide(self, message: m.ProvideInitialValues) -> None:
        done = self.provide(message)
        slots, grants = (message.slots, message.grants) if done else ([], [])
        self._link.send(m.InitialValuesGiven(slots=slots, grants=grants))

    _loop_epoch = 0
    _reply: Any = None
    _answers: tuple[type, ...] = ()

    def _answer(self, message: Any) -> None:
        """Record the reply to the pending question; a later reply does not replace the first one."""
        if self._question is not None and self._reply is None and isinstance(message, self._answers):
            self._reply = message

    def request(self, question: Any, *answers: type) -> Any:
        """Send the master a question and return its reply; the question is repeated to every new master.

        Args:
            question: The message.
            answers: The types of message that are replies to it.

        Raises:
            Left: This trainer was drained.
        """
        self._question, self._answers, self._reply = question, answers, None
        self._link.send(question)
        try:
            while self._reply is None:
                self._wait_for_message()
                self.leave_if_draining()
            return self._reply
        finally:
            self._question = self._reply = None

    # --- Batches ---

    def next_batch(self, epoch: int) -> tuple[m.Lease, int] | None:
        """Return the next batch for the script's loop in this epoch, or None if the epoch has no more batches.

        When it returns a batch, the parameters of all slots have been pulled.

        Args:
            epoch: The epoch of the script's loop, from 0.

        Returns:
            The lease of the task, and the number of the batch in the task, from 0.

        Raises:
            Left: This trainer was drained.
        """
        self._loop_epoch = epoch
        work = self.work
        while True:
            self._handle_all()
            self.leave_if_draining()
            lease = work.current
            if lease is None:
                lease = self._next_lease(epoch)
                if lease is None:
                    return None
            self._request_ahead(epoch)
            batch = self._synchronise(lease)
            if batch < work.plan.batches_in(lease.task):
                if (lease.epoch, lease.task) in self._suspect:
                    samples = self.samples_of((lease.epoch, lease.task, batch))
                    self._link.send(m.BatchBegan(lease=lease, batch=batch, samples=samples))
                return lease, batch
            self._report_done()

    def _next_lease(self, epoch: int) -> m.Lease | None:
        """Wait for the next lease and make it the current one; None if the epoch of the loop is done."""
        work = self.work
        while not work.waiting:
            if self._ended_epoch >= epoch and not work.unanswered:
                return None
            if self._ended_epoch < epoch and not self._requested:
                self._request_task(epoch)
            self._wait_for_message()
            self.leave_if_draining()
        if work.waiting[0].epoch > epoch:
            return None
        return work.begin()

    def _request_ahead(self, epoch: int) -> None:
        """Request the next tasks while this one is processed: one, or as many as the loader's workers need."""
        if self._ended_epoch >= epoch:
            return
        tasks = max(1, -(-self.ahead // self.work.plan.task_batches))
        for _ in range(tasks - len(self.work.waiting) - self._requested):
            self._request_task(epoch)

    def _request_task(self, epoch: int) -> None:
        if self._link.send(m.RequestTask(epoch=epoch)):
            self._requested += 1

    def loop_begins(self, epoch: int) -> None:
        """Note that the script's loop enters an epoch, so that tasks are requested again."""
        self._loop_epoch = epoch
        if self._ended_epoch >= epoch:
            self._ended_epoch = epoch - 1

    def holds_later(self, epoch: int) -> bool:
        """Return whether the next leased task belongs to a later epoch."""
        work = self.work
        return work.current is None and bool(work.waiting) and work.waiting[0].epoch > epoch

    def _report_done(self) -> None:
        done = self.work.finish()
        self._suspect.discard((done.lease.epoch, done.lease.task))
        self._link.send(done)
        self.work.trim()

    def _synchronise(self, lease: m.Lease) -> int:
        """Pull until the progress of every slot in the task is known; return the first batch that a slot lacks."""
        work = self.work
        while True:
            batch = work.next_batch()
            if batch is not None:
                return batch
            if work.served:
                try:
                    answers = self.servers.pull(lease.epoch, lease.task, idle=self.idle)
                    # Every answer is recorded, also those after a stale one.
                    if all([work.applied(lease.epoch, lease.task, *answer) for answer in answers]):  # noqa: C419
                        continue
                except ServerLost as error:
                    work.forget(error.slots)
            self._request_slot_map()
            self._wait_for_message()
            self.leave_if_draining()

    def close_batch(self, push: m.Push, gradients: Gradients) -> bool:
        """Push a batch's gradients and pull the parameters.

        Args:
            push: The push, without its grants.
            gradients: The gradients of the batch.

        Returns:
            Whether every slot has applied the batch. If not, ``next_batch`` returns it again.
        """
        work, lease = self.work, self.work.current
        assert lease is not None
        following = self._following(lease, push)
        push = msgspec.structs.replace(push, next_epoch=following.epoch, next_task=following.task)
        try:
            for pushed, ahead in self.servers.push(push, gradients, idle=self.idle):
                for slots, grants, batches in pushed:
                    work.applied(lease.epoch, lease.task, slots, grants, batches)
                if (following.epoch, following.task) != (lease.epoch, lease.task):
                    for slots, grants, batches in ahead:
                        work.applied(following.epoch, following.task, slots, grants, batches)
        except ServerLost as error:
            work.forget(error.slots)
            self._request_slot_map()
        reached = work.next_batch()
        return reached is not None and reached >= push.first + push.batches

    def _following(self, lease: m.Lease, push: m.Push) -> m.Lease:
        """Return the lease whose watermarks the reply is to contain: the next one after a task's last batch."""
        last = push.first + push.batches == self.work.plan.batches_in(lease.task)
        return self.work.waiting[0] if last and self.work.waiting else lease

    def idle(self) -> None:
        """Request the slot map while a server does not reply, as the master may have moved its slots (rule 12)."""
        self.on_wait()
        self._handle_all()
        self._request_slot_map()

    def _request_slot_map(self) -> None:
        now = time.monotonic()
        if now - self._last_requested >= REQUEST_SECONDS:
            self._last_requested = now
            self._link.send(m.GetSlotMap())

    def retry(self, action: Callable[[], Answer]) -> Answer:
        """Run an action that needs servers, and retry it until all of them have answered.

        Raises:
            Left: This trainer was drained.
        """
        while True:
            self._handle_all()
            if self.work.served:
                try:
                    return action()
                except ServerLost as error:
                    self.work.forget(error.slots)
            self._request_slot_map()
            self._wait_for_message()
            self.leave_if_draining()

    # --- The end ---

    def leave_if_draining(self) -> None:
        """Return all leases and leave the job, if this trainer was drained.

        Raises:
            Left: It was.
        """
        if self.draining.is_set():
            self.leave()
            raise Left(0)

    def leave(self, reason: str = "") -> None:
        """Return all leases, leave the job and close all connections. Idempotent.

        Args:
            reason: Why the script ends although the job is not complete. Default: empty, the trainer was drained or the job
                is complete.
        """
        leases = self._work.return_all() if self._work is not None else []
        self._link.send(m.Leave(leases=leases, reason=reason))
        self._link.close()
        if self._servers is not None:
            self._servers.close()

    def failed(self, error: str) -> None:
        """Report to the master that the script raised an error, and in which task.

        Args:
            error: The formatted error.
        """
        leases = self._work.leases() if self._work is not None else []
        self._link.send(m.ScriptFailed(error=error, leases=leases[:1]))

    def hung(self, seconds: float, activity: str, stack: str) -> None:
        """Report to the master that the script hangs. Called from another thread than the script's.

        Args:
            seconds: Time without progress. Seconds.
            activity: What the script was doing; if it begins with ``IN_BATCH``, the current task is reported, too.
            stack: The formatted stack of the script's thread.
        """
        work = self._work
        lease = work.current if work is not None and activity.startswith(IN_BATCH) else None
        self._link.send(m.ScriptHung(seconds=seconds, activity=activity, stack=stack, lease=lease))
