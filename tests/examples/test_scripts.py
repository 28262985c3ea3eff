"""The examples keep what their READMEs promise, run alone as a user would run them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.slow


def scores(folder: Path, example: str, *arguments: str) -> list[float]:
    """The score of each epoch, from the script's own output; `folder` takes its cache and its model."""
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


def test_wide_and_deep_beats_the_logistic_baseline(tmp_path):
    baseline = scores(tmp_path, "flights", "--model", "logistic")
    model = scores(tmp_path, "flights")
    assert len(baseline) == len(model) == 3
    assert baseline[-1] > 0.73, "a weak baseline would prove nothing"
    assert model[-1] - baseline[-1] >= 0.025


def test_digits_are_read(tmp_path):
    accuracies = scores(tmp_path, "digits")
    assert len(accuracies) == 10
    assert accuracies[-1] >= 0.97
