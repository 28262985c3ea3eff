"""Compare the membership of the real master with a naive model: members, leases, departures and deaths.

Trainers connect, register, repeat messages, lose connections, reconnect under the same life or a new one, fall silent, and
leave (also twice, also with the farewell lost); masters are replaced by new ones that know only the records in etcd. The
model consists of three dictionaries and three counters.
"""

from __future__ import annotations

import itertools

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal.master.core import MasterCore
from shoal.master.state.job import Close, JobState, MasterSettings
from shoal.master.state.records import Records
from shoal.protocol import messages as m
from shoal.protocol.task_set import TaskSet
from shoal.store import DesiredState
from shoal.transport.auth import Identity
from tests.soak import examples

LEASE_SECONDS = 10.0
SLOTS = 16
TASKS = 6
SERVER = Identity(role="pserver", index=0, life=10**6)

SHAPE = m.ModelSpec(
    samples=TASKS * 4, fingerprint="f", batch_size=2, drop_last=False, shuffle=True, task_batches=2, accumulate=1,
    dense=[], tables=[], groups=[], buffers=[],
)  # fmt: skip


class Membership(RuleBasedStateMachine):
    """Apply the same events to the master and to the naive model, and compare them."""

    @initialize()
    def begin(self):
        self.now = 100.0
        self.numbers = itertools.count(1)
        self.grants = itertools.count(1)
        self.etcd: dict[str, bytes] = {}
        self.server_slots: dict[int, int] = {}
        self.server_tasks = TaskSet(TASKS)
        self.members: dict[int, int] = {}
        """Life -> index."""
        self.holds: dict[int, set[tuple[int, int]]] = {}
        self.given: dict[int, dict[tuple[int, int], m.Lease]] = {}
        """What a trainer believes to hold, whatever the master thinks of it."""
        self.away: dict[int, float] = {}
        """Members that a new master waits for, and until when."""
        self.connections: dict[int, Identity] = {}
        self.joins = self.leaves = self.deaths = 0
        self.silent: set[int] = set()
        self.drained: set[int] = set()
        """The trainers that this master has drained since they connected."""
        self.desired = DesiredState()
        self.begin_master(generation=1)

    def begin_master(self, *, generation):
        records = Records()
        records.load(self.etcd.items())
        chosen = MasterSettings(name="j", epochs=3, seed=1, servers=1, checkpoint_seconds=1e9, checkpoint_keep=2, output="",
                          lease_seconds=LEASE_SECONDS)  # fmt: skip
        self.job = JobState(settings=chosen, records=records, generation=generation, new_grant=lambda: next(self.grants),
                       now=self.now, clock=lambda: self.now)  # fmt: skip
        self.master = MasterCore(self.job)
        self.master.apply_desired(self.desired)
        self.drained = set()
        self.generation = generation
        self.heard: dict[int, float] = {}
        self.connections = {}
        self.server = self.connect(SERVER)
        self.report_state(0)
        self.settle()

    # --- Environment ---

    def connect(self, identity):
        number = next(self.numbers)
        self.heard[number] = self.now
        if identity.role == "trainer":
            for other, who in list(self.connections.items()):
                if who.index == identity.index:
                    self.model_cut(other)
            self.connections[number] = identity
            self.drained.discard(identity.life)
        self.master.connected(number, identity, self.now)
        return number

    def report_state(self, question):
        held = self.report(list(self.server_slots)) if self.server_slots else []
        self.master.message(self.server, m.ReportState(held=held, waiting=[], files=[], question=question,
                                                 addresses=["unix:///s"], pid=1, host=""), self.now)  # fmt: skip

    def report(self, slots):
        grants = [self.server_slots[slot] for slot in slots]
        return [m.SlotReport(slots=slots, grants=grants, counts=[1] * len(slots), tasks=self.server_tasks.encode(),
                         reached=self.server_tasks.highest)]  # fmt: skip

    def settle(self):
        """Carry messages until none is left, and write changed records to etcd."""
        while True:
            if self.master.servers.confirm_requested:
                self.master.servers.confirmed(self.job.slots.question)
            if not self.job.outbox:
                break
            outbox, self.job.outbox = self.job.outbox, []
            for action in outbox:
                if isinstance(action, Close):
                    continue
                if action.connection == self.server:
                    self.to_server(action.message)
                elif action.connection in self.connections:
                    self.to_trainer(self.connections[action.connection].life, action.message)
        for key, value in self.job.records.flush():
            if value is None:
                self.etcd.pop(key, None)
            else:
                self.etcd[key] = value

    def to_server(self, message):
        if isinstance(message, m.RequestState):
            self.report_state(message.question)
        elif isinstance(message, m.JobSettings) and message.shape is not None:
            self.report_state(0)
        elif isinstance(message, m.Grant):
            self.server_slots[message.slot] = message.grant
            self.master.message(self.server, m.GrantReport(reports=self.report([message.slot])), self.now)

    def to_trainer(self, life, message):
        if isinstance(message, m.Drain):
            self.drained.add(life)
        if isinstance(message, m.TaskLeased):
            task = (message.lease.epoch, message.lease.task)
            assert life not in self.drained, "leased to a drained trainer"
            assert not any(task in held for held in self.holds.values()), "leased while another trainer holds it"
            assert task not in self.server_tasks, "leased although it is done"
            self.holds.setdefault(life, set()).add(task)
            self.given.setdefault(life, {})[task] = message.lease

    def deliver(self, number, message, times=1):
        for _ in range(times):
            self.master.message(number, message, self.now)
        self.settle()

    # --- Naive model ---

    def model_cut(self, number):
        identity = self.connections.pop(number, None)
        if identity is None:
            return
        if self.members.pop(identity.life, None) is not None:
            self.deaths += 1
        self.holds.pop(identity.life, None)
        self.away.pop(identity.life, None)

    def model_register(self, identity, claims):
        if identity.life not in self.members:
            self.joins += 1
        self.members[identity.life] = identity.index
        self.away.pop(identity.life, None)
        elsewhere = set().union(*(held for life, held in self.holds.items() if life != identity.life))
        self.holds[identity.life] = {(lease.epoch, lease.task) for lease in claims} - elsewhere

    def model_pass(self):
        for number, identity in list(self.connections.items()):
            if identity.life not in self.silent:
                self.heard[number] = self.now
            elif self.now - self.heard[number] > LEASE_SECONDS:
                self.model_cut(number)
        for life, deadline in list(self.away.items()):
            if self.now > deadline:
                del self.away[life], self.members[life]
                self.deaths += 1
                self.holds.pop(life, None)

    # --- Events ---

    def one(self, data, *, registered=True):
        return data.draw(st.sampled_from(
            sorted(n for n, who in self.connections.items() if not registered or who.life in self.members)
        ))  # fmt: skip

    def some_registered(self):
        return any(who.life in self.members for who in self.connections.values())

    @rule(index=st.integers(0, 3), times=st.integers(1, 2))
    def join(self, index, times):
        identity = Identity(role="trainer", index=index, life=next(self.numbers) + 1000)
        number = self.connect(identity)
        self.model_register(identity, [])
        self.deliver(number, m.Register(shape=SHAPE, epochs=3, seed=1, leases=[], pid=1, host=""), times)

    @rule(index=st.integers(0, 3))
    def connect_without_registering(self, index):
        self.connect(Identity(role="trainer", index=index, life=next(self.numbers) + 1000))
        self.settle()

    @rule(data=st.data(), index=st.integers(0, 3))
    def come_back(self, data, index):
        """Reconnect a trainer whose connection was cut or whose master was replaced; it claims some of its believed leases."""
        connected = {who.life for who in self.connections.values()}
        lives = sorted(life for life in self.given if life not in connected)
        if not lives:
            return
        life = data.draw(st.sampled_from(lives))
        known = list(self.given[life].values())
        claims = (
            data.draw(st.lists(st.sampled_from(known), unique_by=lambda lease: (lease.epoch, lease.task)))
            if known
            else []
        )
        identity = Identity(role="trainer", index=self.members.get(life, index), life=life)
        number = self.connect(identity)
        # Waiting trainers receive the leases of the earlier trainer of that index before the master processes the claims.
        self.settle()
        self.model_register(identity, claims)
        self.deliver(number, m.Register(shape=SHAPE, epochs=3, seed=1, leases=claims, pid=1, host=""))

    @precondition(lambda self: self.connections)
    @rule(data=st.data())
    def cut(self, data):
        number = self.one(data, registered=False)
        self.model_cut(number)
        self.master.closed(number, self.now)
        self.master.closed(number, self.now)
        self.settle()

    @precondition(some_registered)
    @rule(data=st.data(), times=st.integers(1, 2), then_cut=st.booleans())
    def leave(self, data, times, then_cut):
        number = self.one(data)
        identity = self.connections[number]
        leases = list(self.given.pop(identity.life, {}).values())
        del self.members[identity.life]
        self.holds.pop(identity.life, None)
        self.leaves += 1
        self.deliver(number, m.Leave(leases=leases), times)
        if then_cut:
            del self.connections[number]
            self.master.closed(number, self.now)
            self.settle()

    @precondition(some_registered)
    @rule(data=st.data(), times=st.integers(1, 3))
    def request_task(self, data, times):
        number = self.one(data)
        self.deliver(number, m.RequestTask(epoch=0), times)

    @precondition(lambda self: any(self.given.values()) and self.connections)
    @rule(data=st.data(), times=st.integers(1, 2))
    def done(self, data, times):
        """Report a task as done, also one that another trainer holds by now: the servers have applied it, which decides."""
        holders = sorted(
            n for n, who in self.connections.items() if self.given.get(who.life) and who.life in self.members
        )
        if not holders:
            return
        number = data.draw(st.sampled_from(holders))
        task = data.draw(st.sampled_from(sorted(self.given[self.connections[number].life])))
        lease = self.given[self.connections[number].life].pop(task)
        self.server_tasks.add(*task)
        for held in self.holds.values():
            held.discard(task)
        self.deliver(number, m.TaskDone(lease=lease, grants=[self.server_slots[slot] for slot in range(SLOTS)]), times)

    @precondition(some_registered)
    @rule(data=st.data(), times=st.integers(1, 2))
    def return_tasks(self, data, times):
        number = self.one(data)
        life = self.connections[number].life
        leases = list(self.given.pop(life, {}).values())
        self.holds[life] = set()
        self.deliver(number, m.ReturnTasks(leases=leases), times)

    @precondition(lambda self: self.connections)
    @rule(data=st.data())
    def fall_silent(self, data):
        self.silent.add(self.connections[self.one(data, registered=False)].life)

    @rule(seconds=st.sampled_from([0.5, 4.0, 11.0]))
    def pass_time(self, seconds):
        self.now += seconds
        self.model_pass()
        self.heard[self.server] = self.now
        for number, at in self.heard.items():
            self.master.heard(number, at)
        self.master.tick(self.now)
        self.settle()

    @rule(drain=st.sets(st.integers(0, 3), max_size=2), suspend=st.booleans())
    def change_the_desired_state(self, drain, suspend):
        self.desired = DesiredState(drain=sorted(drain), suspend=suspend)
        self.master.apply_desired(self.desired)
        self.settle()

    @rule()
    def replace_the_master(self):
        self.settle()
        self.away = dict.fromkeys(self.members, self.now + LEASE_SECONDS)
        self.begin_master(generation=self.generation + 1)

    # --- Invariants ---

    @invariant()
    def the_master_s_members_are_the_model_s(self):
        if not hasattr(self, "job"):
            return
        members = {life: r.index for life, r in self.job.records.members.items() if r.role == "trainer"}
        assert members == self.members
        assert set(self.job.trainers) == set(self.members) - set(self.away)
        assert {int(key.split("/")[1], 16) for key in self.etcd if key.startswith("members/")} == {
            *self.members,
            SERVER.life,
        }

    @invariant()
    def it_holds_what_the_model_holds(self):
        if not hasattr(self, "job") or self.job.queue is None:
            return
        found = {}
        for task, (life, _) in self.job.queue.leases.items():
            found.setdefault(life, set()).add(task)
        assert found == {life: held for life, held in self.holds.items() if held}
        for life, record in self.job.records.members.items():
            kept = {(lease.epoch, lease.task) for lease in record.leases}
            assert kept == self.holds.get(life, set()), "the record of a member lacks or has a lease too many"

    @invariant()
    def trainers_to_be_drained_have_received_drain(self):
        if hasattr(self, "job"):
            leaving = {life for life, index in self.members.items() if self.desired.leaves(index)}
            assert leaving - set(self.away) <= self.drained

    @invariant()
    def the_counts_are_the_model_s(self):
        if hasattr(self, "job"):
            counters = self.job.records.counters
            assert (counters.joins, counters.leaves, counters.deaths) == (self.joins, self.leaves, self.deaths)


TestMembership = Membership.TestCase
TestMembership.settings = examples(60, stateful_step_count=40)
