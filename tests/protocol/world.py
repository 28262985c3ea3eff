"""A whole job in one thread: the real cores of master, parameter servers and trainers under a random schedule.

The world decides nothing about the protocol. It carries messages between ``MasterCore``, ``ServerState`` and ``TaskState``, and
injects faults: processes are killed, paused and restarted, connections are cut and their last messages lost, snapshots are
damaged, etcd loses its last writes, and a paused master resumes while its successor runs. Instead of tensors a slot has a
counter per sample, which every applied batch raises by one.

The same seed gives the same run. The world is one module, because its faults and deliveries are drawn and carried out in
one place, by one clock.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from shoal.master.core import MasterCore
from shoal.master.service import ACKNOWLEDGEMENTS
from shoal.master.state.job import Close, JobState, MasterSettings, Send
from shoal.master.state.records import Outcome, Records
from shoal.protocol import messages as m
from shoal.protocol.epoch_plan import EpochPlan
from shoal.protocol.task_set import TaskSet
from shoal.pserver.state.server_state import DiskError, ServerState
from shoal.trainer.engine.task_state import TaskState
from shoal.transport.auth import Identity

FAULTS = ("kill server", "kill trainer", "kill master", "cut", "pause", "ghost master", "etcd forgets", "etcd wiped")


class Violation(AssertionError):
    """An invariant of the protocol is violated."""


class Counts:
    """A server's tensors: per slot, a count of each sample's updates."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.slots: dict[int, list[int]] = {}

    def create(self, slot: int) -> bool:
        if slot in self.world.snapshotted:
            raise Violation(f"slot {slot} got initial values although a good snapshot with work in it stands")
        self.slots[slot] = [0] * self.world.samples
        return True

    def load(self, slot: int, state: Any) -> None:
        self.slots[slot] = list(state)

    def state(self, slot: int) -> Any:
        return list(self.slots[slot])

    def drop(self, slot: int) -> None:
        self.slots.pop(slot, None)


@dataclass
class StoredFile:
    name: str
    slots: dict[int, tuple[list[int], bytes, int]]
    damaged: bool
    pinned: bool = False


