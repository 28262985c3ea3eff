"""The master core with one simulated parameter server and simulated trainers: its replies and its records in etcd."""

from __future__ import annotations

import itertools

from shoal.master.core import MasterCore
from shoal.master.state.job import JobState, MasterSettings, Send
from shoal.master.state.records import Records
from shoal.protocol import messages as m
from shoal.protocol.task_set import TaskSet
from shoal.transport.auth import Identity

TASKS = 6
SAMPLES = 4
"""In a task: two batches of two."""
EPOCHS = 3
SERVER = Identity(role="pserver", index=0, life=10**6)
SERVER_CONNECTION = 999
SHAPE = m.ModelSpec(
    samples=TASKS * SAMPLES, fingerprint="f", batch_size=2, drop_last=False, shuffle=True, task_batches=2, accumulate=1,
    dense=[], tables=[], groups=[m.Group(optimizer="SGD", options={"lr": 0.5})], buffers=[],
)  # fmt: skip


class MasterHarness:
    """Drives a master core: the server reports the tasks ``has`` and ``reached``; a trainer's connection number is its index."""

    def __init__(self, *, server: bool = True):
        self.etcd: dict[str, bytes] = {}
        self.grants = itertools.count(1)
        self.served: dict[int, int] = {}
        self.has = TaskSet(TASKS)
        self.reached = (-1, -1)
        self.finals: list[m.TakeFinalSnapshot] = []
        self.generation = 0
        self.server = server
        self.replace_master()

    def replace_master(self):
        """Replace the master by a new one that loads the records in etcd."""
        self.generation += 1
        records = Records()
        records.load(self.etcd.items())
        chosen = MasterSettings(name="j", epochs=EPOCHS, seed=1, servers=1, checkpoint_seconds=1e9, checkpoint_keep=2,
                          output="", lease_seconds=10.0)  # fmt: skip
        self.job = JobState(settings=chosen, records=records, generation=self.generation,
                       new_grant=lambda: next(self.grants), now=0.0, clock=lambda: 0.0)  # fmt: skip
        self.master = MasterCore(self.job)
        if self.server:
            self.master.connected(SERVER_CONNECTION, SERVER, 0.0)
            self.report_state(0)
            self.settle()

    def report(self, slots):
        return [m.SlotReport(slots=slots, grants=[self.served[slot] for slot in slots], counts=[1] * len(slots),
                         tasks=self.has.encode(), reached=max(self.reached, self.has.highest))]  # fmt: skip

    def report_state(self, question):
        held = self.report(list(self.served)) if self.served else []
        self.from_server(
            m.ReportState(held=held, waiting=[], files=[], question=question, addresses=["unix:///s"], pid=1, host="")
        )

    def from_server(self, message):
        self.master.message(SERVER_CONNECTION, message, 0.0)

    def settle(self):
        """Carry messages to the server until none is left, and flush the records to etcd; return the messages to trainers."""
        messages = []
        while True:
            if self.master.servers.confirm_requested:
                self.master.servers.confirmed(self.job.slots.question)
            if not self.job.outbox:
                break
            outbox, self.job.outbox = self.job.outbox, []
            for each in outbox:
                if isinstance(each, Send) and each.connection == SERVER_CONNECTION:
                    self.to_server(each.message)
                elif isinstance(each, Send):
                    messages.append((each.connection, each.message))
        for key, value in self.job.records.flush():
            if value is None:
                self.etcd.pop(key, None)
            else:
                self.etcd[key] = value
        return messages

    def to_server(self, message):
        match message:
            case m.RequestState():
                self.report_state(message.question)
            case m.JobSettings() if message.shape is not None:
                self.report_state(0)
            case m.Grant():
                self.served[message.slot] = message.grant
                self.from_server(m.GrantReport(reports=self.report([message.slot])))
            case m.TakeFinalSnapshot():
                self.finals.append(message)

    def joins(self, index, *, life=0, leases=()):
        """Register a trainer; return the master's messages."""
        identity = Identity(role="trainer", index=index, life=life or 100 + index)
        self.master.connected(index, identity, 0.0)
        return self.deliver(index, m.Register(shape=SHAPE, epochs=EPOCHS, seed=1, leases=list(leases), pid=1, host="h"))

    def deliver(self, index, message):
        """Deliver a trainer's message; return the master's messages, each with its connection."""
        self.master.message(index, message, 0.0)
        return self.settle()

    def dies(self, index):
        """Close a trainer's connection without a farewell."""
        self.master.closed(index, 0.0)
        return self.settle()

    def gets(self, index):
        """Request a task of any epoch for a trainer; return the master's reply."""
        (leased,) = [
            x
            for to, x in self.deliver(index, m.RequestTask(epoch=EPOCHS - 1))
            if to == index and isinstance(x, m.TaskLeased)
        ]
        return leased

    def does(self, index, lease):
        """Complete a leased task and report it to the master."""
        self.has.add(lease.epoch, lease.task)
        return self.deliver(index, m.TaskDone(lease=lease, grants=[self.served[slot] for slot in sorted(self.served)]))

    def works(self, index, tasks):
        """Lease and complete a number of tasks for a trainer."""
        for _ in range(tasks):
            self.does(index, self.gets(index).lease)

    def final_snapshots_pinned(self, *, skipped=0):
        """Report from the server that the last final snapshot is pinned."""
        final = self.finals[-1]
        samples = sum(SAMPLES for epoch in range(EPOCHS) for task in range(TASKS) if (epoch, task) in self.has)
        count = len(final.slots)
        self.from_server(m.FinalSnapshotPinned(file="f", tasks=final.tasks, slots=final.slots, grants=final.grants,
                                samples=[samples] * count, skipped=[skipped] * count))  # fmt: skip
        return self.settle()

    def events(self, level="info"):
        """Return the texts of the job's events of a level."""
        return [text for _, _, of, text in self.job.events if of == level]
