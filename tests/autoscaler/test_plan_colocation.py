"""Parameter servers are placed where they cost the fewest trainers."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shoal.autoscaler.planner.colocation import colocated
from tests.soak import examples

AMOUNT = st.integers(1, 6)


def fit(room, request):
    return min(max(0, have) // asked for have, asked in zip(room, request, strict=True))


def best(count, request, trainer, rooms):
    """Return the largest number of trainers over all placements, or -1 if no placement is possible."""
    most = -1
    for placed in itertools.product(range(count + 1), repeat=len(rooms)):
        left = [
            [have - number * asked for have, asked in zip(room, request, strict=True)]
            for number, room in zip(placed, rooms, strict=True)
        ]
        if sum(placed) == count and all(have >= 0 for room in left for have in room):
            most = max(most, sum(fit(room, trainer) for room in left))
    return most


@examples(300)
@given(
    st.integers(1, 4), st.tuples(AMOUNT, AMOUNT), st.tuples(AMOUNT, AMOUNT),
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=4),
)  # fmt: skip
def test_all_are_placed_where_they_fit_and_few_trainers_are_lost(count, request, trainer, rooms):
    found = colocated(
        count, request=np.array(request), trainer=np.array(trainer), room=np.array(rooms), order=np.zeros(len(rooms))
    )
    possible = best(count, request, trainer, rooms)
    assert (found is None) == (possible < 0)
    if found is None:
        return
    assert found.sum() == count
    left = np.array(rooms) - found[:, None] * np.array(request)
    assert (left >= 0).all()
    kept = sum(fit(room, trainer) for room in left.tolist())
    # The greedy placement loses at most one trainer per placed pod needlessly.
    assert possible - count <= kept <= possible


def placed(count, rooms):
    request, trainer = np.array([4, 5]), np.array([5, 8])
    room = np.array([[cores, 103] for cores in rooms])
    return colocated(count, request=request, trainer=trainer, room=room, order=np.arange(len(rooms))).tolist()


def test_two_servers_with_two_trainers_rather_than_one_with_two():
    assert placed(4, [18, 18, 18, 18]) == [2, 2, 0, 0]


def test_three_of_them_fill_a_node_of_17_with_one_trainer():
    assert placed(3, [17, 17]) == [3, 0]
    assert placed(5, [18, 17, 17]) == [2, 3, 0]


def test_room_that_no_trainer_can_use_is_taken_first():
    assert placed(2, [18, 4, 9]) == [0, 1, 1]
