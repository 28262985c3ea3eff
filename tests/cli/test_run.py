"""`shoal run` with its real master, parameter server and etcd, and scripts that never reach training."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import msgspec
import psutil
import pytest

from shoal.local.etcd_server import EtcdServer, find_etcd
from shoal.local.view.status import RunStatus

pytestmark = pytest.mark.slow

SLEEPS = "import time; print('here I am', flush=True); time.sleep(1000)"
FAILS = "raise ValueError('a mistake of mine')"


class Place:
    """A working folder, and the processes that were started from it."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = {**os.environ, "SHOAL_STATE": str(folder / "state")}
        self.runs = []

    def command(self, *arguments):
        return [sys.executable, "-m", "shoal.cli", *arguments]

    def do(self, *arguments):
        return subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.environment,
            check=False,
            timeout=120,
        )

    def start(self, script, *arguments):
        (self.folder / "train.py").write_text(script)
        self.runs.append(
            subprocess.Popen(
                self.command("run", "train.py", *arguments),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=self.folder,
                env=self.environment,
            )
        )
        return self.runs[-1]

    def status(self):
        done = self.do("status", "train", "--output", "json")
        return msgspec.json.decode(done.stdout, type=RunStatus) if done.returncode == 0 else None

    def pids(self):
        return {row.name: row.pid for row in self.status().members}


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    yield made
    for run in made.runs:
        run.kill()
        run.wait()
        run.stdout.close()
        run.stderr.close()


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return found


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def with_master(place):
    def there():
        status = place.status()
        return status if status and status.progress is not None and len(status.members) >= 4 else None

    return until(there)


def test_a_script_that_fails_again_and_again_fails_the_job(place):
    run = place.start(FAILS, "--output", "json", "--trainers", "3")
    out, err = run.communicate(timeout=120)
    assert run.returncode == 1
    assert json.loads(out)["state"] == "Failed"
    assert "failed 7 times in a row" in err
    assert err.count("Traceback") == 1
    assert "a mistake of mine" in place.do("status", "train").stdout
    assert "trainer-2 | ValueError: a mistake of mine" in place.do("logs", "train").stdout


def test_steering_and_stopping(place):
    run = place.start(SLEEPS, "--trainers", "1:3", "--name", "train")
    before = with_master(place)
    assert before.state == "Starting"
    assert place.do("scale", "train", "--trainers", "3").returncode == 0
    until(lambda: {"trainer-0", "trainer-1", "trainer-2"} <= set(place.pids()))
    refused = place.do("scale", "train", "--trainers", "4")
    assert refused.returncode == 2
    assert "1 to 3" in refused.stderr
    assert "running already" in place.do("run", "train.py").stderr
    assert "here I am" in place.do("logs", "train", "trainer-0", "--tail", "1").stdout
    pids = place.pids()
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "to resume it" in err
    assert "Stopped" in out
    assert all(gone(pid) for pid in pids.values())
    assert place.status().state == "Stopped"


def replaced(place, name, killed):
    return place.pids().get(name) not in {None, 0, killed}


def test_a_killed_process_is_replaced(place):
    place.start(SLEEPS, "--trainers", "1")
    with_master(place)
    for name in ("master-0", "pserver-0", "etcd-0", "trainer-0"):
        before = place.pids()
        os.kill(before[name], signal.SIGKILL)
        until(partial(replaced, place, name, before[name]))
        after = with_master(place)
        assert {row.name: row.pid for row in after.members if row.name != name}.items() <= before.items()


def test_nothing_outlives_a_killed_runner_and_the_job_resumes(place):
    run = place.start(SLEEPS, "--trainers", "1")
    pids = {row.name: row.pid for row in with_master(place).members}
    run.kill()
    run.communicate()
    until(lambda: all(gone(pid) for pid in pids.values()))
    assert place.status().state == "Stopped"
    again = place.start(SLEEPS, "--trainers", "1")
    assert with_master(place).progress.generation == 2
    again.send_signal(signal.SIGTERM)
    out, _ = again.communicate(timeout=60)
    assert "resumes from its state" in out
    assert again.returncode == 130


def test_the_second_interrupt_kills(place):
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(1000)"
    )
    run = place.start(stubborn, "--trainers", "1")
    with_master(place)
    until(lambda: "up" in place.do("logs", "train", "trainer-0").stdout)
    pids = place.pids()
    run.send_signal(signal.SIGINT)
    until(lambda: place.status().state == "Stopping")
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    assert run.returncode == 130
    assert all(gone(pid) for pid in pids.values())


def test_a_job_of_another_script_is_not_taken_up(place):
    run = place.start(SLEEPS, "--trainers", "1", "--seed", "1")
    with_master(place)
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    (place.folder / "other.py").write_text(SLEEPS)
    other = place.do("run", "other.py", "--name", "train", "--trainers", "1")
    assert other.returncode == 2
    assert "another job named train" in other.stderr
    changed = place.do("run", "train.py", "--trainers", "1", "--seed", "2")
    assert changed.returncode == 2
    assert "spec.seed" in changed.stderr


def test_a_folder_with_a_long_name_works_too(place):
    place.environment["SHOAL_STATE"] = str(place.folder / ("deep" * 30))
    run = place.start(SLEEPS, "--trainers", "1")
    with_master(place)
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    assert run.returncode == 130


def test_a_run_whose_output_is_closed_continues(place):
    run = place.start(SLEEPS, "--trainers", "1")
    run.stdout.readline()
    run.stdout.close()
    with_master(place)
    assert place.do("scale", "train", "--auto").returncode == 0
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=60) == 130
    assert "Traceback" not in run.stderr.read()


def test_an_etcd_that_runs_already_is_used_and_left_alone(place):
    with EtcdServer(find_etcd(), place.folder / "theirs") as etcd:
        run = place.start(SLEEPS, "--trainers", "1", "--etcd", etcd.endpoint)
        until(lambda: (status := place.status()) is not None and status.progress is not None)
        assert "etcd-0" not in place.pids()
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=60)
        assert run.returncode == 130
        assert etcd.running
