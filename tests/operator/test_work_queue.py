"""The intervals at which the work queue syncs a key that is added again and again, and one that is not, in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from shoal.operator.controller.work_queue import WorkQueue
from tests import virtual_time


class Queue(WorkQueue):
    """A work queue that records when it syncs which key."""

    def __init__(self, *, failing: int = 0, takes: float = 0.0, **more) -> None:
        super().__init__(self.note, **more)
        self.syncs: list[tuple[float, str]] = []
        self.failing, self.takes = failing, takes

    async def note(self, key: str) -> None:
        self.syncs.append((round(asyncio.get_running_loop().time(), 6), key))
        if len(self.syncs) <= self.failing:
            raise ValueError("not yet")
        await asyncio.sleep(self.takes)


def times(queue: Queue, key: str = "a") -> list[float]:
    return [at for at, synced in queue.syncs if synced == key]


async def added_for(queue: Queue, seconds: float, *, every: float = 0.001) -> None:
    """Add a key continuously."""
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end:
        queue.add("a")
        await asyncio.sleep(every)


def test_the_first_sync_is_at_once():
    async def work():
        queue = Queue()
        queue.add("a")
        await asyncio.sleep(0)
        assert times(queue) == [0.0]
        await queue.close()

    virtual_time.run(work())


def test_one_sync_is_for_all_adds_during_a_rest():
    async def work():
        queue = Queue()
        await added_for(queue, 2.0)
        assert times(queue) == pytest.approx([0, 0.005, 0.015, 0.035, 0.075, 0.155, 0.315, 0.635, 1.035, 1.435, 1.835])
        queue.add("a")
        await asyncio.sleep(1.0)
        assert times(queue)[-1] == pytest.approx(2.235), "the last add is not forgotten"
        assert queue.idle
        queue.add("a")
        await asyncio.sleep(0)
        assert times(queue)[-1] == pytest.approx(3.0, abs=0.01), "an idle key starts without an interval"
        await queue.close()

    virtual_time.run(work())


def test_a_key_in_back_off_delays_no_other():
    async def work():
        queue = Queue()
        await added_for(queue, 0.5)
        now = asyncio.get_running_loop().time()
        queue.add("b")
        await asyncio.sleep(0)
        assert times(queue, "b") == pytest.approx([now])
        await queue.close()

    virtual_time.run(work())


def test_a_failed_sync_is_repeated_with_back_off_and_a_success_ends_it():
    async def work():
        queue = Queue(failing=4)
        queue.add("a")
        await asyncio.sleep(60)
        pauses = [later - at for at, later in zip(times(queue), times(queue)[1:], strict=False)]
        assert pauses == pytest.approx([0.2, 0.4, 0.8, 1.6])
        await queue.close()

    virtual_time.run(work())


def test_the_back_off_of_a_sync_that_always_fails_is_bounded():
    async def work():
        queue = Queue(failing=10**6)
        queue.add("a")
        await asyncio.sleep(600)
        assert times(queue)[-1] - times(queue)[-2] == pytest.approx(30.0)
        await queue.close()

    virtual_time.run(work())


def test_the_earliest_of_several_delays_counts():
    async def work():
        queue = Queue()
        for seconds in (5.0, 2.0, 9.0):
            queue.add_after("a", seconds)
        await asyncio.sleep(20)
        assert times(queue) == pytest.approx([2.0])
        await queue.close()

    virtual_time.run(work())


def test_a_key_is_never_synced_twice_at_once():
    async def work():
        queue = Queue(takes=1.0)
        await added_for(queue, 3.0, every=0.1)
        assert all(later - at >= 1.0 for at, later in zip(times(queue), times(queue)[1:], strict=False))
        await queue.close()

    virtual_time.run(work())


def test_a_paused_queue_collects_and_a_closed_one_accepts_nothing():
    async def work():
        queue = Queue(paused=True)
        queue.add("a")
        await asyncio.sleep(10)
        assert queue.syncs == []
        queue.begin()
        await asyncio.sleep(0)
        assert times(queue) == [10.0]
        await queue.close()
        queue.add("a")
        queue.add_after("a", 1.0)
        await asyncio.sleep(10)
        assert times(queue) == [10.0]

    virtual_time.run(work())


def test_closing_does_not_wait_for_a_rest():
    async def work():
        queue = Queue()
        await added_for(queue, 0.2)
        began = asyncio.get_running_loop().time()
        await queue.close()
        assert asyncio.get_running_loop().time() == began

    virtual_time.run(work())
