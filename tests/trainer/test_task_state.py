"""A trainer's leases and watermarks under faults, compared with a simple model of the master and the slots.

Answers arrive late, twice, in any order or never; slots are restored from old snapshots, moved and lost; the connection to
the master breaks; another trainer takes tasks over; and the master's ``TaskCommitted`` waits for etcd while its other messages
do not. The model knows the true state, and each claim of the trainer is compared with it.
"""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoal.protocol.epoch_plan import EpochPlan
from shoal.protocol.messages import (
    NO_GRANT,
    Lease,
    ReturnTasks,
    SlotMap,
    TaskCommitted,
    TaskDone,
    TaskLeased,
    TaskReopened,
)
from shoal.trainer.engine.task_state import TaskState
from tests.soak import examples

SLOTS = 2
PLAN = EpochPlan(samples=3, batch_size=1, drop_last=False, task_batches=2)
TASKS = [(0, 0), (0, 1)]  # a task of two batches and one of one batch
ME, OTHER = "me", "another trainer"

slots = st.integers(0, SLOTS - 1)
some_slots = st.sets(slots, min_size=1)
tasks = st.sampled_from(TASKS)


def named(lease: Lease) -> tuple[int, int]:
    return lease.epoch, lease.task


class Slot:
    """A slot as its server keeps it: pushes are applied in order, once each, and under the current grant only."""

    def __init__(self, grant: int) -> None:
        self.grant = grant
        self.applied = dict.fromkeys(TASKS, 0)
        self.snapshots = [dict(self.applied)]

    def push(self, grant: int, task: tuple[int, int], batch: int) -> None:
        if grant == self.grant != NO_GRANT and batch == self.applied[task]:
            self.applied[task] += 1

    def answer(self, grant: int, task: tuple[int, int]) -> tuple[int, int]:
        return (grant, self.applied[task]) if grant == self.grant != NO_GRANT else (NO_GRANT, 0)

    def finished(self) -> set[tuple[int, int]]:
        return {task for task, batches in self.applied.items() if batches == PLAN.batches_in(task[1])}


