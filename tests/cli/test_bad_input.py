"""Errors in scripts, data and disks give one clear message with the fix, a non-zero exit code, and no process left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SCRIPT = """
import os, sys
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from shoal import trainer

INDEX = int(os.environ["SHOAL_INDEX"])
samples, width, batches = int(os.environ.get("SAMPLES", 64)), 3, 0
job = trainer.join(epochs=2, seed=1)
data = TensorDataset(torch.arange(samples * 3.0).reshape(-1, 3) / 100, torch.ones(samples, 1))
model = nn.Linear(width, 1)
make = torch.optim.SGD
{prepare}
optimizer = make(model.parameters(), lr=0.01)
model, optimizer, loader = job.prepare(model, optimizer, DataLoader(data, batch_size=4, shuffle=True))
for epoch in job.epochs():
    for x, y in loader:
        batches += 1
        loss = ((model(x) - y) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        {batch}
        job.log(loss=loss)
job.save("model.safetensors")
"""


def run(folder: Path, prepare: str = "", batch: str = "pass", *options: str, **variables: str):
    """Run `shoal run` on the script; return (exit code, stdout, stderr). Fails if a process is left behind."""
    (folder / "train.py").write_text(SCRIPT.format(prepare=prepare, batch=batch))
    done = subprocess.run(
        [sys.executable, "-m", "shoal.cli", "run", "train.py", "--output", "json", *options],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "SHOAL_STATE": str(folder / "state"), **variables},
        check=False,
        timeout=150,
    )
    assert not [p for p in psutil.process_iter(["environ"]) if _of(p, folder)], "a process was left behind"
    assert "Traceback" not in done.stderr or "the script failed" in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def _of(process: psutil.Process, folder: Path) -> bool:
    environment = process.info["environ"] or {}
    return environment.get("SHOAL_STATE") == str(folder / "state")


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        ("data = TensorDataset(torch.zeros(0, 3))\nDataLoader = lambda d, **k: d", "the dataset has no samples"),
        ("make = torch.optim.LBFGS", "LBFGS cannot run on parameter servers"),
        ("make = lambda p, lr: torch.optim.SGD([torch.zeros(2, requires_grad=True)], lr=lr)",
         "an optimizer holds a parameter of shape [2] that the model does not have"),
    ],
    ids=["no samples", "an optimizer that cannot be split", "an optimizer of something else"],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_once(tmp_path, prepare, said):
    code, _, errors = run(tmp_path, prepare)
    assert code == 1
    assert said in errors


def test_a_model_that_differs_between_trainers(tmp_path):
    code, _, errors = run(tmp_path, "model = nn.Linear(width, 1 + INDEX)", "pass", "--trainers", "2")
    assert code == 1
    assert "parameter weight is float32 [" in errors
    assert "in the job" in errors


def test_a_poisoned_sample_fails_the_job_and_is_named(tmp_path):
    """Each trainer that gets the sample fails; after three failures the job fails, instead of retrying without end."""
    picky = """
class Picky(nn.Linear):
    def forward(self, x):
        if (x[:, 0] == 0.3).any(): raise RuntimeError('a poisoned batch')
        return super().forward(x)
model = Picky(width, 1)
"""
    code, _, errors = run(tmp_path, picky, "pass", "--trainers", "1")
    assert code == 1
    assert "a poisoned batch" in errors
    assert "the script failed 3 times on task" in errors
    assert "samples " in errors


def test_a_loss_that_is_not_a_number_is_reported_and_trained_on(tmp_path):
    code, out, errors = run(tmp_path, "", "loss = loss * float('nan')", "--trainers", "1")
    assert code == 0, errors
    assert "not a number" in errors
    assert json.loads(out.splitlines()[-1])["samples"]["counted"] == 128


def test_a_dataset_that_changed_between_two_runs(tmp_path):
    batch = "if batches == 5: sys.exit(78)"
    code, _, _ = run(tmp_path, "", batch, "--trainers", "1")
    assert code == 1
    code, _, errors = run(tmp_path, "", "pass", "--trainers", "1", SAMPLES="60")
    assert code == 1
    assert "the dataset's length is 60 here, 64 in the job" in errors


def test_damaged_and_foreign_snapshots_are_named_and_older_ones_taken(tmp_path):
    code, _, _ = run(tmp_path, "", "if batches == 5: sys.exit(78)", "--trainers", "1")
    assert code == 1
    folder = tmp_path / "state" / "train" / "snapshots" / "pserver-0"
    newest = max(folder.glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-40])
    (folder / "99999999999999999999-aaaaaaaa.safetensors").write_bytes(b"\0" * 400)
    code, out, errors = run(tmp_path, "", "pass", "--trainers", "1")
    assert code == 0, errors
    assert newest.name in errors
    assert "99999999999999999999-aaaaaaaa" in errors
    samples = json.loads(out.splitlines()[-1])["samples"]
    assert (samples["counted"], samples["lost"], samples["twice"]) == (128, 0, 0)
