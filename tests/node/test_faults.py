"""One job in real pods whose processes are killed one after the other: it continues each time, and its final account is exact.

The tests share the job, which trains slowly until the last of them. A kubelet waits 10 s, 20 s and longer before it
restarts the same container again, so no container is killed twice without need.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.node.jobs import template
from tests.node.test_life import check

pytestmark = [pytest.mark.cluster, pytest.mark.node, pytest.mark.timeout(180)]

EPOCHS = 12
CLAIM = {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": {"storage": "1Mi"}}}


class Job:
    """The job that this file's tests share."""

    def __init__(self, world) -> None:
        self.world = world
        self.model = world.claim("model")
        self.snapshots = [world.volume() for _ in range(2)]
        self.leaves = self.deaths = 0
        """Of trainers, by these tests."""

    def apply(self, **more) -> None:
        spec = self.world.counting(epochs=EPOCHS)
        trainer = {"minReplicas": 2, "maxReplicas": 4, "template": spec["trainer"]["template"],
                   "resources": {"limits": {"memory": "1500Mi"}}}  # fmt: skip
        servers = {"replicas": 2, "volumeClaimSpec": CLAIM, "template": template("pserver")}
        output = {"path": "m.safetensors", "volumeClaimName": "model"}
        self.world.apply("long", **spec | {"trainer": trainer, "parameterServer": servers, "output": output} | more)

    def progresses(self, *trainers: int) -> None:
        self.world.progresses("long", trainers=list(trainers))

    def pod(self, name: str) -> dict:
        return self.world.get("pod", f"long-{name}")

    def container(self, name: str) -> dict:
        return self.pod(name)["status"]["containerStatuses"][0]

    def uid(self, name: str) -> str | None:
        """Return the uid of the pod of this name, or None if there is none."""
        found = self.world.pods("long").get(f"long-{name}")
        return found["metadata"]["uid"] if found is not None else None

    def delete(self, name: str, *how: str) -> None:
        """Delete a pod and wait until its processes have ended."""
        role, _, index = name.partition("-")
        running = self.world.processes("long", role, 0 if role == "master" else int(index))
        self.world.kubectl("delete", "pod", f"long-{name}", "--wait=false", *how)
        ended = [Path(f"/proc/{process}") for process in running]
        self.world.until(lambda: not any(process.exists() for process in ended), f"the process of {name} to end")

    @property
    def master(self) -> str:
        [name] = self.world.ready("long", "master")
        return name.removeprefix("long-")


NOW = ("--force", "--grace-period=0")


@pytest.fixture(scope="module")
def job(world):
    world.pace(0.5)
    made = Job(world)
    made.apply()
    made.progresses(0, 1)
    return made


def test_a_killed_trainer_is_started_again_in_place(job):
    pod = job.uid("trainer-0")
    job.world.kill("long", "trainer", 0)
    job.deaths += 1
    job.world.until(lambda: job.container("trainer-0")["restartCount"] == 1, "a restart of trainer-0")
    job.progresses(0, 1)
    assert job.uid("trainer-0") == pod
    assert job.container("trainer-0")["lastState"]["terminated"]["exitCode"] == 128 + signal.SIGKILL
    assert "trainer 0 begins" in job.world.kubectl("logs", "long-trainer-0", "--previous")


@pytest.mark.parametrize("how", [(), NOW], ids=["in good order", "at once"])
def test_a_deleted_trainer_is_replaced(job, how):
    before = job.uid("trainer-1")
    job.delete("trainer-1", *how)
    job.deaths += bool(how)
    job.leaves += not how
    job.world.until(lambda: job.uid("trainer-1") not in {before, None}, "a new one")
    job.progresses(0, 1)


def test_a_killed_master_and_a_deleted_one_are_followed_by_another(job):
    before = job.world.reported_state("long").generation
    job.world.kill("long", "master")
    job.progresses(0, 1)
    job.delete(job.master, *NOW)
    job.progresses(0, 1)
    assert job.world.reported_state("long").generation == before + 2


def test_a_killed_server_continues_from_its_snapshots(job):
    job.world.kill("long", "pserver", 0)
    job.world.until(lambda: job.container("pserver-0")["restartCount"] == 1, "a restart of pserver-0")
    job.progresses(0, 1)


def test_a_deleted_server_is_recreated_with_its_claim(job):
    before = job.uid("pserver-1")
    job.delete("pserver-1", *NOW)
    job.world.until(lambda: job.uid("pserver-1") not in {before, None}, "a new one")
    job.progresses(0, 1)
    assert all(list(folder.rglob("*.safetensors")) for folder in job.snapshots)


def test_servers_and_master_that_vanish_silently_are_replaced(job):
    master = job.master  # read before it is cut off, as it will soon not be ready
    job.world.cut_off("long", "pserver", 0)
    job.world.cut_off("long", "master")
    job.delete("pserver-0", *NOW)
    job.delete(master, *NOW)
    job.progresses(0, 1)


def test_etcd_is_killed_and_restarted(job):
    job.world.etcd.kill()
    job.world.etcd.start()
    job.progresses(0, 1)
    assert job.world.alive


def test_without_an_operator_the_job_continues(job):
    job.world.end(signal.SIGKILL)
    before = job.container("trainer-1")["restartCount"]
    job.world.kill("long", "trainer", 1)
    job.deaths += 1
    job.world.until(lambda: job.container("trainer-1")["restartCount"] == before + 1, "a restart of trainer-1")
    job.progresses(0, 1)
    job.world.kubectl("scale", "tj/long", "--replicas=4")
    job.world.start()
    job.progresses(0, 1, 2, 3)


def test_scaled_down_trainers_return_their_tasks_and_exit(job):
    job.world.kubectl("scale", "tj/long", "--replicas=4")
    job.progresses(0, 1, 2, 3)
    job.world.kubectl("scale", "tj/long", "--replicas=2")
    job.world.until(lambda: set(job.world.pods("long", "trainer")) == {"long-trainer-0", "long-trainer-1"}, "two to go")
    job.leaves += 2
    job.progresses(0, 1)


def test_a_suspended_job_has_no_pods_and_resumes(job):
    job.apply(suspend=True)
    job.world.until(lambda: job.world.status("long").get("state") == "Suspended", "everything to leave")
    assert not job.world.pods("long")
    job.leaves += 2
    job.apply(suspend=False)
    job.progresses(0, 1)


def test_a_trainer_over_its_memory_limit_is_reported_and_the_others_continue(job):
    world = job.world
    world.put("eat-1", str(3 << 30))
    world.until(lambda: world.condition("long", "Running").get("reason") == "OutOfMemory", "the word of it")
    job.deaths += 1
    said = world.condition("long", "Running")
    assert "long-trainer-1" in said["message"]
    assert said["status"] == "False"
    job.progresses(0)
    (world.control / "eat-1").unlink()
    job.delete("trainer-1", *NOW)
    job.progresses(0, 1)
    world.until(lambda: world.condition("long", "Running")["status"] == "True", "all to run")


def test_in_the_end_every_sample_has_counted_once(job):
    job.world.pace(0)
    job.world.until(lambda: job.world.status("long").get("state") == "Complete", "its end")
    check(job.world, "long", job.model / "m.safetensors", epochs=EPOCHS)
    account = job.world.status("long")["account"]
    assert account["leaves"] >= job.leaves
    assert account["deaths"] >= job.deaths