class BadDay(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.work = TaskState(PLAN, slots=SLOTS)
        self.grants = 0
        self.slots = [Slot(self.new_grant()) for _ in range(SLOTS)]
        self.evidence: list[set[tuple[int, int]]] = [set() for _ in range(SLOTS)]
        self.leases: dict[tuple[int, int], str] = {}
        self.attempts = 0
        self.to_trainer: list[object] = []
        self.held_back: list[TaskCommitted] = []
        self.to_master: list[TaskDone | ReturnTasks] = []
        self.answers: list[tuple[tuple[int, int], int, int, int]] = []
        self.work.mapped(self.map())
        self.hands_out(TASKS)
        self.trainer_reads(len(TASKS))

    def new_grant(self) -> int:
        self.grants += 1
        return self.grants

    def map(self) -> SlotMap:
        return SlotMap(holders=[], owner=[0] * SLOTS, grants=[slot.grant for slot in self.slots])

    # --- The master ---

    def undone(self, task: tuple[int, int]) -> bool:
        return any(task not in known for known in self.evidence)

    @precondition(lambda self: any(self.undone(task) and task not in self.leases for task in TASKS))
    @rule(tasks=st.permutations(TASKS))
    def hands_out(self, tasks):
        for task in tasks:
            if self.undone(task) and task not in self.leases:
                self.attempts += 1
                self.leases[task] = ME
                self.to_trainer.append(TaskLeased(lease=Lease(*task, self.attempts), left=0, trainers=1, watched=False))

    @precondition(lambda self: ME in self.leases.values())
    @rule()
    def another_takes_over(self):
        """The master breaks the lease of a silent trainer, and another trainer gets its tasks."""
        self.leases = dict.fromkeys(self.leases, OTHER)

    @precondition(lambda self: OTHER in self.leases.values())
    @rule(task=tasks)
    def another_works(self, task):
        batch = min(slot.applied[task] for slot in self.slots)
        for slot in self.slots:
            if batch < PLAN.batches_in(task[1]):
                slot.push(slot.grant, task, batch)

    @precondition(lambda self: OTHER in self.leases.values())
    @rule()
    def another_dies(self):
        self.leases = {task: who for task, who in self.leases.items() if who == ME}

    @precondition(lambda self: self.to_master)
    @rule()
    def master_reads(self):
        message = self.to_master.pop(0)
        if isinstance(message, ReturnTasks):
            for lease in message.leases:
                if self.leases.get(named(lease)) == ME:
                    del self.leases[named(lease)]
            return
        task = named(message.lease)
        for slot, grant, known in zip(self.slots, message.grants, self.evidence, strict=True):
            if grant == slot.grant:
                known.add(task)
        if not self.undone(task):
            self.leases.pop(task, None)
        if not self.undone(task) or self.leases.get(task) == OTHER:
            self.held_back.append(TaskCommitted(lease=message.lease))
            return
        self.leases[task] = ME
        self.to_trainer += [self.map(), TaskReopened(lease=message.lease)]

    @precondition(lambda self: self.held_back)
    @rule()
    def etcd_has_it(self):
        self.to_trainer.append(self.held_back.pop(0))

    # --- The servers ---

    @rule(number=slots)
    def takes_a_snapshot(self, number):
        self.slots[number].snapshots.append(dict(self.slots[number].applied))

    def serve(self, number: int, *, heard: bool = False) -> None:
        """Begin a grant: the server reports the finished tasks, and the trainers get the new map."""
        self.slots[number].grant = self.new_grant()
        self.evidence[number] = self.slots[number].finished()
        self.to_trainer.append(self.map())
        if heard:
            self.trainer_reads(len(self.to_trainer))

    @rule(number=slots, which=st.integers(0, 5), heard=st.booleans())
    def is_restored(self, number, which, heard):
        slot = self.slots[number]
        slot.applied = dict(slot.snapshots[which % len(slot.snapshots)])
        self.serve(number, heard=heard)

    @rule(number=slots, heard=st.booleans())
    def is_moved(self, number, heard):
        self.serve(number, heard=heard)

    @rule(number=slots)
    def is_lost(self, number):
        self.slots[number].grant = NO_GRANT
        self.to_trainer.append(self.map())

    # --- Messages between them ---

    @precondition(lambda self: self.to_trainer)
    @rule(messages=st.integers(1, 5))
    def trainer_reads(self, messages):
        for message in self.to_trainer[:messages]:
            match message:
                case TaskLeased(lease=lease):
                    self.work.leased(lease)
                case TaskCommitted(lease=lease):
                    self.work.committed(lease)
                case TaskReopened(lease=lease):
                    self.work.reopened(lease)
                case SlotMap() as new:
                    self.work.mapped(new)
        del self.to_trainer[:messages]

    @rule(number=slots)
    def no_answer(self, number):
        self.work.forget([number])

    @precondition(lambda self: self.answers)
    @rule(which=st.integers(0, 9), again=st.booleans())
    def a_reply_arrives(self, which, again):
        answer = self.answers[which % len(self.answers)]
        if not again:
            self.answers.remove(answer)
        task, number, grant, batches = answer
        before = self.work.map.grants[number]
        assert self.work.applied(*task, [number], [grant], batches) == (grant == before != NO_GRANT)

    @precondition(lambda self: self.answers)
    @rule()
    def answers_are_lost(self):
        self.answers.clear()

    @rule(arrived=st.integers(0, 3), delivered=st.integers(0, 3))
    def the_connection_breaks(self, arrived, delivered):
        """Some messages in flight still arrive. Then the trainer reports its leases, and repeats its unanswered messages."""
        for _ in range(min(arrived, len(self.to_master))):
            self.master_reads()
        self.to_master.clear()
        self.held_back.clear()
        del self.to_trainer[delivered:]
        claimed = {named(lease) for lease in self.work.leases()}
        for task in claimed:
            self.leases.setdefault(task, ME)
        self.leases = {task: who for task, who in self.leases.items() if who != ME or task in claimed}
        self.to_trainer.append(self.map())
        self.says_again()

    @precondition(lambda self: self.work.unanswered)
    @rule()
    def says_again(self):
        self.to_master += self.work.unanswered.values()

    # --- The trainer's own actions ---

    @precondition(lambda self: self.work.waiting)
    @rule()
    def takes_up(self):
        waiting = list(self.work.waiting)
        current = self.work.current
        assert self.work.begin() == (current or (waiting[0] if waiting else None))

    def request(self, number: int, lease: Lease, *, batch: int | None) -> None:
        grant = self.work.map.grants[number]
        if batch is not None and batch < PLAN.batches_in(lease.task):
            self.slots[number].push(grant, named(lease), batch)
        for task in {named(lease), *(named(later) for later in list(self.work.waiting)[:1])}:
            self.answers.append((task, number, *self.slots[number].answer(grant, task)))

    @precondition(lambda self: self.work.current)
    @rule(where=some_slots)
    def pulls(self, where):
        for number in where:
            self.request(number, self.work.current, batch=None)

    @precondition(lambda self: self.work.next_batch() is not None)
    @rule(where=some_slots)
    def pushes(self, where):
        batch = self.work.next_batch()
        for number in where:
            self.request(number, self.work.current, batch=batch)

    @precondition(lambda self: self.at_the_end())
    @rule()
    def finishes(self):
        lease = self.work.current
        done = self.work.finish()
        assert (done.lease, done.grants) == (lease, self.work.map.grants)
        assert self.work.current is None
        assert self.work.unanswered[named(lease)] == done
        for slot, grant in zip(self.slots, done.grants, strict=True):
            assert grant != slot.grant or named(lease) in slot.finished(), "evidence that is none"
        self.work.trim()
        self.to_master.append(done)

    def at_the_end(self) -> bool:
        return self.work.current and self.work.next_batch() == PLAN.batches_in(self.work.current.task)

    @rule(reports=st.booleans())
    def works_undisturbed(self, reports):
        """Train a whole task without a fault: random steps alone rarely do."""
        self.takes_up()
        lease, batch = self.work.current, -1
        while lease is not None and batch is not None and batch < PLAN.batches_in(lease.task):
            self.answers.clear()
            for number in range(SLOTS):
                self.request(number, lease, batch=self.work.next_batch())
            while self.answers:
                self.a_reply_arrives(0, again=False)
            batch = self.work.next_batch()
        if reports and batch is not None and lease is not None:
            self.finishes()

    @precondition(lambda self: self.work.current or self.work.waiting)
    @rule()
    def hands_back(self):
        unanswered = dict(self.work.unanswered)
        expected = [lease for lease in self.work.leases() if named(lease) not in unanswered]
        given = self.work.return_all()
        assert given == expected
        assert self.work.leases() == [done.lease for done in unanswered.values()]
        self.to_master.append(ReturnTasks(leases=given))

    # --- Invariants ---

    @invariant()
    def no_task_is_held_twice(self):
        held = [named(lease) for lease in self.work.leases()]
        assert len(held) == len(set(held))

    @invariant()
    def the_next_batch_is_one_that_every_slot_can_take(self):
        batch = self.work.next_batch()
        if batch is None:
            return
        assert self.work.served
        for slot, grant in zip(self.slots, self.work.map.grants, strict=True):
            assert grant != slot.grant or batch <= slot.applied[named(self.work.current)]

    @invariant()
    def what_the_master_takes_for_done_is_done(self):
        for slot, known in zip(self.slots, self.evidence, strict=True):
            assert slot.grant == NO_GRANT or known <= slot.finished()

    @invariant()
    def what_the_master_takes_for_held_is_held(self):
        if not self.to_trainer and not self.to_master and not self.held_back:
            mine = {task for task, who in self.leases.items() if who == ME}
            assert mine <= {named(lease) for lease in self.work.leases()}

    # --- The end: without faults all tasks are done ---

    def teardown(self) -> None:
        """Without further faults, and without help from another trainer, all tasks are finished."""
        if not hasattr(self, "work"):
            return
        self.another_dies()
        for number, slot in enumerate(self.slots):
            if slot.grant == NO_GRANT:
                self.serve(number)
        self.to_trainer.append(self.map())
        for _ in range(10):
            self.hands_out(TASKS)
            while self.to_trainer or self.to_master or self.held_back:
                if self.to_master:
                    self.master_reads()
                elif self.to_trainer:
                    self.trainer_reads(1)
                else:
                    self.etcd_has_it()
            self.works_undisturbed(reports=True)
        assert all(slot.finished() == set(TASKS) for slot in self.slots)
        assert not self.work.leases()


TestBadDay = BadDay.TestCase
TestBadDay.settings = examples(80, stateful_step_count=40)


def test_a_task_leased_again_before_its_commit_message_arrived_is_done_again():
    """``TaskCommitted`` waits for etcd; meanwhile a slot is restored from a snapshot, and the task is leased again."""
    work = TaskState(PLAN, slots=1)
    work.mapped(SlotMap(holders=[], owner=[0], grants=[1]))
    first, again = Lease(0, 1, 1), Lease(0, 1, 2)
    work.leased(first)
    work.begin()
    assert work.applied(0, 1, [0], [1], 1)
    work.finish()
    work.mapped(SlotMap(holders=[], owner=[0], grants=[2]))
    work.leased(again)
    assert (work.leases(), work.unanswered) == ([again], {})
    work.begin()
    assert work.applied(0, 1, [0], [2], 1)
    done = work.finish()
    work.committed(first)
    assert work.unanswered == {(0, 1): done}
    work.committed(again)
    assert work.leases() == []


def test_a_task_that_is_leased_anew_while_it_is_held_is_held_under_the_new_lease():
    """The trainer's claim was too late and the trainer that had the task left: the master knows the new lease only."""
    work = TaskState(PLAN, slots=1)
    work.leased(Lease(0, 0, 1))
    work.leased(Lease(0, 1, 4))
    work.begin()
    work.leased(Lease(0, 0, 7))
    work.leased(Lease(0, 1, 8))
    assert work.current == Lease(0, 0, 7)
    assert work.return_all() == [Lease(0, 0, 7), Lease(0, 1, 8)], "with others the master would wait for ever"


def test_a_reopened_task_is_held_under_the_masters_lease():
    """The report was under an older lease than the trainer's current one, and the master has reinstated the older lease."""
    work = TaskState(PLAN, slots=1)
    work.leased(Lease(0, 1, 8))
    work.reopened(Lease(0, 1, 4))
    assert work.return_all() == [Lease(0, 1, 4)]


def test_a_report_under_another_grant_than_the_maps_is_ignored():
    work = TaskState(PLAN, slots=2)
    assert not work.applied(0, 0, [0], [1], 1), "there is no map yet"
    work.mapped(SlotMap(holders=[], owner=[0, 0], grants=[1, 3]))
    work.leased(Lease(0, 0, 1))
    work.begin()
    assert work.applied(0, 0, [0, 1], [1, 3], 2)
    assert work.next_batch() == 2
    work.mapped(SlotMap(holders=[], owner=[0, 0], grants=[2, 3]))
    assert work.next_batch() is None
    assert not work.applied(0, 0, [0, 1], [1, 3], 2), "late, from the life before"
    assert work.next_batch() is None
    assert work.applied(0, 0, [0], [2], 1)
    assert work.next_batch() == 1
    assert not work.applied(0, 0, [1], [NO_GRANT], 0)
    assert not work.known(Lease(0, 0, 1))
