"""Compare watermarks with a naive record of the applied pushes, with pushes lost, repeated and out of order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol import messages as m
from shoal.protocol.epoch_plan import EpochPlan
from shoal.pserver.state.slot_states import SlotStates
from shoal.pserver.state.watermarks import Watermarks

pushes = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 2), st.integers(1, 3), st.booleans()), max_size=60
)


@given(pushes, st.integers(0, 59))
def test_each_batch_is_new_exactly_once_and_in_order(sent, cut):
    plan = EpochPlan(samples=21, batch_size=2, drop_last=False, task_batches=3)
    watermarks = Watermarks(plan)
    naive: dict[tuple[int, int], int] = {}
    samples = skipped = batches = 0
    for number, (epoch, task, first, count, skip) in enumerate(sent):
        if first + count > plan.batches_in(task):
            with pytest.raises(ValueError, match="no batches"):
                watermarks.check_push(epoch, task, first=first, batches=count)
            continue
        applied = naive.get((epoch, task), 0)
        verdict = watermarks.check_push(epoch, task, first=first, batches=count)
        assert verdict.batches == watermarks.applied(epoch, task) == applied
        assert verdict.new == (first == applied)
        if verdict.new:
            watermarks.advance(epoch, task, first=first, batches=count, skipped=skip)
            naive[epoch, task] = first + count
            size = sum(plan.samples_in(task, k) for k in range(first, first + count))
            samples, batches, skipped = samples + size, batches + count, skipped + size * skip
        if number == cut:  # saved and restored in the middle of the pushes
            restored = Watermarks.decode(watermarks.encode(), plan)
            assert restored == watermarks
            watermarks = restored
    assert (watermarks.samples, watermarks.skipped, watermarks.batches) == (samples, skipped, batches)
    for epoch in range(3):
        for task in range(plan.tasks):
            finished = naive.get((epoch, task), 0) == plan.batches_in(task)
            assert ((epoch, task) in watermarks.finished) == finished


def test_bytes_of_another_plan_or_none_are_refused():
    plan = EpochPlan(samples=10, batch_size=2, drop_last=False, task_batches=1)
    with pytest.raises(ValueError, match="not watermarks"):
        Watermarks.decode(b"garbage", plan)
    other = Watermarks(EpochPlan(samples=20, batch_size=2, drop_last=False, task_batches=1))
    with pytest.raises(ValueError, match="watermarks of 10 tasks an epoch; this job has 5"):
        Watermarks.decode(other.encode(), plan)


def push(grants, first):
    return m.Push(
        grants=grants,
        epoch=0,
        task=0,
        first=first,
        batches=1,
        samples=2,
        skipped=False,
        absent=[],
        options={},
        parts=[],
        next_epoch=0,
        next_task=0,
        values=False,
    )


def test_slots_that_fell_behind_apply_what_the_others_have_applied():
    granted = SlotStates(EpochPlan(samples=12, batch_size=2, drop_last=False, task_batches=6))
    for slot in range(3):
        granted.load(slot, Watermarks(granted.plan))
        granted.grant(slot, 100 + slot)
    grants = [100, 101, 102]
    for first in range(2):
        granted.advance(granted.new_slots([0, 1, 2], push(grants, first)), push(grants, first))
    granted.load(1, Watermarks(granted.plan))  # restored from a snapshot without these pushes
    granted.grant(1, 201)
    assert granted.new_slots([0, 1, 2], push(grants, 2)) == [0, 2], "the old grant of slot 1 is not valid any more"
    assert granted.new_slots([0, 1, 2], push([100, 201, 102], 0)) == [1]
    found = {slot: a.batches for a in granted.applied([0, 1, 2], [100, 201, 102], epoch=0, task=0) for slot in a.slots}
    assert found == {0: 2, 1: 0, 2: 2}
    stale = [a for a in granted.applied([0, 1, 2], grants, epoch=0, task=0) if a.grants[0] == m.NO_GRANT]
    assert [a.slots for a in stale] == [[1]]
