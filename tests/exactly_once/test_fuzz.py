"""Hostile callers of a job's ports during training cause no crash, no growth, and no sample lost or counted twice."""

from __future__ import annotations

import time

import pytest

from tests.etcds import eventually
from tests.fuzz import CALLERS, Footprint, Fuzzer, fuzzed_job
from tests.soak import FACTOR

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180 + 60 * FACTOR)]

SECONDS = 25.0


@pytest.mark.parametrize("role", ["master", "pserver"])
def test_hostile_callers_leave_nothing(zygote, tmp_path, role):
    with fuzzed_job(zygote, tmp_path) as (job, finish):

        def step() -> bool:
            job.supervise()
            return "epoch 3 of" in job.log("master", 0)

        eventually(step, seconds=120, what="the third epoch")
        lives = {key: child.pid for key, child in job.children.items()}
        watched = {key: pid for key, pid in lives.items() if key[0] != "trainer"}
        before = {key: Footprint.of(pid) for key, pid in watched.items()}
        fuzzer = Fuzzer(job, role, seed=int(time.time()) if FACTOR > 1 else 1)
        fuzzer.run(SECONDS * FACTOR, meanwhile=job.supervise)
        assert {key: child.pid for key, child in job.children.items()} == lives, job.last_lines()
        assert all(fuzzer.calls[caller] > 3 for caller in CALLERS), fuzzer.calls
        for key, pid in watched.items():
            eventually(
                lambda key=key, pid=pid: Footprint.of(pid).within(before[key], megabytes=60),
                seconds=60,
                what=f"the footprint {before[key]} of {key}, which has {Footprint.of(pid)},",
            )
        found = finish()
        assert (found["lost"], found["twice"]) == (0, 0)
        assert set(found["sums"].values()) == {found["counted"]}
