"""The resources of Shoal's own processes do not grow while trainers join, leave and are killed."""

from __future__ import annotations

import pytest

from benchmarks.churn import churn
from tests.soak import FACTOR

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400 * FACTOR)]


def test_trainers_that_join_and_leave_leave_nothing():
    rows, before = churn(changes=18 * FACTOR, seed=1, warm=6)
    assert not [row for row in rows if row.met is False], (rows, before)
    assert before["children"] >= 4, "a master, two parameter servers and etcd"
