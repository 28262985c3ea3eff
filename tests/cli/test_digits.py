"""End-to-end tests of the digits example, the first one that a new user runs, in real processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import msgspec
import pytest

from shoal.local.view.status import RunStatus

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits"
SAMPLES = 1437


@pytest.fixture
def digits(tmp_path):
    """Copy the example to a folder; return an object that runs `shoal` there."""
    for name in ("job.yaml", "train.py"):
        shutil.copy(EXAMPLE / name, tmp_path)
    environment = {**os.environ, "SHOAL_STATE": str(tmp_path / "state")}
    runs = []

    class Digits:
        folder = tmp_path

        def start(self, *arguments):
            command = [sys.executable, "-m", "shoal.cli", *arguments]
            runs.append(
                subprocess.Popen(
                    command,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    cwd=tmp_path,
                    env=environment,
                )
            )
            return runs[-1]

        def do(self, *arguments):
            run = self.start(*arguments)
            out, err = run.communicate(timeout=200)
            return run.returncode, out, err

        def when(self, condition):
            """Wait until the job's status meets the condition."""
            deadline = time.monotonic() + 120
            while True:
                code, out, _ = self.do("status", "digits", "-o", "json")
                status = msgspec.json.decode(out, type=RunStatus) if code == 0 else None
                if status is not None and condition(status):
                    return status
                assert runs[0].poll() is None, runs[0].stderr.read()
                assert time.monotonic() < deadline, status
                time.sleep(0.3)  # each query is a process that competes with the job for CPU cores

    yield Digits()
    for run in runs:
        run.kill()
        run.wait()
        run.stdout.close()
        run.stderr.close()


def is_full(out, *, epochs):
    account = json.loads(out.splitlines()[-1])
    assert account["state"] == "Complete"
    samples = account["samples"]
    assert (samples["expected"], samples["counted"]) == (SAMPLES * epochs, SAMPLES * epochs)
    assert (samples["lost"], samples["twice"]) == (0, 0)
    return account


def training(status):
    return any(row.state == "training" for row in status.members)


def goes_on(status, before, killed):
    """Return whether the killed process has been replaced and the sample count has grown since."""
    pids = {row.name: row.pid for row in status.members}
    done = 0 if status.progress is None else status.progress.samples_total
    return pids.get(killed.name, 0) not in {0, killed.pid} and done > before.progress.samples_total


def test_a_job_from_start_to_end(digits):
    code, out, err = digits.do("run", "job.yaml", "--epochs", "2", "-o", "json")
    assert code == 0, err
    is_full(out, epochs=2)
    assert out.count("\n") == 1
    assert err.count("evaluated: accuracy") == 2
    assert (digits.folder / "model.safetensors").stat().st_size > 0
    code, out, err = digits.do("run", "job.yaml", "--epochs", "2", "-o", "json")
    assert code == 0
    is_full(out, epochs=2)
    assert "complete already; --fresh" in err
    assert "digits: Complete" in digits.do("status", "digits")[1]


def test_kills_in_the_middle_cost_no_sample(digits):
    run = digits.start("run", "job.yaml", "--epochs", "30", "-o", "json", "--trainers", "2")
    for role in ("trainer", "pserver", "master", "etcd"):
        before = digits.when(training)
        killed = next(row for row in before.members if row.role == role)
        os.kill(killed.pid, signal.SIGKILL)
        digits.when(partial(goes_on, before=before, killed=killed))
    out, err = run.communicate(timeout=200)
    assert run.returncode == 0, err
    assert err.count("SIGKILL; it starts again") == 4
    is_full(out, epochs=30)


def test_a_job_resumes_after_an_interrupt(digits):
    run = digits.start("run", "job.yaml", "--epochs", "15", "-o", "json")
    digits.when(training)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=100)
    assert run.returncode == 130, err
    assert 0 < json.loads(out)["samples"]["counted"] < 15 * SAMPLES
    code, out, err = digits.do("run", "job.yaml", "--epochs", "15", "-o", "json")
    assert code == 0, err
    is_full(out, epochs=15)
