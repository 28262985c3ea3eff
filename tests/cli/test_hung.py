"""`shoal run` with stopped processes (SIGSTOP): each is killed and started again, and its job continues."""

from __future__ import annotations

import os
import signal

import pytest

from tests.cli.test_run import Place, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SCRIPT = """
import os, time, torch
from shoal import trainer
job = trainer.join(epochs=100_000, seed=1)
model = torch.nn.Linear(1, 1)
model, optimizer, loader = job.prepare(
    model, torch.optim.SGD(model.parameters(), lr=0.01), torch.utils.data.TensorDataset(torch.ones(64, 1)), batch_size=8
)
for epoch in job.epochs():
    for (x,) in loader:
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()
        time.sleep(0.01)  # stands for the computation of a larger model
    if os.path.exists("finish"):
        job.stop("it was enough")
"""
NAMES = {"etcd-0": "etcd", "master-0": "master", "pserver-0": "pserver-0"}
"""Names of the processes: in the names of their logs, and in messages."""


@pytest.fixture
def places(tmp_path):
    """Make one job per kind of process; the jobs run side by side, as most of their time is waiting."""
    made = {}
    for name in NAMES:
        (tmp_path / name).mkdir()
        made[name] = Place(tmp_path / name)
    yield made
    for place in made.values():
        for run in place.runs:
            run.kill()
            run.wait()
            run.stdout.close()
            run.stderr.close()


def test_a_hung_process_is_killed_and_the_job_continues(places):
    stopped = {}
    for place in places.values():
        place.start(SCRIPT)
    for name, place in places.items():
        until(lambda place=place: samples(place) > 0, 120)
        stopped[name] = place.pids()[name]
        os.kill(stopped[name], signal.SIGSTOP)
    for name, place in places.items():
        until(lambda name=name, place=place: place.pids()[name] not in {0, stopped[name]}, 180)
        before = samples(place)
        until(lambda place=place, before=before: samples(place) > before, 120)
        (place.folder / "finish").touch()
        (run,) = place.runs
        said = "".join(run.communicate(timeout=120))
        assert run.returncode == 0, said
        assert f"{NAMES[name]} has not answered for" in said
        assert ", 0 lost, 0 twice" in said


def samples(place) -> int:
    status = place.status()
    return status.progress.samples_total if status is not None and status.progress is not None else 0
