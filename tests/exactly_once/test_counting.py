"""Every sample counts exactly once, whatever is killed: real processes, real etcd, SIGKILL, and a model that counts."""

from __future__ import annotations

import pytest
import torch

from tests.realjob import Chaos, RealJob
from tests.zygote import Zygote

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def zygote():
    started = Zygote()
    yield started
    started.close()


def check(job: RealJob) -> None:
    """Every entry of the model equals the number of epochs, and so do the servers' own counts."""
    model = job.model()
    for name in ("dense", "table.weight"):
        counts = model[name].flatten()
        assert torch.equal(counts, torch.full_like(counts, job.epochs)), (name, counts.unique(return_counts=True))
    account = job.outcome().account
    assert account is not None
    assert (account.samples.lost, account.samples.twice) == (0, 0)
    assert account.samples.counted == account.samples.expected == len(model["dense"]) * job.epochs


@pytest.mark.parametrize("tcp", [False, True], ids=["shared memory", "tcp"])
def test_nothing_happens(zygote, tmp_path, tcp):
    with RealJob(zygote, tmp_path / "j", tcp=tcp, epochs=2) as job:
        job.run_to_the_end(seconds=60)
        check(job)


@pytest.mark.parametrize("seed", range(5))
def test_random_kills(zygote, tmp_path, seed):
    """Ten kills each, among pauses, joiners and leavers."""
    variables = {"COUNT_PAUSE": "0.01", "COUNT_EVALUATE": str(seed % 2)}
    with RealJob(zygote, tmp_path / "j", epochs=8, trainers=3, variables=variables, tcp=seed == 4) as job:
        chaos = Chaos(job, seed=seed, kills=10)
        chaos.run(seconds=150)
        check(job)
        assert sum(chaos.kills.values()) >= 8, (chaos.kills, chaos.others)
