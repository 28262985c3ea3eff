"""Pauses between attempts grow up to a limit, are reset, and bound the rate of attempts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.operator.controller.job_memory import JobMemory
from shoal.retry import BackOff, KeyedBackOff


def test_some_are_free_and_then_each_pause_is_twice_as_long():
    pauses = KeyedBackOff(free=2, first_seconds=5.0, longest_seconds=12.0, forget_seconds=100.0)
    waits = []
    for _ in range(6):
        waits.append(pauses.left("a", 0.0))
        pauses.tried("a", 0.0)
    assert waits == [0.0, 0.0, 0.0, 5.0, 10.0, 12.0]
    assert pauses.left("b", 0.0) == 0.0
    assert pauses.left("a", 11.0) == 1.0
    assert pauses.left("a", 12.0) == 0.0
    pauses.tried("a", 500.0)
    assert pauses.tries("a") == 1, "it was forgotten"
    pauses.forget("a")
    assert list(pauses) == []


@given(st.lists(st.floats(0.01, 30.0), min_size=1, max_size=200))
def test_no_minute_has_more_than_ten_pods_of_one_trainer(looks):
    """A trainer gets at most ten pods in any 60 s, at any times of sync, even if every pod fails."""
    pauses = JobMemory().pods
    now, made = 0.0, []
    for pause in looks:
        now += pause
        if not pauses.left(0, now):
            pauses.tried(0, now)
            made.append(now)
    assert all(sum(start <= each < start + 60 for each in made) <= 10 for start in made)


def test_a_very_long_row_of_failures_has_the_longest_pause():
    pauses = KeyedBackOff(free=0, first_seconds=1.0, longest_seconds=60.0, forget_seconds=1.0)
    for _ in range(5000):
        pauses.tried("a", 0.0)
    assert pauses.left("a", 0.0) == 60.0


@given(st.floats(0.001, 10), st.floats(1, 100), st.floats(1.1, 4), st.floats(0, 1), st.integers(1, 50))
def test_pauses_grow_to_the_longest_and_jitter_only_shortens_them(first, ratio, factor, jitter, count):
    back_off = BackOff(first, first * ratio, factor=factor, jitter=jitter)
    plain = BackOff(first, first * ratio, factor=factor)
    for _ in range(count):
        wanted = plain.pause
        assert back_off.pause == wanted == plain.next()
        assert (1 - jitter) * wanted * 0.999 <= back_off.next() <= wanted <= first * ratio * 1.001
    back_off.reset()
    assert back_off.pause == first
