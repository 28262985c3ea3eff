"""The examples reach the scores that their READMEs state, run alone as a user would run them."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.slow


def scores(folder: Path, example: str, *arguments: str) -> list[float]:
    """Run an example; return each epoch's score from its output. `folder` takes its cache and its model."""
    alone = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    finished = subprocess.run(
        [sys.executable, str(EXAMPLES / example / "train.py"), *arguments],
        cwd=folder,
        env=alone | {"XDG_CACHE_HOME": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert (folder / "model.safetensors").stat().st_size > 0
    return [float(score) for score in re.findall(r"^epoch \d+: \w+ ([0-9.]+)$", finished.stdout, re.MULTILINE)]


def elastic(folder: Path, trainers: int) -> float:
    """Run the flights example by `shoal run` with this number of trainers; return the last epoch's AUC."""
    copy = shutil.copytree(EXAMPLES / "flights", folder / "flights")
    options = ["--trainers", str(trainers), "--output", "json"]
    finished = subprocess.run(
        [sys.executable, "-m", "shoal.cli", "run", str(copy / "job.yaml"), *options],
        env=os.environ | {"XDG_CACHE_HOME": str(folder), "SHOAL_STATE": str(folder / "state")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    samples = json.loads(finished.stdout.splitlines()[-1])["samples"]
    assert samples == {"expected": 883_887, "counted": 883_887, "lost": 0, "twice": 0, "skipped": 0}
    return float(re.findall(r"epoch 3 evaluated: auc ([0-9.]+)", finished.stderr)[0])


@pytest.mark.timeout(600)
def test_wide_and_deep_beats_the_logistic_baseline_also_with_4_asynchronous_trainers(tmp_path):
    baseline = scores(tmp_path, "flights", "--model", "logistic")
    model = scores(tmp_path, "flights")
    assert len(baseline) == len(model) == 3
    assert baseline[-1] > 0.73, "a weak baseline would prove nothing"
    gain = model[-1] - baseline[-1]
    assert gain >= 0.025
    assert elastic(tmp_path, 4) - baseline[-1] >= 0.9 * gain


def test_digits_are_read(tmp_path):
    accuracies = scores(tmp_path, "digits")
    assert len(accuracies) == 10
    assert accuracies[-1] >= 0.97
