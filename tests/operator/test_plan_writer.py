"""When the plan writer writes the last plan for users, and how much of it."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.api.plan import PLAN_KEY, Plan, PlannedClaim, PlannedJob
from shoal.kube import KubeError
from shoal.operator.status.plan_writer import MOST_BYTES, PlanWriter, shortened
from tests.soak import examples


def planned(name="a", given=3, words=""):
    return PlannedJob("d", name, -6, 4, given, given, 1, 9, "AtMax", words)


def made(second, jobs=(), claims=(), problem=""):
    return Plan(f"2026-01-02T03:04:{second:02}.000+00:00", second / 100, True, problem, 7, 5, list(jobs), list(claims))


def written(plans, *, failures=0):
    """Return the plans that are written when these are made one after the other."""
    found = []

    async def live():
        turn = asyncio.Event()
        left = failures

        async def apply(manifest):
            nonlocal left
            left -= 1
            turn.set()
            if left >= 0:
                raise KubeError("away")
            found.append(msgspec.json.decode(manifest["data"][PLAN_KEY], type=Plan))

        teller = PlanWriter(apply, namespace="shoal-system", pause_seconds=0.0)
        running = asyncio.create_task(teller.run())
        for each in plans:
            teller.planned(each)
            for _ in range(20):
                await asyncio.sleep(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(live())
    return found


def test_a_plan_is_written_when_it_differs_from_the_last():
    plans = [made(1, [planned()]), made(2, [planned()]), made(3, [planned(given=4)]), made(4, [planned()])]
    assert [each.time for each in written(plans)] == [plans[0].time, plans[2].time, plans[3].time]


def test_a_plan_that_could_not_be_written_is_written_with_the_next():
    plans = [made(1, [planned()]), made(2, [planned()])]
    assert written(plans, failures=1) == plans[1:]


def test_without_a_namespace_nothing_is_written():
    async def fails(_manifest):
        raise AssertionError

    asyncio.run(asyncio.wait_for(PlanWriter(fails, namespace="").run(), 10))


@pytest.mark.parametrize(("jobs", "claims"), [(0, 0), (10, 10), (20_000, 0), (0, 20_000), (20_000, 20_000)])
def test_a_plan_of_any_size_fits_into_its_config_map_and_counts_what_is_left_out(jobs, claims):
    plan = made(
        1,
        [planned(f"job-{number}", words="no node has room for cpu 1" * 3) for number in range(jobs)],
        [PlannedClaim(f"d/web-{number}", "node-1", {"d/job-1": 2}) for number in range(claims)],
        problem="\x00" * 10_000,
    )
    short = shortened(plan)
    assert len(msgspec.json.encode(short)) < MOST_BYTES
    assert short.jobs == plan.jobs[: len(short.jobs)]
    assert (len(short.jobs) + short.jobs_left_out, len(short.claims) + short.claims_left_out) == (jobs, claims)
    assert (short.jobs_left_out > 0, short.claims_left_out > 0) == (jobs > 10, claims > 10)


@examples(50)
@given(st.lists(st.text(max_size=2000), max_size=400), st.text(max_size=3000))
def test_a_plan_with_any_text_fits(words, problem):
    jobs = [planned(words=each * 5) for each in words]
    claims = [PlannedClaim(each, each, {each: 1}) for each in words]
    assert len(msgspec.json.encode(shortened(made(1, jobs, claims, problem)))) < MOST_BYTES
