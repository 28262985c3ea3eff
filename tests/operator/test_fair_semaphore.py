"""The fair semaphore: the limit holds, every caller is served, and the keys take turns."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from shoal.operator.controller.fair_semaphore import FairSemaphore


@given(st.integers(1, 4), st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.booleans()), max_size=20))
def test_everybody_is_served_and_no_more_than_may_be(most, demands):
    """All callers are served within the limit; what a cancelled caller held or waited for passes to another one."""

    async def play():
        turns, held, peak, served = FairSemaphore(most), 0, 0, []

        async def one(number, key, rounds):
            nonlocal held, peak
            async with turns.of(key):
                held, peak = held + 1, max(peak, held + 1)
                try:
                    for _ in range(rounds):
                        await asyncio.sleep(0)
                    served.append(number)
                finally:
                    held -= 1

        tasks = [asyncio.create_task(one(number, *demand[:2])) for number, demand in enumerate(demands)]
        for turn, (task, demand) in enumerate(zip(tasks, demands, strict=True)):
            if demand[2]:
                for _ in range(turn % 3):
                    await asyncio.sleep(0)
                task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert peak <= most
        assert {number for number, demand in enumerate(demands) if not demand[2]} <= set(served)
        # All permits are free again.
        async with asyncio.timeout(10):
            for _ in range(most):
                await turns.of("later").__aenter__()

    asyncio.run(play())


def test_keys_are_served_round_robin():
    async def play():
        turns, order = FairSemaphore(1), []

        async def one(key):
            async with turns.of(key):
                order.append(key)
                await asyncio.sleep(0)

        await asyncio.gather(*map(one, "aaaabbc"))
        return "".join(order)

    assert asyncio.run(play()) == "aabcaba"
