"""Compare the compact task set with a plain set of pairs, and groups of equal values with a plain dictionary."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol.epoch_plan import EpochPlan, default_task_batches
from shoal.protocol.grouped import Grouped
from shoal.protocol.task_set import TaskSet

pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), max_size=60)


@given(pairs)
def test_a_task_set_is_a_set_of_pairs(added):
    compact, naive = TaskSet(7), set()
    for epoch, task in added:
        compact.add(epoch, task)
        naive.add((epoch, task))
    everything = {(epoch, task) for epoch in range(4) for task in range(7)}
    assert {pair for pair in everything if pair in compact} == naive
    for epoch in range(4):
        assert list(compact.missing(epoch)) == [task for task in range(7) if (epoch, task) not in naive]
        assert compact.count(epoch) == sum(pair[0] == epoch for pair in naive)
    assert compact.highest == max(naive, default=(-1, -1))
    assert TaskSet.decode(compact.encode()) == compact
    copied = compact.copy()
    copied.add(3, 6)
    assert ((3, 6) in compact) == ((3, 6) in naive)


@given(pairs, pairs)
def test_a_task_set_includes_another_as_plain_sets_do(one, other):
    sets = [TaskSet(7), TaskSet(7)]
    for compact, added in zip(sets, (one, other), strict=True):
        for pair in added:
            compact.add(*pair)
    assert sets[0].includes(sets[1]) == (set(one) >= set(other))
    assert sets[0].includes(sets[0])


@given(st.integers(0, 3), st.integers(0, 6))
def test_the_tasks_through_a_last_one(epoch, task):
    made, naive = TaskSet.through(7, (epoch, task)), TaskSet(7)
    for place in [(e, t) for e in range(4) for t in range(7)]:
        if place <= (epoch, task):
            naive.add(*place)
    assert made == naive
    assert made.highest == (epoch, task)
    assert TaskSet.through(7, (-1, -1)) == TaskSet(7)


@pytest.mark.parametrize("data", [b"", b"\x00", b"garbage", b"\x93\x01\x00\x81\x00\xc4\x01\xff"])
def test_bytes_that_are_no_task_set_are_refused(data):
    with pytest.raises(ValueError, match="not a set of tasks"):
        TaskSet.decode(data)


@given(
    samples=st.integers(1, 500),
    batch_size=st.integers(1, 40),
    drop_last=st.booleans(),
    task_batches=st.integers(1, 9),
)
def test_tasks_and_batches_tile_an_epoch(samples, batch_size, drop_last, task_batches):
    plan = EpochPlan(samples=samples, batch_size=batch_size, drop_last=drop_last, task_batches=task_batches)
    positions = [
        position
        for task in range(plan.tasks)
        for batch in range(plan.batches_in(task))
        for position in plan.positions(task, batch)
    ]
    assert positions == list(range(plan.samples_per_epoch))
    assert plan.samples_per_epoch == (samples - samples % batch_size if drop_last else samples)
    assert sum(plan.samples_in_task(task) for task in range(plan.tasks)) == plan.samples_per_epoch
    assert all(plan.batches_in(task) >= 1 for task in range(plan.tasks))


@given(batches=st.integers(1, 10**6), accumulate=st.integers(1, 20))
def test_default_tasks_are_whole_accumulations(batches, accumulate):
    size = default_task_batches(batches, accumulate=accumulate)
    assert size >= 1
    assert size % accumulate == 0
    assert size <= 64 + accumulate


operations = st.lists(
    st.tuples(st.sampled_from(["add", "replace", "remove"]), st.sets(st.integers(0, 5), max_size=6), st.integers(0, 4)),
    max_size=30,
)


@given(operations)
def test_groups_are_a_dictionary(steps):
    grouped: Grouped[TaskSet] = Grouped()
    naive: dict[int, set[int]] = {}
    for kind, keys, task in steps:
        if kind == "replace":
            fresh = TaskSet(5)
            fresh.add(0, task)
            grouped.replace(keys, fresh)
            naive |= {key: {task} for key in keys}
        elif kind == "remove":
            grouped.remove(keys)
            naive = {key: value for key, value in naive.items() if key not in keys}
        else:
            grouped.update(keys, lambda tasks, task=task: tasks.add(0, task))
            naive = {key: value | {task} if key in keys else value for key, value in naive.items()}
    assert len(grouped) == len(naive)
    for key, value in naive.items():
        assert {task for task in range(5) if (0, task) in grouped[key]} == value
    values = list(grouped.values())
    assert len(values) == len({tuple(value.encode()) for value in values})


def test_what_is_missing_of_an_epoch_of_a_million_tasks_is_found_at_once():
    tasks = TaskSet(1_000_000)
    tasks.add(0, 7)
    missing = list(tasks.missing(0))
    assert len(missing) == 999_999
    assert missing[6:8] == [6, 8]
    assert missing[-1] == 999_999
