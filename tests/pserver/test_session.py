"""A trainer's requests to a real parameter server over a socket: initial values, buffers, fixed tensors, averages."""

from __future__ import annotations

import contextlib
import itertools
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from shoal.protocol import messages as m
from shoal.protocol.epoch_plan import EpochPlan
from shoal.pserver.service import _Tensors
from shoal.pserver.session import TrainerConnection
from shoal.pserver.snapshots.folder import SnapshotFolder
from shoal.pserver.state.parameters import Parameters
from shoal.pserver.state.server_state import ServerState
from shoal.tensors.table_rows import GIVEN
from shoal.trainer.engine import initial_values
from shoal.trainer.engine.servers import Gradients, ServerLost, Servers
from shoal.transport import auth, sync
from shoal.transport.address import listen
from tests.pserver.shapes import make_shape, registered

TOKEN = auth.Token(b"0123456789abcdef")
SLOTS = 4
PLAN = EpochPlan(samples=100, batch_size=10, drop_last=False, task_batches=2)
WEIGHT = torch.arange(6.0).reshape(2, 3)
USERS = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
MEAN, COUNT, MASK = torch.tensor([1.0, 2.0]), torch.tensor(7), torch.tensor([[True], [False]])
decoder = msgspec.msgpack.Decoder(m.ToTrainer)

SHAPE = make_shape(
    sizes={"w": [2, 3]},
    groups=[m.Group("SGD", registered("SGD", {"lr": 1.0}))],
    tables=[
        m.SparseTable("large", 50, 3, "float32", 0, "constant", 2.0, 0.0, []),
        m.SparseTable("users", 50, 3, "float32", 0, GIVEN, 0.0, 0.0, []),
    ],
    buffers=[m.Buffer("mean", [2], "float32", "mean"), m.Buffer("count", [], "int64", "sum")],
    fixed=[m.Tensor("mask", [2, 1], "bool")],
    ema=0.5,
)


class Server:
    """One server with its real state, parameters, snapshots and sessions; the test plays the master."""

    def __init__(self, address: str, folder: Path, *, index: int, shape: m.ModelSpec = SHAPE) -> None:
        self.lock = threading.Lock()
        self.parameters = Parameters(shape, SLOTS, seed=5)
        self.disk = SnapshotFolder(folder, uid="job", shape=shape, keep=2)
        self.state = ServerState(_Tensors(self.parameters), self.disk, plan=PLAN, epochs=1)
        self.identity = auth.Identity("pserver", index, 100 + index)
        self.inits = 0
        self._stream, address = listen(address)
        self.holder = m.Holder(index=index, life=100 + index, addresses=[address])
        self.ends: list[str] = []
        self._accepted: list[sync.BlockingConnection] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def initialised(self) -> None:
        self.inits += 1

    def attached(self, connection: sync.BlockingConnection) -> None:
        """Do nothing; the real service closes the trainer's earlier connections here."""

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._stream.accept()
            except OSError:
                return
            connection = sync.accept(caller, identity=self.identity, token=TOKEN, job="job")
            self._accepted.append(connection)
            thread = threading.Thread(target=lambda c=connection: self.ends.append(TrainerConnection(c, self).run()))
            self._threads.append(thread)
            thread.start()

    def order(self, message: Any) -> list[Any]:
        with self.lock:
            replies = self.state.order(message)
            if (order := self.state.next_restore()) is not None:
                replies += self.state.restored(order, *self.disk.load(order.file, order.slot))
            return replies

    def snapshot(self) -> str:
        with self.lock:
            snapshot = self.state.begin_snapshot()
        name = self.disk.write(snapshot, pin=False)
        with self.lock:
            self.state.snapshot_written(name, snapshot, pinned=False)
        return name

    def close(self) -> None:
        self._stream.shutdown(2)
        self._stream.close()
        for connection in self._accepted:
            connection.close()
        for thread in self._threads:
            thread.join(10)


