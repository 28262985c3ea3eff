"""The SDK with jobs that really train: shipped scripts, logs of killed trainers, failures and fetched models."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from safetensors.torch import load_file

from shoal.api import from_mapping
from shoal.sdk import Client, FetchError, JobFailedError, State
from shoal.sdk.manifests import Submission
from shoal.sdk.sources import sources_of_script
from tests.cluster.image import IMAGE
from tests.node.jobs import ROOT, template

pytestmark = [pytest.mark.cluster, pytest.mark.node, pytest.mark.timeout(300)]


@pytest.fixture
def client(world):
    with Client(kubeconfig=world.cluster.kubeconfig, namespace=world.namespace) as made:
        yield made


def trained(world, name, **spec):
    """Return a job whose pods run this machine's Python, and whose working directory is free for shipped sources."""
    job = world.counting(**spec)
    for part in ("trainer", "parameterServer", "master"):
        (container,) = job[part]["template"]["spec"]["containers"]
        del container["workingDir"]
        env = {each["name"]: each["value"] for each in container["env"]}
        env["PYTHONPATH"] = ":".join(filter(None, (env.get("PYTHONPATH"), str(ROOT))))
        container["env"] = [{"name": key, "value": value} for key, value in env.items()]
    kind = {"apiVersion": "shoal.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": name}}
    return from_mapping({**kind, "spec": job})


def ship(client, job, script, *files):
    """Submit a job with shipped sources; a job with a template of its own, as this machine has no image with Python."""
    submission = Submission(job, sources_of_script(script, files))
    key = client._loop.run(client._client._backend.submit(submission))
    return client.get(key.name)


def test_a_shipped_script_trains_and_its_model_is_fetched(world, client, tmp_path):
    world.claim("models")
    (tmp_path / "train.py").write_text("import helper\nfrom tests.node.paced import main\n\nhelper.hello()\nmain()\n")
    (tmp_path / "helper.py").write_text("def hello():\n    print('shipped \\u2713', flush=True)\n")
    job = ship(
        client,
        trained(
            world,
            "shipped",
            command=["python", "train.py"],
            trainer={"minReplicas": 2, "maxReplicas": 2},
            output={"path": "below/m.safetensors", "volumeClaimName": "models"},
        ),
        tmp_path / "train.py",
        tmp_path / "helper.py",
    )
    *_, last = job.watch(bar=False)
    assert last.state is State.COMPLETE, f"{last}\n{world.last_words()}"
    lines = list(job.logs("trainer-0"))
    assert "shipped ✓" in [line.text for line in lines]
    assert {line.process for line in lines} == {"trainer-0"}
    progress = []
    copied = job.fetch_model(target=tmp_path, on_progress=lambda done, whole: progress.append((done, whole)))
    assert copied == tmp_path / "m.safetensors"
    assert load_file(copied)
    assert progress[-1] == (copied.stat().st_size, copied.stat().st_size)
    with pytest.raises(FetchError, match=r"there is no such file; the folder has: m\.safetensors"):
        job.fetch_model("below/other.safetensors", tmp_path)
    with pytest.raises(FetchError, match="outside of the claim"):
        job.fetch_model("../../etc/passwd", tmp_path)
    assert [each.name for each in tmp_path.iterdir() if each.name.endswith(".part")] == []
    world.until(
        lambda: not [name for name in world.get("pods")["items"] if "fetch" in name["metadata"]["name"]], "pods"
    )


def test_logs_are_followed_through_a_killed_trainer_and_a_replaced_pod(world, client):
    world.pace(0.3)
    trainer = {"minReplicas": 2, "maxReplicas": 2}
    world.apply("followed", **world.counting(trainer=trainer, epochs=2))
    world.progresses("followed", trainers=[0, 1])
    job = client.get("followed")
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(job.logs(follow=True)), daemon=True)
    reader.start()

    def starts(index):
        return [line for line in lines if line.text == f"trainer {index} begins"]

    world.until(lambda: starts(0) and starts(1), "the first lines")
    world.kill("followed", "trainer", 0)
    world.until(lambda: len(starts(0)) == 2, "the lines of the container that was started again")
    world.kubectl("delete", "pod", "followed-trainer-1", "--grace-period=0", "--force")
    world.until(lambda: len(starts(1)) >= 2, "the lines of the pod that took its place")
    world.pace(0.0)
    world.until(lambda: world.status("followed").get("state") == "Complete", "its end", seconds=120)
    reader.join(60)
    assert not reader.is_alive(), "following ends with the job"
    assert len(starts(0)) == 2, "no line is read twice"


def test_a_failure_has_the_process_and_its_last_lines(world, client):
    job = client.submit(
        manifest={
            "apiVersion": "shoal.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": "failing"},
            "spec": {
                "image": IMAGE,
                "command": ["python", "-c", "print('x' * 200_000); raise SystemExit('no data at /data')"],
                "parameterServer": {"emptyDir": {}, "template": template("pserver")},
                "master": {"template": template("master")},
                "trainer": {"template": template("trainer")},
                "runPolicy": {"backoffLimit": 0},
            },
        }
    )
    with pytest.raises(JobFailedError) as error:
        job.wait(timeout="3m")
    assert error.value.process == "trainer-0"
    assert error.value.last_lines[-1] == "no data at /data"
    assert "trainer-0 | no data at /data" in str(error.value)
    long = next(line.text for line in job.logs("trainer-0") if line.text.startswith("xxx"))
    assert len(long) < 70_000
    assert long.endswith(" ... (line cut)")


def test_the_command_line_follows_a_job_to_its_end(world, tmp_path):
    world.pace(0.0)
    world.apply("typed", **world.counting(trainer={"minReplicas": 1, "maxReplicas": 2}))

    def shoal(*arguments):
        command = [sys.executable, "-m", "shoal.cli", *arguments]
        place = ["--kubeconfig", str(world.cluster.kubeconfig), "-n", world.namespace]
        return subprocess.run([*command, *place], capture_output=True, text=True, timeout=200, check=False)

    waited = shoal("wait", "typed", "--timeout", "3m")
    assert (waited.returncode, waited.stdout) == (0, "typed: Complete\n"), waited.stderr
    said = shoal("logs", "typed")
    assert "trainer-0 | trainer 0 begins" in said.stdout
    described = shoal("describe", "typed")
    assert "samples: 1,200 of 1,200 counted, 0 lost, 0 twice" in described.stdout
