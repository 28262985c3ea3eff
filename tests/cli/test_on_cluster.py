"""The commands about jobs on a cluster, each a process, against a real API server with an operator."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys

import pytest
import yaml

from tests.operator.conftest import add_nodes, control_plane, namespace, pytest_collection_finish, shared
from tests.operator.world import manifest

__all__ = ["add_nodes", "control_plane", "namespace", "pytest_collection_finish", "shared"]

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

NUMBERS = itertools.count()


class Shell:
    """A user's shell: a kubeconfig, a namespace and an empty state folder."""

    def __init__(self, world, folder):
        self.world, self.folder = world, folder
        self.place = ["--kubeconfig", str(world.cluster.kubeconfig), "-n", world.namespace]

    def start(self, *arguments, place=True, **variables):
        command = [sys.executable, "-m", "shoal.cli", arguments[0], *(self.place if place else []), *arguments[1:]]
        environment = {**os.environ, "SHOAL_STATE": str(self.folder / "state"), "COLUMNS": "200", **variables}
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=self.folder,
            # The tests themselves may run in the background of a shell, which ignores SIGINT there.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - it takes no lock
        )

    def __call__(self, *arguments, code=0, **options):
        process = self.start(*arguments, **options)
        out, error = process.communicate(timeout=120)
        assert process.returncode == code, out + error
        return out if code == 0 else error


@pytest.fixture
def shoal(shared, tmp_path):
    return Shell(shared, tmp_path)


@pytest.fixture
def name(shared):
    made = f"cli-{next(NUMBERS)}"
    yield made
    shared.kubectl("delete", "tj", made, "--wait=false", "--ignore-not-found")


@pytest.fixture
def running(shared, name):
    """Provide a running job."""
    job = shared.job(name)
    job.apply()
    job.at_work([0, 1])
    job.state("Running")
    return job


def test_a_manifest_is_submitted_and_followed_to_its_end(shared, shoal, name):
    (shoal.folder / "job.yaml").write_text(yaml.safe_dump(manifest(name)))
    process = shoal.start("submit", "job.yaml")
    job = shared.job(name)
    job.until(lambda: job.found, "the job")
    job.state("Running")
    job.end()
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert out.splitlines()[-1].startswith("Complete")
    assert f"job {name} is submitted" in error


def test_a_job_that_fails_ends_the_command_with_1(shared, shoal, name):
    (shoal.folder / "job.yaml").write_text(yaml.safe_dump(manifest(name)))
    process = shoal.start("submit", "job.yaml", "--output", "json")
    job = shared.job(name)
    job.until(lambda: job.found, "the job")
    job.state("Running")
    job.end("Failed")
    out, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"job {shared.namespace}/{name} failed" in error
    assert json.loads(out.splitlines()[-1])["state"] == "Failed"


def test_ctrl_c_stops_following_and_not_the_job(shared, shoal, name):
    (shoal.folder / "job.yaml").write_text(yaml.safe_dump(manifest(name)))
    process = shoal.start("submit", "job.yaml")
    job = shared.job(name)
    job.until(lambda: job.found, "the job")
    job.state("Running")
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"job {name} continues; come back with `shoal status {name}`" in error
    assert job.status()["state"] == "Running"


def test_a_script_is_submitted_detached_with_options(shared, shoal, name):
    (shoal.folder / "train.py").write_text("print(1)\n")
    out = shoal("submit", "train.py", "--name", name, "--image", "i:1", "--trainers", "2:8", "--cpu", "500m", "--servers",
                "2", "--epochs", "3", "--env", "A=1", "--label", "team=x", "--detach", "--", "--lr", "0.1")  # fmt: skip
    assert out == f"job {name} is submitted\n"
    spec = shared.job(name).found["spec"]
    assert spec["command"] == ["python", "train.py", "--lr", "0.1"]
    assert spec["trainer"]["minReplicas"], spec["trainer"]["maxReplicas"] == (2, 8)
    assert spec["trainer"]["resources"] == {"requests": {"cpu": "500m"}}
    assert spec["env"] == [{"name": "A", "value": "1"}]


def test_a_dry_run_prints_the_manifest_and_creates_nothing(shared, shoal, name):
    (shoal.folder / "train.py").write_text("print(1)\n")
    printed = yaml.safe_load(shoal("submit", "train.py", "--name", name, "--dry-run"))
    assert printed["metadata"]["name"] == name
    assert not shared.job(name).found