class World:
    """Two servers: the first has slots 0 and 2, the second has slots 1 and 3."""

    def __init__(self, scheme: str, folder: Path) -> None:
        self.folder = folder
        self.scheme = scheme
        self.numbers = itertools.count(1)
        self.servers = [self.server(index) for index in range(2)]
        self.owner = [0, 1, 0, 1]
        self.grants = [next(self.numbers) for _ in range(SLOTS)]
        self.trainers: list[Servers] = []

    def server(self, index: int, *, life: str = "a", shape: m.ModelSpec = SHAPE) -> Server:
        address = f"unix://{self.folder}/{life}{index}" if self.scheme == "unix" else "tcp://127.0.0.1:0"
        return Server(address, self.folder / f"snapshots{index}", index=index, shape=shape)

    def begin(self) -> list[Any]:
        return [
            reply
            for slot, owner in enumerate(self.owner)
            for reply in self.servers[owner].order(m.Grant(slot=slot, grant=self.grants[slot], source="fresh", file=""))
        ]

    @property
    def provide(self) -> m.ProvideInitialValues:
        holders = [server.holder for server in self.servers]
        return m.ProvideInitialValues(slots=list(range(SLOTS)), grants=self.grants, holders=holders, owner=self.owner)

    @property
    def map(self) -> m.SlotMap:
        return m.SlotMap(holders=[server.holder for server in self.servers], owner=self.owner, grants=self.grants)

    def trainer(self) -> Servers:
        identity = auth.Identity("trainer", len(self.trainers), 200 + len(self.trainers))
        made = Servers(SHAPE, slots=SLOTS, identity=identity, token=TOKEN, uid="job")
        made.parameters = [torch.zeros(2, 3)]
        # An optimizer's first step imports further modules, which takes many seconds on a busy machine.
        made.answer_timeout.lease_seconds = 120.0
        made.follow(self.map)
        self.trainers.append(made)
        return made

    def begun(self) -> Servers:
        """Return a trainer that has provided its initial values, which are in the first snapshots."""
        self.begin()
        trainer = self.trainer()
        assert given(trainer, self.provide)
        for server in self.servers:
            server.snapshot()
        return trainer

    def close(self) -> None:
        for trainer in self.trainers:
            trainer.close()
        for server in self.servers:
            server.close()


@pytest.fixture(params=["unix", "tcp"])
def world(request, tmp_path):
    made = World(request.param, tmp_path)
    yield made
    made.close()


def given(trainer: Servers, message: m.ProvideInitialValues) -> bool:
    tables = [torch.zeros(50, 3), USERS]
    return trainer.provide(message, [WEIGHT.flatten()], tables=tables, buffers=[MEAN, COUNT], fixed=[MASK])


def idle() -> None:
    """Do nothing while waiting."""


def push(trainer: Servers, batch: int, gradient: Tensor, *, skipped: bool = False) -> None:
    message = m.Push(
        grants=[], epoch=0, task=batch // 2, first=batch % 2, batches=1, samples=10, skipped=skipped, absent=[],
        options={}, parts=[], next_epoch=0, next_task=0, values=True,
    )  # fmt: skip
    for pushed, _ in trainer.push(message, Gradients(dense=[gradient.flatten()]), idle=idle):
        assert all(batches == batch % 2 + 1 for _, _, batches in pushed)


def test_nothing_is_served_before_the_first_trainer_sent_all_values(world: World) -> None:
    assert [type(reply) for reply in world.begin()] == [m.AwaitingInitialValues] * SLOTS
    trainer = world.trainer()
    with pytest.raises(ServerLost):
        trainer.take_fixed([torch.zeros(2, 1, dtype=torch.bool)], idle=idle)
    assert given(trainer, world.provide)
    assert [sorted(server.state.granted.fresh) for server in world.servers] == [[0, 2], [1, 3]]
    for server in world.servers:
        server.snapshot()
    assert [server.state.granted.fresh for server in world.servers] == [{}, {}]


