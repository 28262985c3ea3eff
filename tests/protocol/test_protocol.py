"""Exactly-once counting under all faults: the real cores in a simulated world, with all rules and with single rules disabled.

A rule whose absence is never detected is not tested. Each rule that can be disabled by replacing one method of a real core
is disabled here, and the world must detect lost samples, a lost model, or a stuck job.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.master.handlers.completion import CompletionHandler
from shoal.master.state.slot_map import SlotAssignments
from shoal.master.state.task_queue import TaskQueue
from shoal.protocol.messages import TaskDone
from shoal.protocol.task_set import TaskSet
from shoal.pserver.state.server_state import ServerState
from shoal.pserver.state.watermarks import Watermarks
from shoal.trainer.engine.task_state import TaskState
from tests.protocol.world import FAULTS, MasterProcess, ServerProcess, TrainerProcess, Violation, Wire, World
from tests.soak import examples


@examples(60)
@given(st.integers(0, 2**32))
def test_every_sample_counts_exactly_once(seed):
    World(seed).run()


@pytest.mark.slow
@examples(1000)
@given(st.integers(0, 2**32))
@pytest.mark.timeout(600)
def test_every_sample_counts_exactly_once_in_thousands_of_runs(seed):
    World(seed).run()


def test_without_the_final_check_the_other_rules_still_hold(monkeypatch):
    final_check_is_left_out(monkeypatch)
    for seed in range(40):
        World(seed).run()


@pytest.mark.parametrize("fault", FAULTS)
def test_each_kind_of_fault_alone(fault):
    for seed in range(8):
        World(seed, faults=(fault,)).run()


def final_check_is_left_out(patch: pytest.MonkeyPatch) -> None:
    """Disable the final check of rule 9, which detects what rule 1 lets through and would hide the hole."""
    patch.setattr(Watermarks, "holds", lambda self, tasks: True)


def old_acknowledgements_count(patch: pytest.MonkeyPatch) -> None:
    """Hole 1: the master accepts acknowledgements of a server's life that is over (rule 1)."""
    final_check_is_left_out(patch)
    patch.setattr(SlotAssignments, "current", lambda self, slot, grant: slot in self.live)


def reports_do_not_replace(patch: pytest.MonkeyPatch) -> None:
    """Hole 2: the master does not reopen tasks that a restored slot lacks (rule 2)."""
    original = TaskQueue.replace

    def replace(self: TaskQueue, slots: Any, tasks: TaskSet, **more: Any) -> int:
        merged = tasks.copy()
        for slot in slots:
            for epoch, task in itertools.product(range(self.epochs), range(self.plan.tasks)):
                if (epoch, task) in self._slot_tasks[slot]:
                    merged.add(epoch, task)
        return original(self, slots, merged, **more)

    patch.setattr(TaskQueue, "replace", replace)


def watermarks_forget_earlier_epochs(patch: pytest.MonkeyPatch) -> None:
    """Hole 3: the first push of an epoch makes pushes of earlier epochs appear applied (rule 6)."""
    original = Watermarks.applied

    def applied(self: Watermarks, epoch: int, task: int) -> int:
        later = any(other > epoch for other, _ in self._partial) or any(
            self.finished.count(other) for other in range(epoch + 1, epoch + 4)
        )
        return self._plan.batches_in(task) if later else original(self, epoch, task)

    patch.setattr(Watermarks, "applied", applied)


def the_master_sets_finished_bits(patch: pytest.MonkeyPatch) -> None:
    """Hole 4: the master, and not the slot's own last batch, sets a finished bit (rule 6)."""
    original = ServerState.order

    def order(self: ServerState, message: Any) -> list[Any]:
        replies = original(self, message)
        for slot in self.granted.slots:
            history = self.granted.history(slot)
            if any(history.applied(0, task) for task in range(self._plan.tasks)):
                history.finished.add(0, self._plan.tasks - 1)
        return replies

    patch.setattr(ServerState, "order", order)


def complete_without_last_snapshots(patch: pytest.MonkeyPatch) -> None:
    """Hole 5: the master completes the job once all tasks are done, whatever the snapshots hold (rule 9)."""

    def check(self: CompletionHandler, servers: Any) -> None:
        job = self._job
        if job.ended or job.queue is None or not job.queue.all_done or not job.slots.complete:
            return
        newest = {slot: name for view in job.slots.views.values() for name in view.files for slot in view.files[name]}
        if len(newest) == job.settings.slots:
            job.slots.final_snapshots = newest
            self._complete(servers)

    patch.setattr(CompletionHandler, "check", check)


def last_snapshot_is_not_pinned(patch: pytest.MonkeyPatch) -> None:
    """Hole 5, second form: the outcome names files that are deleted in favour of later snapshots (rule 9)."""
    patch.setattr("tests.protocol.world.Folder.write", unpinned_write())