def test_jobs_are_listed_in_each_format(shared, shoal, running):
    name = running.name
    rows = shoal("list").splitlines()
    assert rows[0].split() == ["NAME", "STATE", "TRAINERS", "RANGE", "PROGRESS", "RATE", "LEFT", "AGE"]
    assert [row.split()[:4] for row in rows if row.startswith(f"{name} ")] == [[name, "Running", "2/2", "2-4"]]
    assert "SERVERS" in shoal("list", "-o", "wide").splitlines()[0]
    assert name in shoal("list", "-o", "name").split()
    assert name in [each["name"] for each in json.loads(shoal("list", "-o", "json"))]
    assert name in [each["name"] for each in yaml.safe_load(shoal("list", "-o", "yaml"))]
    assert f"{shared.namespace}/{name}" in shoal("list", "-A")
    assert name not in shoal("list", "--in-state", "Complete")


def test_a_job_is_described_with_its_processes_and_events(shoal, running):
    described = shoal("describe", running.name)
    assert described.startswith(f"{running.name}: Running (namespace {running.world.namespace}; trainers: 2 of 2")
    assert "trainer-1" in described
    assert "Started" in described
    assert json.loads(shoal("status", running.name, "-o", "json"))["state"] == "Running"
    assert "Started" in shoal("events", running.name)


def test_a_job_is_scaled_suspended_resumed_and_deleted(shoal, running):
    assert shoal("scale", running.name, "3") == f"{running.name}: 3 trainers\n"
    running.at_work([0, 1, 2])
    shoal("scale", running.name, "--auto")
    running.at_work([0, 1])
    shoal("scale", running.name, "--min", "3", "--max", "5")
    running.at_work([0, 1, 2])
    assert "replicas is not between minReplicas and maxReplicas" in shoal("scale", running.name, "9", code=2)
    shoal("suspend", running.name)
    assert shoal("wait", running.name, "--for", "suspended", "--timeout", "1m") == f"{running.name}: Suspended\n"
    shoal("resume", running.name)
    shoal("wait", running.name, "--for", "Running", "--timeout", "1m")
    assert shoal("delete", running.name, "--yes") == f"{running.name}: deleted\n"
    assert "does not exist" in shoal("status", running.name, code=1)


def test_a_wait_that_takes_too_long_ends_with_1(shoal, running):
    assert "is not Complete after 1s; it is Running" in shoal("wait", running.name, "--timeout", "1s", code=1)


def test_wrong_names_and_options_are_refused(shoal):
    assert "no-such-job does not exist" in shoal("status", "no-such-job", code=1)
    assert "is not one of" in shoal("list", "-o", "table", code=2)
    assert "'Finished' is no state; known: Pending" in shoal("list", "--in-state", "Finished", code=1)
    assert "--local is for jobs on this machine" in shoal("list", "--local", code=2)
    assert "none.py does not exist" in shoal("submit", "none.py", code=2)
    assert "give a number of trainers" in shoal("scale", "no-such-job", code=2)


def test_a_local_job_of_the_name_is_meant_first(shoal, tmp_path):
    folder = tmp_path / "state" / "here"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(manifest("here")))
    assert "here: Stopped" in shoal("status", "here", place=False)


def test_a_closed_pipe_is_no_error(shoal, running):
    with shoal.start("list", "--watch") as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(60) == 0, process.stderr.read()


def test_the_screen_of_all_jobs_can_be_printed_once(shoal, running):
    printed = shoal("top", "--once")
    assert f"{running.name} " in printed
    assert "WHY NOT MORE" in printed
    assert "needs a terminal" in shoal("top", code=2)


def test_the_doctor_names_what_is_wrong_and_the_command_that_mends_it(shoal, shared):
    process = shoal.start("doctor", "--output", "json")
    out, error = process.communicate(timeout=120)
    found = {each["check"]: each for each in json.loads(out)}
    assert found["API server"]["text"].startswith("v1."), error
    assert found["TrainingJobs"]["is_good"] is True
    assert found["may create TrainingJob"]["is_good"] is True
    # In this cluster the operator is a process beside it, without a Lease.
    assert found["operator"]["is_good"] is False
    assert found["operator"]["fix"] == "kubectl apply -k deploy/overlays/default"
    assert process.returncode == 1
