"""`shoal run` with hung scripts: the log has the stack, the job continues, and a sample that always hangs fails the job."""

from __future__ import annotations

import os

import pytest

from tests.cli.test_run import Place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

MANIFEST = """
apiVersion: shoal.dev/v1alpha1
kind: TrainingJob
metadata: {name: train}
spec:
  command: [python, train.py]
  trainer: {minReplicas: 2}
  parameterServer: {}
  runPolicy: {stepTimeout: 3s}
"""
SCRIPT = """
import ctypes, os, signal, time, torch
from shoal import trainer
HOW, WHEN = os.environ["HOW"], os.environ["WHEN"]

def hang():
    if HOW == "sleep":
        time.sleep(10**6)  # the script's line
    if HOW == "fifo":
        open("fifo").read()  # the script's line
    if HOW == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)  # the script's line
    if HOW == "lock":
        ctypes.PyDLL(None).sleep(10**6)  # the script's line

def once():
    try:
        return bool(open("hung", "x"))
    except FileExistsError:
        return False

def score(model):
    if WHEN == "evaluate" and once():
        hang()
    return 1.0

job = trainer.join(epochs=2, seed=1)
model = torch.nn.Linear(1, 1)
data = torch.utils.data.TensorDataset(torch.arange(64.0).reshape(64, 1))
model, optimizer, loader = job.prepare(
    model, torch.optim.SGD(model.parameters(), lr=1e-6), data, batch_size=4, task_batches=4
)
batches = 0
for epoch in job.epochs():
    for (x,) in loader:
        batches += 1
        if (WHEN == "third" and batches == 3 and once()) or (WHEN == "sample" and 7.0 in x):
            hang()
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()
        time.sleep(0.02)  # stands for the computation of a larger model
    job.evaluate(score)
"""
LINES = {"sleep": "time.sleep", "fifo": 'open("fifo")', "stop": "SIGSTOP", "lock": "ctypes.PyDLL"}


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    (tmp_path / "job.yaml").write_text(MANIFEST)
    (tmp_path / "train.py").write_text(SCRIPT)
    os.mkfifo(tmp_path / "fifo")
    return made


def run(place, *, how, when):
    place.environment |= {"HOW": how, "WHEN": when}
    done = place.do("run", "job.yaml")
    number = 1 + next(n for n, line in enumerate(SCRIPT.splitlines()) if LINES[how] in line)
    return (
        done.returncode,
        done.stdout + done.stderr,
        place.do("logs", "train").stdout,
        f'train.py", line {number} in hang',
    )


@pytest.mark.parametrize("how", ["sleep", "fifo"])
def test_a_hung_batch_is_reported_with_its_stack_and_taken_by_another_trainer(place, how):
    code, said, log, line = run(place, how=how, when="third")
    assert code == 0, said
    assert line in log
    assert "has come no further for 3 s in batch" in said
    assert ", 0 lost, 0 twice" in said


def test_a_call_that_holds_the_interpreter_is_ended_too(place):
    code, said, log, line = run(place, how="lock", when="third")
    assert code == 0, said
    assert line in log
    assert ", 0 lost, 0 twice" in said


def test_a_process_that_was_stopped_is_ended_without_help(place):
    code, said, _, _ = run(place, how="stop", when="third")
    assert code == 0, said
    assert "was ended by SIGKILL" in said
    assert ", 0 lost, 0 twice" in said


def test_an_evaluation_that_does_not_end_is_warned_of_before_it_is_ended(place):
    code, said, log, line = run(place, how="sleep", when="evaluate")
    assert code == 0, said
    assert line in log
    assert "in job.evaluate for 5 s; at 9 s it is ended" in said
    assert "has come no further for 9 s in job.evaluate" in said
    assert ", 0 lost, 0 twice" in said


def test_a_sample_at_which_every_trainer_hangs_fails_the_job_by_its_number(place):
    code, said, log, line = run(place, how="sleep", when="sample")
    assert code == 1, said
    assert log.count(line) >= 3
    assert "the script failed 3 times on task" in said
    assert "it has come no further for 9 s in batch" in said, "the first one of each life"
    numbers = said.partition(": samples ")[2].partition(" (spec")[0].split(",")
    assert "7" in [number.strip() for number in numbers], said