class Folder:
    """A server's disk, which outlives its processes. No two consecutive files of a slot are damaged, as the design assumes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.stored: list[StoredFile] = []
        self.noticed: set[str] = set()
        self.released: set[tuple[int, str]] = set()

    def files(self) -> list[m.File]:
        return [
            m.File(name=f.name, slots=sorted(f.slots), counts=[f.slots[s][2] for s in sorted(f.slots)])
            for f in self.stored
            if f.name not in self.noticed
        ]

    def load(self, name: str, slot: int) -> tuple[Any, bytes]:
        found = next((f for f in self.stored if f.name == name), None)
        if found is None or found.damaged or slot not in found.slots:
            self.noticed.add(name)
            raise DiskError(f"{name} is damaged")
        return found.slots[slot][0], found.slots[slot][1]

    def release(self, slot: int, names: Any) -> None:
        self.released.update((slot, name) for name in names)

    def write(self, snapshot: Any, *, pin: bool) -> str:
        world = self.world
        world.files += 1
        name = f"file-{world.files:06d}"
        newest = {slot: f for f in self.stored for slot in f.slots}
        last_good = all(slot in newest and not newest[slot].damaged for slot in snapshot)
        damaged = last_good and not pin and world.random.random() < world.damage
        slots = {slot: (part.state, part.history, part.batches) for slot, part in snapshot.items()}
        self.stored.append(StoredFile(name, slots, damaged, pin))
        if not damaged:
            world.snapshotted |= {slot for slot, part in snapshot.items() if part.batches}
        self.prune()
        return name

    def prune(self) -> None:
        newer: Counter[int] = Counter()
        for stored in list(reversed(self.stored)):
            if not stored.pinned and all(
                newer[slot] >= 2 or (slot, stored.name) in self.released for slot in stored.slots
            ):
                self.stored.remove(stored)
            newer.update(stored.slots.keys())


@dataclass
class Wire:
    """One connection: two directions of messages, each in order."""

    number: int
    client: Any
    host: Any
    to_host: deque[Any] = field(default_factory=deque)
    to_client: deque[Any] = field(default_factory=deque)
    open: bool = True


class Process:
    role = ""

    def __init__(self, world: World, index: int) -> None:
        self.world = world
        self.identity = Identity(role=self.role, index=index, life=world.random.getrandbits(40) + 1)
        self.paused = False
        self.wires: list[Wire] = []

    def tick(self) -> None: ...

    def accepted(self, wire: Wire) -> None: ...

    def closed(self, wire: Wire) -> None: ...

    def from_client(self, wire: Wire, message: Any) -> None: ...

    def from_host(self, wire: Wire, message: Any) -> None: ...


class MasterProcess(Process):
    """A master with its leadership in etcd: it takes over at the start, and every record it writes is fenced."""

    role = "master"

    def __init__(self, world: World, index: int) -> None:
        super().__init__(world, index)
        before = world.etcd_value("master")
        self.generation = (before[0] if before else 0) + 1
        self.nonce = world.random.getrandbits(60)
        self.commits = 0
        records = Records()
        records.load((key, value) for key, value in world.etcd_all().items() if key != "master")
        world.etcd.append(("master", (self.generation, self.nonce, 0)))
        job = JobState(
            settings=world.settings,
            records=records,
            generation=self.generation,
            new_grant=lambda: world.random.getrandbits(60) + 1,
            now=world.now,
            clock=lambda: world.now,
        )
        self.core = MasterCore(job)
        self.held: list[Send | Close] = []
        """What must not be heard before the next commit, as in the service."""

    def accepted(self, wire: Wire) -> None:
        self.core.connected(wire.number, wire.client.identity, self.world.now)
        self.after()

    def from_client(self, wire: Wire, message: Any) -> None:
        self.core.message(wire.number, message, self.world.now)
        self.after()

    def closed(self, wire: Wire) -> None:
        self.core.closed(wire.number, self.world.now)
        self.after()

    def tick(self) -> None:
        for wire in self.wires:
            if not wire.client.paused:
                self.core.heard(wire.number, self.world.now)
        self.core.tick(self.world.now)
        if self.core.servers.confirm_requested and self.write():
            self.core.servers.confirmed(self.core.job.slots.question)
        self.after()

    def write(self) -> bool:
        """Write changed records and send the messages that waited for them; return False if the master was deposed and killed."""
        if not self.commit(self.core.job.records.flush()):
            return False
        held, self.held = self.held, []
        self.carry_out(held)
        return True

    def commit(self, changes: list[tuple[str, bytes | None]]) -> bool:
        """Commit changes as the record log does; return False if the master was deposed and killed."""
        found = self.world.etcd_value("master")
        if found != (self.generation, self.nonce, self.commits):
            if found is not None and found[1] != self.nonce and found[0] >= self.generation:
                self.world.kill(self)
                return False
            self.core.job.records.note_all_changed()
            changes = [*changes, *self.core.job.records.flush()]
        self.commits += 1
        self.world.etcd += changes
        self.world.etcd.append(("master", (self.generation, self.nonce, self.commits)))
        return True

    def after(self) -> None:
        job = self.core.job
        outbox, job.outbox = job.outbox, []
        at_once = []
        for action in outbox:
            late = isinstance(action, Send) and type(action.message) in ACKNOWLEDGEMENTS
            (self.held if late and (job.records.changed or self.held) else at_once).append(action)
        self.carry_out(at_once)
        # A write to etcd takes time: meanwhile the master leases tasks, and acknowledgements wait.
        if (job.records.changed or self.held) and self.world.random.random() < 0.3 and not self.write():
            return
        self.check()

    def carry_out(self, actions: list[Send | Close]) -> None:
        wires = {wire.number: wire for wire in self.wires if wire.open}
        for action in actions:
            wire = wires.get(action.connection)
            if wire is None:
                continue
            if isinstance(action, Close):
                self.world.cut(wire, tell_host=False)
            else:
                wire.to_client.append(action.message)

    def check(self) -> None:
        job = self.core.job
        if job.records.outcome is not None and job.records.outcome.state == "Failed":
            raise Violation(f"the job failed: {job.records.outcome.reason}")
        if job.records.outcome is not None and self.world.outcome is None:
            assert job.queue is not None
            self.world.outcome = job.records.outcome
            self.world.expected = job.queue.begun() if job.queue.stopped else self.world.everything()


class ServerProcess(Process):
    role = "pserver"

    def __init__(self, world: World, index: int) -> None:
        super().__init__(world, index)
        self.tensors = Counts(world)
        self.disk = world.disks[index]
        self.disk.noticed.clear()
        self.state: ServerState | None = None
        self.master: Wire | None = None
        self.read: tuple[m.Grant, tuple[Any, bytes] | DiskError] | None = None
        """What was read from the disk, and by which order."""

    def state_report(self) -> m.ReportState:
        if self.state is None:
            return m.ReportState(held=[], waiting=[], files=[], question=0, addresses=[], pid=0, host="")
        return self.state.state_report(addresses=[], pid=0, host="")

    def closed(self, wire: Wire) -> None:
        if wire is self.master:
            self.master = None

    def tick(self) -> None:
        world = self.world
        if self.master is None:
            self.master = world.call_master(self)
            return
        state = self.state
        if state is None:
            return
        if world.random.random() < 0.5:
            self.restore(state)
        due = state.first_pending or state.final_pending
        if due or (state.moved and world.random.random() < world.snapshot_rate):
            pin = state.final_pending
            snapshot = state.begin_snapshot()
            name = self.disk.write(snapshot, pin=pin)
            self.master.to_host.extend(state.snapshot_written(name, snapshot, pinned=pin))

    def restore(self, state: ServerState) -> None:
        """Read a slot from a snapshot, or complete the previous read; orders may arrive between the two."""
        assert self.master is not None
        if self.read is None:
            order = state.next_restore()
            if order is not None:
                try:
                    self.read = order, self.disk.load(order.file, order.slot)
                except DiskError as error:
                    self.read = order, error
            return
        (order, found), self.read = self.read, None
        failed = isinstance(found, DiskError)
        self.master.to_host.extend(
            state.not_restored(order, str(found)) if failed else state.restored(order, *found)  # type: ignore[misc]
        )

    def from_host(self, wire: Wire, message: Any) -> None:
        if wire is not self.master:
            return
        if isinstance(message, m.JobSettings):
            if message.shape is not None and self.state is None:
                self.state = ServerState(self.tensors, self.disk, plan=self.world.plan, epochs=message.epochs)
            wire.to_host.append(self.state_report())
            return
        if self.state is None:
            return
        replies = self.state.order(message)
        if isinstance(message, m.RequestState):
            self.state.question = message.question
            replies.append(self.state_report())
        wire.to_host.extend(replies)

    def from_client(self, wire: Wire, message: Any) -> None:
        """Handle a trainer's message as the trainer session does, with counts instead of tensors."""
        state = self.state
        if state is None:
            self.world.cut(wire)
            return
        slots = wire.slots  # type: ignore[attr-defined]
        if isinstance(message, m.InitialValues):
            chosen = [s for s, g in zip(message.slots, message.grants, strict=True) if state.awaits_values(s, g)]
            state.initialised(chosen)
            wire.to_client.append(m.InitialValuesGiven(slots=message.slots, grants=message.grants))
        elif isinstance(message, m.Pull):
            applied = state.granted.applied(slots, message.grants, epoch=message.epoch, task=message.task)
            wire.to_client.append(m.PullReply(applied=applied, values=False))
        elif isinstance(message, m.Push):
            new = state.granted.new_slots(slots, message)
            for slot in new:
                self.apply(slot, message)
            state.granted.advance(new, message)
            pushed = state.granted.answer(slots, message)
            ahead = state.granted.applied(slots, message.grants, epoch=message.next_epoch, task=message.next_task)
            wire.to_client.append(m.PushReply(pushed=pushed, next=ahead, values=False))

    def apply(self, slot: int, push: m.Push) -> None:
        world = self.world
        for batch in range(push.first, push.first + push.batches):
            for position in world.plan.positions(push.task, batch):
                self.tensors.slots[slot][world.orders[push.epoch][position]] += 1


