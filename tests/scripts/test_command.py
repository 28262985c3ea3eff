"""Messages of ``shoal run`` for a command that is not a trainer, or that starts two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

from tests.scripts.running import HEAD
from tests.zygote import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

MANIFEST = """
apiVersion: shoal.dev/v1alpha1
kind: TrainingJob
metadata: {{name: script}}
spec:
  command: {command}
  epochs: 2
  trainer: {{minReplicas: {trainers}, maxReplicas: {trainers}}}
  parameterServer: {{replicas: 1}}
  runPolicy: {{backoffLimit: 0}}
"""


@pytest.fixture
def shoal_run(tmp_path):
    """Run a script by ``shoal run``; return the finished process and the trainers' logs."""

    def start(script, *, command, trainers=2):
        (tmp_path / "script.py").write_text(textwrap.dedent(script))
        (tmp_path / "job.yaml").write_text(MANIFEST.format(command=json.dumps(command), trainers=trainers))
        environment = {**os.environ, "SHOAL_STATE": str(tmp_path / "state"), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", "shoal.cli", "run", "job.yaml", "--fresh", "--output", "json"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            check=False,
            timeout=250,
        )
        logs = "".join(path.read_text() for path in sorted(tmp_path.glob("state/*/logs/trainer-*")))
        return done, logs

    return start


def test_a_script_that_never_joins_is_reported(shoal_run):
    done, _ = shoal_run("print('trained without Shoal')", command=["python", "script.py"], trainers=1)
    assert json.loads(done.stdout)["state"] == "Failed"
    error = done.stderr[done.stderr.index("error: job script failed") :]
    assert "trainer.join()" in error, done.stderr


def test_a_caught_error_is_named_as_the_cause(shoal_run):
    script = (
        HEAD
        + """
def main():
    job, model, optimizer, loader = begin()
    for epoch in job.epochs():
        for i in loader:
            raise ValueError("the real reason")


try:
    main()
except Exception as error:
    print("failed:", error)
"""
    )
    done, _ = shoal_run(script, command=["python", "script.py"], trainers=1)
    assert json.loads(done.stdout)["state"] == "Failed"
    error = done.stderr[done.stderr.index("error: job script failed") :]
    assert "an exception may have been caught around the loop" in error, done.stderr


def test_a_refusal_is_the_reason_whatever_the_script_printed_before(shoal_run):
    script = (
        HEAD
        + """
job, model, optimizer, loader = begin()
for epoch in job.epochs():
    for i in loader:
        train(model, optimizer, i)
    print("epoch", epoch)
    break
print("saving")
job.save("out.safetensors")
"""
    )
    done, _ = shoal_run(script, command=["python", "script.py"], trainers=1)
    assert "error: job script failed: the script left `for epoch in job.epochs():` in epoch 1" in done.stderr


def test_a_command_of_two_processes_is_refused(shoal_run):
    script = (
        HEAD
        + """
job, model, optimizer, loader = begin()
for epoch in job.epochs():
    for i in loader:
        train(model, optimizer, i)
job.save("out.safetensors")
"""
    )
    both = "python script.py & first=$!; python script.py; second=$?; wait $first || exit $?; exit $second"
    done, logs = shoal_run(script, command=["bash", "-c", both], trainers=1)
    assert json.loads(done.stdout)["state"] == "Failed", (done.stderr, logs)
    assert "trainer 0 of this job is a living process already" in logs
    assert "torchrun is not needed" in logs