def test_a_second_trainer_reads_the_values_of_the_first_one(world: World) -> None:
    world.begun()
    trainer = world.trainer()
    trainer.pull(0, 0, idle=idle)
    assert torch.equal(trainer.parameters[0], WEIGHT)
    every = torch.arange(50)
    drawn, users = trainer.rows([(0, every), (1, every)], idle=idle)
    assert torch.equal(users, USERS)
    assert torch.equal(drawn, torch.full((50, 3), 2.0))
    exported = trainer.export_rows(idle=idle)
    assert sum(len(ids) for ids, _ in exported[0]) == 0
    assert sorted(torch.cat([ids for ids, _ in exported[1]]).tolist()) == every.tolist()
    assert all(torch.equal(values, USERS[ids]) for ids, values in exported[1])
    buffers = [torch.zeros(2), torch.zeros((), dtype=torch.int64)]
    trainer.merge_buffers(buffers, trainers=0, idle=idle)
    mask = torch.zeros(2, 1, dtype=torch.bool)
    trainer.take_fixed([mask], idle=idle)
    assert [*(buffer.tolist() for buffer in buffers), mask.tolist()] == [[1.0, 2.0], 7, [[True], [False]]]


def test_all_of_it_is_in_snapshot_0_and_restored_from_there(world: World) -> None:
    world.begun()
    files = [server.disk.files()[-1].name for server in world.servers]
    for server in world.servers:
        server.close()
    world.servers = [world.server(index, life="b") for index in range(2)]
    world.grants = [next(world.numbers) for _ in range(SLOTS)]
    for slot, owner in enumerate(world.owner):
        order = m.Grant(slot=slot, grant=world.grants[slot], source="file", file=files[owner])
        assert [type(reply) for reply in world.servers[owner].order(order)] == [m.GrantReport]
    trainer = world.trainer()
    trainer.pull(0, 0, idle=idle)
    assert torch.equal(trainer.parameters[0], WEIGHT)
    assert torch.equal(trainer.rows([(1, torch.arange(50))], idle=idle)[0], USERS)
    mask = torch.zeros(2, 1, dtype=torch.bool)
    trainer.take_fixed([mask], idle=idle)
    assert torch.equal(mask, MASK)


def test_values_go_in_portions_of_a_bounded_size(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initial_values, "PROVIDED_BYTES", 1)
    world.begun()
    assert [server.inits for server in world.servers] == [2, 2]
    trainer = world.trainer()
    trainer.pull(0, 0, idle=idle)
    assert torch.equal(trainer.parameters[0], WEIGHT)
    assert torch.equal(trainer.rows([(1, torch.arange(50))], idle=idle)[0], USERS)


def test_values_that_arrive_twice_or_under_another_grant_change_nothing(world: World) -> None:
    world.begin()
    trainer = world.trainer()
    strange = msgspec.structs.replace(world.provide, grants=[99] * SLOTS)
    assert given(trainer, strange)
    assert [server.parameters.state(slot)["dense/w@0"].tolist() for server, slot in [(world.servers[0], 0)]] == [[0.0]]
    assert [type(reply) for reply in world.begin()] == []
    assert given(trainer, world.provide)
    other = [torch.zeros(50, 3), USERS + 1]
    assert trainer.provide(world.provide, [WEIGHT.flatten() + 1], tables=other, buffers=[MEAN, COUNT], fixed=[MASK])
    assert torch.equal(world.servers[0].parameters.state(0)["dense/w@0"], WEIGHT.flatten()[:1])


def test_initial_values_of_another_size_are_refused(world: World) -> None:
    """The server refuses them before it allocates memory for rows that the slots do not have."""
    world.begin()
    server = world.servers[0]
    count = server.parameters.rows_in(1, 0)
    right = m.RowPart(table=1, count=count)
    init = m.InitialValues(slots=[0], grants=[world.grants[0]], parts=[right])
    whole = 64 + count * (8 + 12) + 128 + 64
    for message, size, reason in [
        (init, whole - 1, "initial values of another size"),
        (msgspec.structs.replace(init, parts=[]), whole, "other rows than those of the given tables"),
        (msgspec.structs.replace(init, parts=[m.RowPart(table=1, count=1 << 40)]), whole, "other rows than those"),
        (msgspec.structs.replace(init, parts=[m.RowPart(table=0, count=count)]), whole, "other rows than those"),
        (msgspec.structs.replace(init, slots=[9]), whole, "no slots"),
    ]:
        identity = auth.Identity("trainer", 9, 9)
        with contextlib.closing(
            sync.connect(server.holder.addresses[0], identity=identity, token=TOKEN, job="job")
        ) as connection:
            connection.send(message, [memoryview(bytes(size))])
            answer, _ = connection.receive(decoder)
            assert isinstance(answer, m.Fatal)
            assert reason in answer.reason
    assert server.state.awaits_values(0, world.grants[0])


