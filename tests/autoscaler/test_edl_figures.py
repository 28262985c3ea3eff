"""The figures that judge the replayed EDL experiments; the packers are compared with exhaustive search."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.edl_figures import FixedNode, Sample, fits, jain, least_stopped, mean_over_time, most_trainers, needless
from tests.soak import examples

NODES = st.lists(st.builds(FixedNode, st.integers(4, 12), st.integers(0, 5), st.just(0)), min_size=1, max_size=4)


def sample(at, *, trainers=None, cores=0):
    return Sample(at=at, cores={"j": cores}, trainers=trainers or {}, at_work={}, pending=0, web=0, fits=0)


@given(NODES, st.integers(1, 4), st.integers(0, 9))
def test_trainers_fill_what_others_leave(nodes, trainer, most):
    found = fits(nodes, trainer=trainer, most=most)
    best = 0
    for counts in itertools.product(range(4 * 3 + 1), repeat=len(nodes)):
        ok = all(
            not count or node.others + trainer * count <= node.cores for node, count in zip(nodes, counts, strict=True)
        )
        if ok and sum(counts) <= most:
            best = max(best, sum(counts))
    assert found == sum(node.others for node in nodes) + trainer * best


@examples(30)
@given(
    st.dictionaries(st.integers(3, 8), st.integers(1, 2), min_size=1, max_size=2),
    st.integers(2, 4), st.integers(0, 4), st.integers(0, 2), st.integers(0, 6),
)  # fmt: skip
def test_other_pods_that_may_run_anywhere_leave_the_most_room(nodes, trainer, servers, masters, most):
    found = most_trainers(nodes, trainer=trainer, fixed={3: servers, 1: masters}, most=most)
    rooms = tuple(sorted(cores for cores, count in nodes.items() for _ in range(count)))

    def best(rooms, left):
        if not left:
            return min(most, sum(room // trainer for room in rooms))
        tries = {
            tuple(sorted((*rooms[:at], room - left[0], *rooms[at + 1 :])))
            for at, room in enumerate(rooms)
            if room >= left[0]
        }
        return max((best(each, left[1:]) for each in tries), default=-1)

    assert found == best(rooms, [3] * servers + [1] * masters)


CROWDED = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 3)).map(
        lambda of: FixedNode(of[0] + of[1] + 3 * of[2], of[1], of[2])
    ),
    min_size=1, max_size=4,
)  # fmt: skip


@given(CROWDED, st.integers(1, 4), st.integers(1, 6))
def test_the_fewest_that_have_to_stop(nodes, pod, pods):
    found = least_stopped(nodes, trainer=3, pod=pod, pods=pods)
    possible = []
    for deleted in itertools.product(*(range(node.trainers + 1) for node in nodes)):
        free = [node.cores - node.others - 3 * (node.trainers - one) for node, one in zip(nodes, deleted, strict=True)]
        if sum(room // pod for room in free) >= pods:
            possible.append(sum(deleted))
    assert found == min(possible, default=-1)


def test_what_the_experiment_s_nodes_can_hold_at_all():
    assert most_trainers({18: 87, 17: 46}, trainer=5, fixed={4: 200, 1: 20}, most=1200) == (2290 - 820) // 5


def test_fairness():
    assert jain([3, 3, 3]) == pytest.approx(1.0)
    assert jain([5, 0, 0, 0]) == pytest.approx(0.25)
    assert jain([0, 0]) == 1.0


def test_each_sample_applies_until_the_next_one():
    samples = [sample(0.0), sample(1.0), sample(3.0)]
    value = {0.0: 10.0, 1.0: 40.0, 3.0: 0.0}
    assert mean_over_time(samples, value, since=0.0, until=4.0) == pytest.approx((10 + 2 * 40) / 4)
    assert mean_over_time(samples, value, since=2.0, until=3.5) == pytest.approx(40 / 1.5)


def test_a_move_is_needless_where_the_number_is_the_same_after_it():
    before, after = sample(0.0, trainers={"a": 3, "b": 4}), sample(9.0, trainers={"a": 3, "b": 6})
    assert needless([before, after], {"b": 2}, {}) == 0
    assert needless([before, after], {"a": 1, "b": 3}, {"a": 1, "b": 1}) == 4
