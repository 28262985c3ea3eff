"""EDL's second experiment on a fifth of the nodes, in short steps: every pod of the Deployment runs again."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.edl_case import CASES
from benchmarks.edl_run import played

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def test_a_deployment_scaled_down_and_up_finds_its_room_again():
    case = CASES["case2"].with_times(9.0).with_size(0.2)
    (found,) = asyncio.run(played(case, "shoal", 1, packable=None))
    assert [step.web for step in found.steps] == [80, 60, 40, 20, 40, 60, 80]
    assert found.all_back
    up = [step for step in found.steps if step.least is not None]
    assert len(up) == 3
    assert sum(step.stopped for step in up) >= sum(step.least for step in up) > 0, (
        "trainers gave way, no fewer than had to"
    )
    at_work = found.samples[-1].at_work
    assert len(at_work) == 2
    assert all(count >= 2 for count in at_work.values()), "no job is below its minimum"
    # The jobs had grown into the room that the Deployment had released.
    assert max(sum(sample.at_work.values()) for sample in found.samples) > sum(at_work.values())
