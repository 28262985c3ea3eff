"""Every sample counts exactly once under SIGKILL of any process: real processes, real etcd, and the counting model."""

from __future__ import annotations

import time

import pytest
import torch

from tests.realjob import Chaos, RealJob

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def check(job: RealJob) -> None:
    """Check that every entry of the model equals the number of epochs, and that the servers' own counts agree."""
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
    """Each job has ten kills, mixed with pauses and with trainers that join and leave."""
    variables = {"COUNT_PAUSE": "0.01", "COUNT_EVALUATE": str(seed % 2)}
    with RealJob(zygote, tmp_path / "j", epochs=8, trainers=3, variables=variables, tcp=seed == 4) as job:
        chaos = Chaos(job, seed=seed, kills=10)
        chaos.run(seconds=150)
        check(job)
        assert sum(chaos.kills.values()) >= 8, (chaos.kills, chaos.others)


def test_etcd_is_restored_to_its_state_of_five_seconds_earlier(zygote, tmp_path):
    """etcd is set back under load: since the copy, tasks were finished and leases granted, and the master is replaced."""
    with RealJob(zygote, tmp_path / "j", epochs=10, trainers=3, variables={"COUNT_PAUSE": "0.02"}) as job:
        while "epoch 2 of" not in job.log("master", 0):
            job.supervise()
            time.sleep(0.02)  # polling interval of the supervisor
        copy = job.etcd.copy()
        due = time.monotonic() + 5.0
        while time.monotonic() < due:
            job.supervise()
            time.sleep(0.02)
        assert job.trainers_left, "the job was over before etcd was replaced"
        job.kill("master", 0)
        job.kill("pserver", 1)
        job.etcd.replace_by(copy)
        job.run_to_the_end(seconds=120)
        check(job)


def test_kills_right_at_the_start(zygote, tmp_path):
    """The kills happen while initial values are sent and the first snapshots are written."""
    with RealJob(zygote, tmp_path / "j", epochs=2, trainers=2) as job:
        for number in range(8):
            role, index = [("pserver", 0), ("trainer", 0), ("master", 0), ("pserver", 1)][number % 4]
            due = time.monotonic() + 0.15 * (number + 1)
            while time.monotonic() < due:
                job.supervise()
                time.sleep(0.01)
            if job.trainers_left:
                job.kill(role, index)
        job.run_to_the_end(seconds=100)
        check(job)


def snapshots(job: RealJob, index: int) -> set[str]:
    """Return the names of a parameter server's snapshots."""
    return {path.name for path in (job.folder / f"snapshots-{index}").glob("*.safetensors")}


def test_snapshots_contain_the_done_tasks_when_everything_else_is_lost(zygote, tmp_path):
    """All processes are killed and etcd is emptied, as after the deletion of the namespace of etcd and operator."""
    with RealJob(zygote, tmp_path / "j", epochs=10, trainers=2, variables={"COUNT_PAUSE": "0.01"}) as job:
        while "epoch 3 of" not in job.log("master", 0):
            job.supervise()
            time.sleep(0.02)  # polling interval of the supervisor
        before = {index: snapshots(job, index) for index in range(job.servers)}
        # Wait for two snapshots of each server, as the first may have been begun before that epoch.
        while any(len(snapshots(job, index) - names) < 2 for index, names in before.items()):
            job.supervise()
            time.sleep(0.02)
        for role, index in list(job.children):
            job.kill(role, index)
        job.etcd.wipe()
        job.run_to_the_end(seconds=120)
        check(job)
        assert job.log("master", 0).count("epoch 2 of") == 1, "the job began from nothing"