def unpinned_write() -> Callable[..., str]:
    from tests.protocol.world import Folder

    original = Folder.write

    def write(self: Folder, snapshot: Any, *, pin: bool) -> str:
        name = original(self, snapshot, pin=False)
        if pin:
            original(self, snapshot, pin=False)
            original(self, snapshot, pin=False)
        return name

    return write


def initial_values_without_asking(patch: pytest.MonkeyPatch) -> None:
    """Hole 7: the master treats a slot without a holder as a new one (rule 11)."""
    patch.setattr(SlotAssignments, "_best", lambda self, slot, *, everywhere: None)
    original = SlotAssignments.assign

    def assign(self: SlotAssignments, *, leads: bool) -> Any:
        self.begun = False
        for view in self.views.values():
            view.question = self.question
        return original(self, leads=True)

    patch.setattr(SlotAssignments, "assign", assign)


def trainers_never_ask_for_the_map(patch: pytest.MonkeyPatch) -> None:
    """Hole 8: a trainer keeps pushing to a server that no longer exists (rule 12)."""
    original = TaskState.mapped

    def mapped(self: TaskState, new: Any) -> None:
        if self.map is None or not self.served:
            original(self, new)

    patch.setattr(TaskState, "mapped", mapped)


def run_with_an_old_acknowledgement(seed: int) -> None:
    """Deliver a trainer's ``TaskDone`` only after every server was killed and restored from its first snapshot."""
    world = World(seed, faults=())
    world.fault_rate = world.snapshot_rate = world.stop_rate = 0.0

    def on_its_way(wire: Wire) -> bool:
        return bool(wire.to_host) and isinstance(wire.to_host[0], TaskDone)

    deliver = world.deliver
    world.deliver = lambda wire: None if on_its_way(wire) else deliver(wire)  # type: ignore[method-assign]
    while not any(on_its_way(wire) for wire in world.connections):
        world.step()
    for process in [p for p in world.processes if isinstance(p, ServerProcess)]:
        world.kill(process)
    master = next(p for p in world.processes if isinstance(p, MasterProcess))
    assert not master.core.job.slots.complete
    while not master.core.job.slots.complete:
        world.step()
    for _ in range(2000):  # every report has arrived by then
        world.step()
    world.deliver = deliver  # type: ignore[method-assign]
    world.run()


@pytest.mark.parametrize("seed", range(5))
def test_acknowledgements_of_an_earlier_life_do_not_count(seed):
    run_with_an_old_acknowledgement(seed)


@pytest.mark.parametrize("seed", range(5))
def test_counting_acknowledgements_of_an_earlier_life_loses_samples(seed, monkeypatch):
    old_acknowledgements_count(monkeypatch)
    with pytest.raises(Violation, match="samples lost"):
        run_with_an_old_acknowledgement(seed)


def run_stopped_by_a_master_that_knows_nothing(seed: int) -> None:
    """Begin a task, kill its trainer and the master, clear all records, and let the script stop the job."""
    world = World(seed, faults=())
    world.fault_rate = world.stop_rate = 0.0

    def begun() -> bool:
        states = [p.state for p in world.processes if isinstance(p, ServerProcess) and p.state is not None]
        return any(state.granted.history(slot)._partial for state in states for slot in state.granted.slots)

    while not begun():
        if world.outcome is not None:
            return  # all tasks of this run have one batch
        world.step()
    for process in [p for p in world.processes if isinstance(p, TrainerProcess | MasterProcess)]:
        world.kill(process)
    world.etcd.clear()
    world.stop_rate = 1.0
    world.run()


@pytest.mark.parametrize("seed", range(20))
def test_tasks_begun_according_to_slots_only_are_finished_in_a_stopped_job(seed):
    run_stopped_by_a_master_that_knows_nothing(seed)


def test_slots_that_do_not_report_begun_tasks_are_detected(monkeypatch):
    monkeypatch.setattr(Watermarks, "reached", property(lambda self: self.finished.highest))

    def run_all() -> None:
        for seed in range(20):
            run_stopped_by_a_master_that_knows_nothing(seed)

    with pytest.raises(Violation):
        run_all()


HOLES = [
    reports_do_not_replace,
    watermarks_forget_earlier_epochs,
    the_master_sets_finished_bits,
    complete_without_last_snapshots,
    last_snapshot_is_not_pinned,
    initial_values_without_asking,
    trainers_never_ask_for_the_map,
]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("hole", HOLES, ids=lambda hole: hole.__name__)
def test_a_world_without_the_rule_is_found_out(hole, monkeypatch):
    hole(monkeypatch)
    for seed in range(4000):
        try:
            World(seed).run()
        except Violation:
            return
    pytest.fail(f"nobody noticed: {hole.__doc__}")
