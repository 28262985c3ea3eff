"""A job's life on a real control plane with hollow nodes: the operator is a process, killed and started again at will."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.api.crd import crd
from tests.etcds import run_etcd
from tests.operator.standin import Masters

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]


class World:
    """A namespace with an operator and the masters' stand-in."""

    def __init__(self, cluster, namespace, etcd, folder: Path) -> None:
        self.cluster, self.namespace, self.etcd = cluster, namespace, etcd
        self._log = folder / "operator.log"
        self._operator: subprocess.Popen[bytes] | None = None

    def start(self, program: str = "shoal.operator", **variables: str) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            self._operator = subprocess.Popen(
                [sys.executable, "-m", program, "--etcd", self.etcd.endpoint, "--namespace", self.namespace],
                env={**os.environ, "KUBECONFIG": str(self.cluster.kubeconfig), **variables},
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        return self._operator

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self._operator is not None
        self._operator.send_signal(number)
        return self._operator.wait(30)

    def log(self) -> str:
        return self._log.read_text()

    def apply(self, **spec) -> None:
        spec = {
            "image": "example.org/train:1", "command": ["python", "train.py"],
            "trainer": {"minReplicas": 2, "maxReplicas": 4}, "parameterServer": {"replicas": 2},
        } | spec  # fmt: skip
        manifest = {"apiVersion": "shoal.dev/v1alpha1", "kind": "TrainingJob",
                    "metadata": {"name": "j", "namespace": self.namespace}, "spec": spec}  # fmt: skip
        self.cluster.kubectl("apply", "-f", "-", input=json.dumps(manifest))

    @property
    def uid(self) -> str:
        return self.cluster.get("trainingjob", "j", "-n", self.namespace)["metadata"]["uid"]

    def status(self, name: str = "j") -> dict:
        return self.cluster.get("trainingjob", name, "-n", self.namespace).get("status", {})

    def condition(self, kind: str, name: str = "j") -> dict:
        return next((each for each in self.status(name).get("conditions", []) if each["type"] == kind), {})

    def state(self, state: str) -> None:
        self.until(lambda: self.status().get("state") == state, f"{state}; it is {self.status()}")

    def pods(self, role: str, *, ready: bool = True) -> list[str]:
        found = self.cluster.get("pods", "-n", self.namespace, "-l", f"shoal.dev/role={role}")["items"]
        return sorted(
            pod["metadata"]["name"]
            for pod in found
            if not ready
            or any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))
        )

    def until(self, found, what: str) -> None:
        try:
            self.cluster.until(found, what)
        except BaseException:
            print(self.log()[-6000:])
            raise

    def at_work(self, trainers: list[int]) -> None:
        wanted = [f"j-trainer-{index}" for index in trainers]
        self.until(lambda: self.pods("trainer", ready=False) == self.pods("trainer") == wanted, f"trainers {trainers}")
        self.until(lambda: len(self.pods("pserver")) == 2 and len(self.pods("master")) == 1, "servers and master")

    def nobody(self) -> None:
        self.until(lambda: not any(self.pods(role, ready=False) for role in ("pserver", "master")), "servers to go")
        assert self.pods("trainer") == []


def conditions(cluster, name: str) -> set[str]:
    """The conditions of an object that are true."""
    found = cluster.get(name).get("status", {}).get("conditions") or []
    return {each["type"] for each in found if each["status"] == "True"}


@pytest.fixture
def world(control_plane, add_nodes, namespace, tmp_path):
    control_plane.kubectl("apply", "-f", "-", input=json.dumps(crd()))
    # `kubectl wait` fails while there are no conditions at all.
    control_plane.until(
        lambda: "Established" in conditions(control_plane, "crd/trainingjobs.shoal.dev"), "the definition"
    )
    add_nodes(3)
    with run_etcd(tmp_path / "etcd") as etcd:
        made = World(control_plane, namespace, etcd, tmp_path)
        made.start()
        with Masters(control_plane.kubectl, control_plane.get, etcd.endpoint, namespace) as made.masters:
            yield made
        # One that was started a moment ago has no handler yet.
        assert made.end() in {0, -signal.SIGTERM}, made.log()


def test_from_apply_to_complete(world):
    world.apply()
    world.at_work([0, 1])
    world.state("Running")
    assert world.status()["trainers"] | {"text": "2/2", "range": "2-4"} == world.status()["trainers"]
    assert (world.condition("Accepted")["status"], world.condition("Running")["status"]) == ("True", "True")
    world.cluster.kubectl("wait", "tj/j", "--for=condition=Progressing", "--timeout=30s", "-n", world.namespace)
    world.cluster.kubectl("scale", "tj/j", "--replicas=4", "-n", world.namespace)
    world.at_work([0, 1, 2, 3])
    world.cluster.kubectl("scale", "tj/j", "--replicas=3", "-n", world.namespace)
    world.at_work([0, 1, 2])
    world.masters.ended[world.uid] = "Complete"
    world.cluster.kubectl("wait", "tj/j", "--for=condition=Complete", "--timeout=60s", "-n", world.namespace)
    told = world.cluster.kubectl("get", "tj", "j", "-n", world.namespace)
    assert told.split()[: told.split().index("STATE") + 1][-1] == "STATE"
    assert "Complete" in told
    assert world.status()["account"] | {"lost": 0, "twice": 0} == world.status()["account"]
    world.nobody()
    assert world.pods("trainer", ready=False) == ["j-trainer-0", "j-trainer-1", "j-trainer-2"], "their logs stay"