class TrainerProcess(Process):
    role = "trainer"

    def __init__(self, world: World, index: int) -> None:
        super().__init__(world, index)
        self.work: TaskState | None = None
        self.epoch = 0
        self.ended = -1
        self.task_requests = 0
        self.finished = False
        self.stopping = False
        """The script stopped the job, as far as this trainer knows."""
        self.master: Wire | None = None
        self.registered = False
        self.servers: dict[int, Wire] = {}
        self.requests: dict[int, Any] = {}

    def closed(self, wire: Wire) -> None:
        if wire is self.master:
            self.master, self.registered, self.task_requests = None, False, 0
        for life in [life for life, other in self.servers.items() if other is wire]:
            self.lost(life)

    def lost(self, life: int) -> None:
        wire = self.servers.pop(life)
        self.requests.pop(life, None)
        if self.work is not None:
            self.work.forget(wire.slots)  # type: ignore[attr-defined]

    def tick(self) -> None:
        world = self.world
        if self.master is None:
            self.master = world.call_master(self)
            if self.master is not None:
                leases = self.work.leases() if self.work is not None else []
                self.master.to_host.append(
                    m.Register(shape=world.shape, epochs=1, seed=0, leases=leases, pid=0, host="")
                )
            return
        if not self.registered or self.work is None:
            return
        if world.random.random() < 0.05:
            self.master.to_host.append(m.GetSlotMap())
        if not self.stopping and world.random.random() < world.stop_rate:
            self.stopping = True
            self.master.to_host.append(m.StopEarly(reason="enough", epoch=self.epoch))
        if world.random.random() < 0.02 and self.work.current is not None:
            self.master.to_host.append(m.ReturnTasks(leases=self.work.return_all()))
        self.train(self.work)

    def train(self, work: TaskState) -> None:
        assert self.master is not None
        if work.current is None and not self.begin(work):
            return
        if not work.served or work.map is None:
            self.master.to_host.append(m.GetSlotMap())
            return
        batch = work.next_batch()
        if batch is not None and batch == work.plan.batches_in(work.current.task):  # type: ignore[union-attr]
            self.master.to_host.append(work.finish())
            work.trim()
            return
        for number, holder in enumerate(work.map.holders):
            self.request(work, number, holder, batch)

    def begin(self, work: TaskState) -> bool:
        assert self.master is not None
        if work.waiting and work.waiting[0].epoch <= self.epoch:
            work.begin()
        elif work.waiting or (self.ended >= self.epoch and not work.unanswered):
            if self.epoch + 1 < self.world.epochs:
                self.epoch += 1
            elif not self.finished:
                self.finished = True
                self.master.to_host.append(m.LoopFinished())
        if not self.task_requests and not work.waiting and not self.finished:
            self.task_requests = 1
            self.master.to_host.append(m.RequestTask(epoch=self.epoch))
        return work.current is not None

    def request(self, work: TaskState, number: int, holder: m.Holder, batch: int | None) -> None:
        slots = [slot for slot, owner in enumerate(work.map.owner) if owner == number]  # type: ignore[union-attr]
        wire = self.servers.get(holder.life)
        if wire is not None and (not wire.open or wire.slots != slots):  # type: ignore[attr-defined]
            self.lost(holder.life)
            wire = None
        if wire is None:
            wire = self.world.call(self, holder.life)
            if wire is None:
                return
            wire.slots = slots  # type: ignore[attr-defined]
            self.servers[holder.life] = wire
        if holder.life in self.requests:
            return
        lease = work.current
        assert lease is not None
        grants = [work.map.grants[slot] for slot in slots]  # type: ignore[union-attr]
        if batch is None:
            request: Any = m.Pull(grants=grants, epoch=lease.epoch, task=lease.task, values=False)
        else:
            ahead = work.waiting[0] if work.waiting else lease
            request = m.Push(
                grants=grants,
                epoch=lease.epoch,
                task=lease.task,
                first=batch,
                batches=1,
                samples=work.plan.samples_in(lease.task, batch),
                skipped=False,
                absent=[],
                options={},
                parts=[],
                next_epoch=ahead.epoch,
                next_task=ahead.task,
                values=False,
            )
        self.requests[holder.life] = request
        wire.to_host.append(request)

    def from_host(self, wire: Wire, message: Any) -> None:
        if wire is self.master:
            self.from_master(wire, message)
            return
        life = next((life for life, other in self.servers.items() if other is wire), None)
        if life is None or self.work is None:
            return
        request = self.requests.pop(life, None)
        if isinstance(message, m.PullReply) and request is not None:
            for part in message.applied:
                self.work.applied(request.epoch, request.task, part.slots, part.grants, part.batches)
        elif isinstance(message, m.PushReply) and request is not None:
            for part in message.pushed:
                self.work.applied(request.epoch, request.task, part.slots, part.grants, part.batches)
            if (request.next_epoch, request.next_task) != (request.epoch, request.task):
                for ahead in message.next:
                    self.work.applied(request.next_epoch, request.next_task, ahead.slots, ahead.grants, ahead.batches)

    def from_master(self, wire: Wire, message: Any) -> None:
        if isinstance(message, m.Registered):
            if self.work is None:
                self.work = TaskState(self.world.plan, slots=message.slots)
                self.epoch = message.epoch
            self.registered, self.task_requests = True, 0
            wire.to_host.extend(self.work.unanswered.values())
            if self.stopping and not message.stopping:
                wire.to_host.append(m.StopEarly(reason="enough", epoch=self.epoch))
            self.stopping = self.stopping or bool(message.stopping)
            if self.finished:
                wire.to_host.append(m.LoopFinished())
            return
        if self.work is None:
            return
        match message:
            case m.SlotMap():
                self.work.mapped(message)
            case m.TaskLeased():
                self.task_requests = 0
                self.work.leased(message.lease)
            case m.TaskCommitted():
                self.work.committed(message.lease)
            case m.TaskReopened():
                self.work.reopened(message.lease)
            case m.EpochDone():
                self.task_requests = 0
                self.ended = max(self.ended, message.epoch)
            case m.NotComplete():
                self.finished, self.ended = False, self.epoch - 1
            case m.Stopping():
                self.stopping = True
            case m.ProvideInitialValues():
                self.provide(wire, message)

    def provide(self, wire: Wire, message: m.ProvideInitialValues) -> None:
        for number, holder in enumerate(message.holders):
            pairs = [
                (s, g) for s, g, o in zip(message.slots, message.grants, message.owner, strict=True) if o == number
            ]
            server = self.world.call(self, holder.life)
            if server is None:
                wire.to_host.append(m.InitialValuesGiven(slots=[], grants=[]))
                return
            server.slots = []  # type: ignore[attr-defined]
            server.to_host.append(m.InitialValues(slots=[s for s, _ in pairs], grants=[g for _, g in pairs], parts=[]))
        wire.to_host.append(m.InitialValuesGiven(slots=message.slots, grants=message.grants))


