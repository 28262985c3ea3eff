"""How often the worker looks at what is marked all the time, and how soon at what is not."""

from __future__ import annotations

import asyncio
import time

from shoal.operator.controller.work_queue import WorkQueue


def run(work):
    return asyncio.run(asyncio.wait_for(work(), 20))


def test_the_first_look_is_at_once():
    async def work():
        looked = []

        async def look(_key):
            looked.append(time.monotonic())

        worker = WorkQueue(look)
        began = time.monotonic()
        worker.add("a")
        await asyncio.sleep(0.01)
        assert len(looked) == 1
        assert looked[0] - began < 0.01
        await worker.close()

    run(work)


def test_one_look_is_for_all_that_happens_while_a_key_rests():
    async def work():
        looks = 0

        async def look(_key):
            nonlocal looks
            looks += 1

        worker = WorkQueue(look)
        end = time.monotonic() + 1.0
        marks = 0
        while time.monotonic() < end:
            worker.add("a")
            marks += 1
            await asyncio.sleep(0.001)
        # After 5, 10, 20, 40, 80, 160 and 320 ms, and then every 400 ms.
        assert looks <= 9 < marks
        seen = looks
        worker.add("a")
        await asyncio.sleep(1.0)
        assert seen < looks <= seen + 2, "the last mark is not forgotten"
        assert worker.idle
        await worker.close()

    run(work)


def test_a_key_that_rests_delays_nobody():
    async def work():
        looked = []

        async def look(key):
            looked.append(key)

        worker = WorkQueue(look)
        for _ in range(50):
            worker.add("a")
            await asyncio.sleep(0.001)
        worker.add("b")
        await asyncio.sleep(0.005)
        assert "b" in looked
        await worker.close()

    run(work)


def test_closing_does_not_wait_for_who_rests():
    async def work():
        async def look(_key):
            pass

        worker = WorkQueue(look)
        for _ in range(200):
            worker.add("a")
            await asyncio.sleep(0.001)
        began = time.monotonic()
        await worker.close()
        assert time.monotonic() - began < 0.05

    run(work)