def test_counts_add_up_and_means_are_shared_between_trainers(world: World) -> None:
    first = world.begun()
    second = world.trainer()
    mine = {trainer: [torch.zeros(2), torch.zeros((), dtype=torch.int64)] for trainer in (first, second)}
    bases = {}
    for trainer, buffers in mine.items():
        trainer.merge_buffers(buffers, trainers=0, idle=idle)
        bases[trainer] = [buffer.clone() for buffer in buffers]
    for trainer, steps in ((first, 5), (second, 3), (first, 2)):
        mean, count = mine[trainer]
        count += steps
        mean.fill_(9.0)
        trainer.merge_buffers([mean, count], bases[trainer], trainers=2, idle=idle)
        bases[trainer] = [mean.clone(), count.clone()]
    assert int(mine[first][1]) == 7 + 5 + 3 + 2
    assert mine[first][0].tolist() == [8.0, 8.125]
    assert int(mine[second][1]) == 7 + 5 + 3


def test_the_average_is_read_separately_from_the_live_parameters(world: World) -> None:
    trainer = world.begun()
    trainer.pull(0, 0, idle=idle)
    [average] = trainer.pull_average(idle=idle)
    assert torch.equal(average, WEIGHT.flatten())
    ones = torch.ones(2, 3)
    push(trainer, 0, ones)
    push(trainer, 1, ones, skipped=True)
    push(trainer, 2, ones)
    [average] = trainer.pull_average(idle=idle)
    assert torch.equal(average, WEIGHT.flatten() - 1.5)
    assert torch.equal(trainer.parameters[0], WEIGHT - 2)
    push(trainer, 3, ones)
    assert torch.equal(trainer.parameters[0], WEIGHT - 3)


def test_a_slot_lost_after_an_average_was_read_leaves_the_values_in_the_parameters(world: World) -> None:
    trainer = world.begun()
    push(trainer, 0, torch.ones(2, 3))
    push(trainer, 1, torch.ones(2, 3))
    trainer.pull_average(idle=idle)
    world.servers[0].order(m.ReleaseSlot(slot=2, grant=world.grants[2]))
    trainer.pull(0, 0, idle=idle)
    assert torch.equal(trainer.parameters[0], WEIGHT - 2)
    with pytest.raises(ServerLost) as lost:
        trainer.pull_average(idle=idle)
    assert lost.value.slots == [0, 2]


def test_slots_that_move_while_a_server_is_slow_are_requested_from_their_new_server(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = world.begun()
    trainer.pull(0, 0, idle=idle)
    swapped = m.SlotMap(
        holders=world.map.holders[::-1], owner=[1 - owner for owner in world.owner], grants=world.grants
    )
    plain, checked = sync.BlockingConnection.send, []

    def slow(connection: sync.BlockingConnection, message: Any, payload: Any = (), *, idle: Any = None) -> None:
        if idle is not None and not checked:
            checked.append(message)
            idle()
        plain(connection, message, payload, idle=idle)

    monkeypatch.setattr(sync.BlockingConnection, "send", slow)
    with pytest.raises(ServerLost) as lost:
        trainer.pull(0, 0, idle=lambda: trainer.follow(swapped))
    assert sorted(lost.value.slots) == [1, 3]
    answers = trainer.pull(0, 0, idle=idle)
    assert sorted(slot for slots, _, _ in answers for slot in slots) == [0, 1, 2, 3]
    assert torch.equal(trainer.parameters[0], WEIGHT)


def test_a_server_that_does_not_answer_an_attach_is_left_when_its_slots_are_elsewhere(world: World) -> None:
    trainer = world.begun()
    trainer.pull(0, 0, idle=idle)
    newcomer = world.trainer()
    elsewhere = m.SlotMap(holders=[], owner=[-1] * SLOTS, grants=[m.NO_GRANT] * SLOTS)
    with world.servers[0].lock, pytest.raises(ServerLost) as lost:  # as with a stopped server
        newcomer.pull(0, 0, idle=lambda: newcomer.follow(elsewhere))
    assert sorted(set(lost.value.slots)) == [0, 1, 2, 3]