class World:
    """One simulated run of a job.

    Args:
        seed: Random seed of the whole run.
        faults: Faults that may happen; None: a random choice of all faults.
    """

    def __init__(self, seed: int, *, faults: tuple[str, ...] | None = None) -> None:
        chance = self.random = random.Random(seed)
        self.epochs = chance.randint(1, 3)
        self.plan = EpochPlan(
            samples=chance.randint(2, 14),
            batch_size=chance.randint(1, 3),
            drop_last=False,
            task_batches=chance.randint(1, 3),
        )
        self.samples = self.plan.samples_per_epoch
        self.orders = [chance.sample(range(self.samples), self.samples) for _ in range(self.epochs)]
        self.shape = m.ModelSpec(
            samples=self.samples,
            fingerprint="f",
            batch_size=self.plan.batch_size,
            drop_last=False,
            shuffle=True,
            task_batches=self.plan.task_batches,
            accumulate=1,
            dense=[],
            tables=[],
            groups=[],
            buffers=[],
        )
        self.settings = MasterSettings(
            name="world",
            epochs=self.epochs,
            seed=0,
            servers=chance.randint(1, 4),
            checkpoint_seconds=1,
            checkpoint_keep=2,
            output="",
            lease_seconds=2.0,
        )
        self.trainer_count = chance.randint(1, 3)
        self.faults = faults if faults is not None else tuple(f for f in FAULTS if chance.random() < 0.5) or FAULTS[:1]
        self.fault_rate = chance.choice((0.005, 0.015, 0.04))
        self.chaos_steps = chance.choice((300, 800, 2000))
        self.snapshot_rate = chance.choice((0.01, 0.05, 0.2))
        self.damage = chance.choice((0, 0.3))
        self.stop_rate = chance.choice((0, 0.002, 0.02))
        self.etcd: list[tuple[str, Any]] = []
        self.disks = [Folder(self) for _ in range(self.settings.servers)]
        self.snapshotted: set[int] = set()
        self.files = self.wires = self.steps = 0
        self.now = 0.0
        self.outcome: Outcome | None = None
        self.expected: TaskSet | None = None
        """What the job was to do in the end."""
        self.calm = False
        self.stats: Counter[str] = Counter()
        self.processes: list[Process] = []
        self.connections: list[Wire] = []
        self.revive(1.0)

    # --- etcd ---

    def etcd_all(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in self.etcd:
            if value is None:
                found.pop(key, None)
            else:
                found[key] = value
        return found

    def etcd_value(self, key: str) -> Any:
        return next((value for other, value in reversed(self.etcd) if other == key), None)

    # --- Connections ---

    def call_master(self, client: Process) -> Wire | None:
        masters = [p for p in self.processes if isinstance(p, MasterProcess) and not p.paused]
        return self.call(client, self.random.choice(masters).identity.life) if masters else None

    def call(self, client: Process, life: int) -> Wire | None:
        host = next((p for p in self.processes if p.identity.life == life), None)
        if host is None or host.paused:
            return None
        self.wires += 1
        wire = Wire(self.wires, client, host)
        client.wires.append(wire)
        host.wires.append(wire)
        self.connections.append(wire)
        host.accepted(wire)
        return wire if wire.open else None

    def cut(self, wire: Wire, *, tell_host: bool = True) -> None:
        if not wire.open:
            return
        wire.open = False
        self.connections.remove(wire)
        for process in (wire.client, wire.host):
            process.wires.remove(wire)
        if wire.client in self.processes:
            wire.client.closed(wire)
        if tell_host and wire.host in self.processes:
            # The host still reads some of the messages that arrived before the end; the rest is lost.
            for message in list(wire.to_host)[: self.random.randint(0, len(wire.to_host))]:
                if wire.host in self.processes:
                    wire.host.from_client(wire, message)
            if wire.host in self.processes:
                wire.host.closed(wire)

    def kill(self, process: Process) -> None:
        if process not in self.processes:
            return
        self.processes.remove(process)
        for wire in list(process.wires):
            self.cut(wire)

    # --- The schedule ---

    def fault(self) -> None:
        kind = self.random.choice(self.faults)
        self.stats[kind] += 1
        roles = {"kill server": ServerProcess, "kill trainer": TrainerProcess, "kill master": MasterProcess}
        if kind in roles:
            chosen = [p for p in self.processes if isinstance(p, roles[kind])]
            if chosen:
                self.kill(self.random.choice(chosen))
        elif kind == "cut" and self.connections:
            self.cut(self.random.choice(self.connections))
        elif kind == "pause":
            self.random.choice(self.processes or [Process(self, 0)]).paused = True
        elif kind == "ghost master":
            masters = [p for p in self.processes if isinstance(p, MasterProcess)]
            if len(masters) == 1:
                masters[0].paused = True
                self.processes.append(MasterProcess(self, 0))
        elif kind == "etcd forgets":
            del self.etcd[max(0, len(self.etcd) - self.random.randint(1, 30)) :]
        elif kind == "etcd wiped":
            self.etcd.clear()

    def revive(self, chance: float) -> None:
        processes: list[tuple[type[Process], int]] = [(MasterProcess, 0)]
        processes += [(ServerProcess, index) for index in range(self.settings.servers)]
        processes += [(TrainerProcess, index) for index in range(self.trainer_count)]
        for kind, index in processes:
            there = any(isinstance(p, kind) and p.identity.index == index for p in self.processes)
            if not there and self.random.random() < chance:
                self.processes.append(kind(self, index))
        for process in self.processes:
            if process.paused and self.random.random() < chance:
                process.paused = False

    def step(self) -> None:
        chance = self.random
        self.steps += 1
        self.now += 0.01
        if not self.calm and chance.random() < self.fault_rate:
            self.fault()
        if chance.random() < (0.3 if self.calm else 0.04):
            self.revive(1.0 if self.calm else 0.5)
        full = [w for w in self.connections if w.to_host or w.to_client]
        if full and chance.random() < 0.7:
            self.deliver(chance.choice(full))
        elif self.processes:
            process = chance.choice(self.processes)
            if not process.paused:
                process.tick()

    def deliver(self, wire: Wire) -> None:
        to_host = bool(wire.to_host) and (not wire.to_client or self.random.random() < 0.5)
        receiver = wire.host if to_host else wire.client
        if receiver.paused:
            return
        if to_host:
            receiver.from_client(wire, wire.to_host.popleft())
        else:
            receiver.from_host(wire, wire.to_client.popleft())

    def run(self) -> None:
        """Run until the job is complete, and 100 steps beyond, with faults; then check every count.

        Raises:
            Violation: Samples were lost or counted twice, a slot was reset, or the job does not end.
        """
        while self.outcome is None:
            self.step()
            self.calm = self.calm or self.steps > self.chaos_steps
            if self.steps > self.chaos_steps + 60_000:
                raise Violation("the job is stuck")
        self.calm = False
        for _ in range(100):
            self.step()
        self.check()

    def check(self) -> None:
        assert self.outcome is not None
        for slot in range(self.settings.slots):
            name = self.outcome.files[slot]
            stored = next((f for disk in self.disks for f in disk.stored if f.name == name), None)
            if stored is None or stored.damaged:
                raise Violation(f"the final snapshot {name} of slot {slot} is gone")
            counts = stored.slots[slot][0]
            if any(count < expected for count, expected in zip(counts, self.expected_counts(), strict=True)):
                raise Violation(f"slot {slot}: samples lost: {counts}")
            if any(count > expected for count, expected in zip(counts, self.expected_counts(), strict=True)):
                raise Violation(f"slot {slot}: samples twice: {counts}")
        account = self.outcome.account
        assert account is not None
        if account.samples.lost or account.samples.twice or account.samples.counted != sum(self.expected_counts()):
            raise Violation(f"the account is wrong: {account}")

    def everything(self) -> TaskSet:
        return TaskSet.through(self.plan.tasks, (self.epochs - 1, self.plan.tasks - 1))

    def expected_counts(self) -> list[int]:
        """Return how often each sample must be counted."""
        assert self.expected is not None
        counts = [0] * self.samples
        for epoch, order in enumerate(self.orders):
            for task in range(self.plan.tasks):
                if (epoch, task) in self.expected:
                    for batch in range(self.plan.batches_in(task)):
                        for position in self.plan.positions(task, batch):
                            counts[order[position]] += 1
        return counts
