"""Compare the task queue with a naive model under every order of leases, acknowledgements, reports, deaths and repetitions."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from shoal.master.state.task_queue import TaskQueue
from shoal.protocol.epoch_plan import EpochPlan
from shoal.protocol.messages import Lease
from shoal.protocol.task_set import TaskSet
from tests.soak import examples

SLOTS = 3
slots = st.sets(st.integers(0, SLOTS - 1))
holders = st.integers(1, 3)


class Queue(RuleBasedStateMachine):
    """Naive model: a set of tasks per slot; a task is done if all slots have it; the first undone, unleased task is next.

    Once the queue is stopped, only tasks up to the last one that was ever leased, claimed or reported count.
    """

    given = Bundle("given")

    @initialize(samples=st.integers(1, 12), size=st.integers(1, 3), epochs=st.integers(1, 3))
    def begin(self, samples, size, epochs):
        self.plan = EpochPlan(samples=samples, batch_size=2, drop_last=False, task_batches=size)
        self.queue = TaskQueue(self.plan, epochs=epochs, slots=SLOTS)
        self.queue.open_next()
        self.epochs = epochs
        self.open = 0
        self.has = {slot: set() for slot in range(SLOTS)}
        self.leases = {}
        self.reached = (-1, -1)
        self.stopped = False

    def reach(self, task):
        self.reached = max(self.reached, task)
        if self.stopped:
            self.open = max(self.open, self.reached[0])

    def last(self):
        return self.reached[0] if self.stopped else self.epochs - 1

    def tasks(self):
        every = [(epoch, task) for epoch in range(self.epochs) for task in range(self.plan.tasks)]
        return [task for task in every if not self.stopped or task <= self.reached]

    def open_tasks(self):
        return [
            (epoch, task)
            for epoch, task in self.tasks()
            if epoch <= self.open and not all((epoch, task) in have for have in self.has.values())
        ]

    @rule()
    def stops(self):
        self.queue.stop()
        self.stopped = True
        self.reach(self.reached)

    @rule(target=given, holder=holders, early=st.booleans())
    def lease(self, holder, early):
        free = [task for task in self.open_tasks() if task not in self.leases]
        while not free and early and self.open < self.last():
            self.open += 1
            free = [task for task in self.open_tasks() if task not in self.leases]
        lease = self.queue.lease(holder, early=early)
        if not free:
            assert lease is None
            return Lease(epoch=0, task=0, attempt=0)
        assert lease is not None
        assert (lease.epoch, lease.task) == free[0], "earlier epochs first, and within one in order"
        self.leases[free[0]] = holder
        self.reach(free[0])
        return lease

    @rule(lease=given, who=slots)
    def acknowledge(self, lease, who):
        """Acknowledge a task, also repeatedly, late, and from a trainer that no longer holds the lease."""
        task = (lease.epoch, lease.task)
        for slot in who:
            self.has[slot].add(task)
        self.reach(task)
        done = all(task in have for have in self.has.values())
        assert self.queue.acknowledge(lease, who) == done
        if done:
            self.leases.pop(task, None)

    @rule(holder=holders)
    def dies(self, holder):
        for lease in self.queue.held_by(holder):
            assert self.queue.release((lease.epoch, lease.task), holder)
        self.leases = {task: other for task, other in self.leases.items() if other != holder}

    @rule(lease=given, holder=holders)
    def hands_back(self, lease, holder):
        task = (lease.epoch, lease.task)
        held = self.leases.get(task) == holder
        assert self.queue.release(task, holder) == held
        if held:
            del self.leases[task]

    @rule(lease=given, holder=holders)
    def comes_back_with_a_lease(self, lease, holder):
        task = (lease.epoch, lease.task)
        allowed = self.leases.get(task, holder) == holder
        assert self.queue.renew(holder, lease) == allowed
        self.reach(task)
        if allowed:
            self.leases[task] = holder

    @rule(who=slots, data=st.data())
    def reports(self, who, data):
        """Begin a grant: the report replaces the recorded tasks of these slots, and contains more or fewer of them."""
        tasks = [(epoch, task) for epoch in range(self.open + 1) for task in range(self.plan.tasks)]
        have = data.draw(st.sets(st.sampled_from(tasks)))
        reached = max(data.draw(st.sampled_from([(-1, -1), *tasks])), max(have, default=(-1, -1)))
        finished = TaskSet(self.plan.tasks)
        for epoch, task in have:
            finished.add(epoch, task)
        before = set(self.open_tasks())
        for slot in who:
            self.has[slot] = set(have)
        back = self.queue.replace(who, finished, reached=reached)
        self.reach(reached)
        came = set(self.open_tasks()) - before
        assert back == sum(self.plan.batches_in(task) for _, task in came)

    @invariant()
    def says_the_same(self):
        if not hasattr(self, "queue"):
            return
        open_tasks = self.open_tasks()
        assert self.queue.open == self.open
        assert {task: holder for task, (holder, _) in self.queue.leases.items()} == self.leases
        for holder in range(1, 4):
            held = {(lease.epoch, lease.task) for lease in self.queue.held_by(holder)}
            assert held == {task for task, other in self.leases.items() if other == holder}
        assert self.queue.reached == self.reached
        assert self.queue.all_done == (self.open >= self.last() and not open_tasks)
        expected = [self.plan.samples_in_task(task) for _, task in self.tasks()]
        assert self.queue.expected == sum(expected)
        whole = sum(len([t for e, t in self.tasks() if e == epoch]) == self.plan.tasks for epoch in range(self.epochs))
        assert self.queue.whole_epochs == whole
        for epoch in range(self.open + 1):
            left = [task for e, task in open_tasks if e == epoch]
            assert self.queue.batches_left(epoch) == sum(self.plan.batches_in(task) for task in left)
            every = sum(self.plan.samples_in_task(task) for e, task in self.tasks() if e == epoch)
            expected = every - sum(self.plan.samples_in_task(task) for task in left)
            assert self.queue.samples_done(epoch) == expected


TestQueue = Queue.TestCase
TestQueue.settings = examples(60, stateful_step_count=40)
