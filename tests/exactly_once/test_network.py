"""Every sample counts exactly once, and nothing hangs, on a network with faults of every kind."""

from __future__ import annotations

import pytest

from tests.badnetwork import bad_network, left_behind
from tests.etcds import eventually
from tests.exactly_once.test_counting import check

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.mark.parametrize("seed", [4, 5])
def test_delays_cuts_half_open_connections_and_paused_processes(zygote, tmp_path, seed):
    with bad_network(zygote, tmp_path, seed=seed, faults=15, epochs=4, every=0.3) as network:
        network.run(seconds=150)
        check(network.job)
        assert network.faults.total() >= 10, network.faults
    eventually(lambda: not left_behind(zygote), what="the end of every process")