def test_suspended_and_resumed_through_a_new_operator(world):
    world.apply()
    world.at_work([0, 1])
    world.apply(suspend=True)
    world.nobody()
    world.state("Suspended")
    world.end(signal.SIGKILL)
    world.apply(suspend=False)
    world.start()
    world.at_work([0, 1])


@pytest.mark.parametrize("before", ["0", "1"], ids=["right after it", "right before it"])
def test_killed_at_every_request_of_a_life(world, before):
    """Each operator lives for one request more than the one before; together they bring the job there and back."""
    world.end(signal.SIGKILL)
    world.apply()
    deaths = killed_until(world, lambda: len(world.pods("trainer")) == 2 and len(world.pods("pserver")) == 2, before)
    assert deaths >= 3
    world.start()
    world.at_work([0, 1])
    world.end(signal.SIGKILL)
    world.apply(suspend=True)
    killed_until(
        world, lambda: not world.pods("pserver", ready=False) and not world.pods("master", ready=False), before
    )
    world.start()
    world.nobody()


def killed_until(world, reached, before: str) -> int:
    """How many operators died before that was reached."""
    for number in range(1, 40):
        running = world.start("tests.operator.dying", DIE_AT=str(number), DIE_BEFORE=before)
        world.until(lambda running=running: running.poll() is not None or reached(), "its death, or the end")
        if reached():
            running.kill()
            running.wait(30)
            return number - 1
        assert running.returncode == -signal.SIGKILL, world.log()
    raise AssertionError(world.log())


def uids(world, name: str) -> set[str]:
    """Of the object of this name, if it is there."""
    kind, _, called = name.partition("/")
    found = world.cluster.get(kind, "-n", world.namespace, f"--field-selector=metadata.name={called}")["items"]
    return {each["metadata"]["uid"] for each in found}


def test_what_others_delete_comes_back(world):
    world.apply()
    world.at_work([0, 1])
    for gone in (
        "pod/j-trainer-0",
        "statefulset/j-pserver",
        "deployment/j-master",
        "service/j-master",
        "pdb/j-trainer",
    ):
        before = uids(world, gone)
        # It would wait for ever for the end of what is back before it looks.
        world.cluster.kubectl("delete", gone, "-n", world.namespace, "--wait=false")
        world.until(lambda gone=gone, before=before: uids(world, gone) - before, f"another {gone}")
    world.at_work([0, 1])
    world.until(
        lambda: world.cluster.get("services,pdb", "-n", world.namespace)["items"][0:3] and len(
            world.cluster.get("services,pdb", "-n", world.namespace)["items"]) == 3, "Services and budget"
    )  # fmt: skip


def test_a_new_template_rolls_the_trainers_one_by_one(world):
    world.apply()
    world.at_work([0, 1])
    world.apply(image="example.org/train:2")

    def images():
        found = world.cluster.get("pods", "-n", world.namespace, "-l", "shoal.dev/role=trainer")["items"]
        return {pod["spec"]["containers"][0]["image"] for pod in found}

    world.until(lambda: images() == {"example.org/train:2"}, "the new image")
    world.at_work([0, 1])


def test_deleted_in_mid_flight_nothing_stays(world):
    world.apply()
    world.at_work([0, 1])
    world.cluster.kubectl("delete", "tj/j", "-n", world.namespace)
    kinds = "pods,services,statefulsets,deployments,secrets,pdb"
    world.until(
        lambda: not world.cluster.get(kinds, "-n", world.namespace, "-l", "shoal.dev/job=j")["items"], "all to go"
    )


def test_a_broken_job_delays_nobody(world):
    world.apply(trainer={"minReplicas": 2, "maxReplicas": 2, "template": {"spec": {"containers": [{"name": "x"}]}}})
    manifest = {"apiVersion": "shoal.dev/v1alpha1", "kind": "TrainingJob",
                "metadata": {"name": "good", "namespace": world.namespace},
                "spec": {"image": "i", "command": ["python"], "parameterServer": {"replicas": 1}}}  # fmt: skip
    world.cluster.kubectl("apply", "-f", "-", input=json.dumps(manifest))
    world.until(lambda: "good-trainer-0" in world.pods("trainer"), "the good job")
    words = "spec.containers[1].image: Required value"
    world.until(lambda: words in world.condition("Scheduled").get("message", ""), "the server's own words")
    assert world.condition("Scheduled")["reason"] == "PodsRefused"


def test_what_the_schema_cannot_know_is_not_accepted(world):
    twice = {"spec": {"containers": [{"name": "trainer", "image": "other:1"}]}}
    world.apply(trainer={"minReplicas": 2, "maxReplicas": 2, "template": twice})
    world.until(lambda: world.condition("Accepted").get("status") == "False", "its refusal")
    said = world.condition("Accepted")["message"]
    assert "spec.trainer.template.spec.containers[0].image: spec.image sets it too; set it in one place" in said
    assert world.pods("trainer", ready=False) == world.pods("master", ready=False) == []
