"""A namespace with an operator and the masters' stand-in on a real control plane, and the jobs in it."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shoal.api.crd import crd
from tests.cluster.control_plane import ControlPlane
from tests.cluster.fixtures import fresh_namespace
from tests.etcds import Etcd, run_etcd
from tests.operator.api import Api, ApiAwayError
from tests.operator.standin import Masters
from tests.zygote import OPERATOR, Child, Zygote

__all__ = ["MADE", "PRIORITIES", "ROOT", "Job", "World", "a_world", "define", "manifest", "spawn"]

ROOT = Path(__file__).parents[2]
PRIORITIES = ROOT / "deploy" / "base" / "priorities.yaml"
CLASSES = ("--priority-classes", "shoal-servers", "shoal-minimum", "shoal-surplus")
SPEC = {
    "image": "example.org/train:1", "command": ["python", "train.py"],
    "trainer": {"minReplicas": 2, "maxReplicas": 4}, "parameterServer": {"replicas": 2, "emptyDir": {}},
}  # fmt: skip
MADE = ("Pod", "Service", "ServiceAccount", "Secret", "ConfigMap", "Deployment", "StatefulSet", "PodDisruptionBudget",
        "PersistentVolumeClaim")  # fmt: skip
"""All that a job is made of."""


def manifest(name: str, metadata: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """Of a small job; a part that is None is left out."""
    spec = {key: value for key, value in {**SPEC, **spec}.items() if value is not None}
    kind = {"apiVersion": "shoal.dev/v1alpha1", "kind": "TrainingJob"}
    return {**kind, "metadata": {"name": name, **(metadata or {})}, "spec": spec}


@functools.cache
def zygote() -> Zygote:
    """The parent of all operators that this process starts: importing what they need takes a second."""
    made = Zygote(OPERATOR, warnings="default")
    atexit.register(made.close)
    return made


def spawn(command: list[str], *, kubeconfig: Path, log: Path, **variables: str) -> Child:
    """An operator: ``python COMMAND``, with an account on a cluster."""
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig), "PWD": str(ROOT), **variables}
    return zygote().spawn(command, environment=environment, log=log)


class World:
    """A namespace with an operator and the masters' stand-in."""

    masters: Masters

    def __init__(self, cluster: ControlPlane, namespace: str, etcd: Etcd, folder: Path, *options: str) -> None:
        self.cluster, self.namespace, self.etcd = cluster, namespace, etcd
        self.api = Api(cluster.kubeconfig)
        self.j = self.job("j")
        """The job of tests that have only one."""
        self.nodes: list[str] = []
        self._options = options
        self._log = folder / "operator.log"
        self._operator: Child | None = None

    def job(self, name: str) -> Job:
        return Job(self, name)

    def claims(self, servers: int = 2) -> dict[str, Any]:
        """Parameter servers with claims for their snapshots, and volumes for these."""
        self.cluster.add_volumes(servers, storage_class=self.namespace)
        size = {"requests": {"storage": "1Mi"}}
        return {"replicas": servers, "volumeClaimSpec": {"storageClassName": self.namespace, "resources": size}}

    # --- The operator ---

    def start(self, program: str = "shoal.operator", **variables: str) -> Child:
        command = ["-m", program, "--etcd", self.etcd.endpoint, "--namespace", self.namespace, *self._options]
        self._operator = spawn(command, kubeconfig=self.cluster.kubeconfig, log=self._log, **variables)
        return self._operator

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self._operator is not None
        self._operator.send_signal(number)
        return self._operator.wait(30)

    def log(self) -> str:
        return self._log.read_text()

    # --- The cluster ---

    def kubectl(self, *arguments: str, input: str | None = None) -> str:  # noqa: A002 - as subprocess calls it
        """In this namespace."""
        return self.cluster.kubectl("-n", self.namespace, *arguments, input=input)

    def apply(self, *manifests: dict[str, Any], how: str = "apply") -> str:
        """What kubectl says to some manifests."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        return self.kubectl(how, "-f", "-", input=json.dumps(manifests[0] if len(manifests) == 1 else listed))

    def list(self, kind: str, *, labels: str = "", fields: str = "") -> list[Any]:
        return self.api.list(kind, self.namespace, labels=labels, fields=fields)

    def until(self, found: Callable[[], Any], what: str, *, seconds: float = 60.0, pause: float = 0.05) -> None:
        try:
            self.cluster.until(found, what, seconds=seconds, pause=pause)
        except BaseException:
            print(self.log()[-6000:])
            raise


class Job:
    """A TrainingJob by its name, be it there or not."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name

    # --- What a user does ---

    def apply(self, **spec: Any) -> None:
        """``kubectl apply`` of a small job with these parts in its spec."""
        self.world.apply(manifest(self.name, **spec))

    def patch(self, spec: dict[str, Any]) -> None:
        """``kubectl patch``."""
        self.world.kubectl("patch", f"tj/{self.name}", "--type=merge", "-p", json.dumps({"spec": spec}))

    def scale(self, replicas: int) -> None:
        """``kubectl scale``."""
        self.world.kubectl("scale", f"tj/{self.name}", f"--replicas={replicas}")

    def wait(self, condition: str) -> None:
        """``kubectl wait``."""
        self.world.kubectl("wait", f"tj/{self.name}", f"--for=condition={condition}", "--timeout=60s")

    def delete(self) -> None:
        """``kubectl delete``, which waits until it is gone."""
        self.world.kubectl("delete", f"tj/{self.name}")

    def end(self, state: str = "Complete") -> None:
        """Its master comes to this end."""
        self.world.masters.ended[self.uid] = state

    # --- What is seen ---

    @property
    def found(self) -> dict[str, Any]:
        return self.world.api.get("TrainingJob", self.name, self.world.namespace) or {}

    @property
    def uid(self) -> str:
        return str(self.found["metadata"]["uid"])

    def status(self) -> dict[str, Any]:
        return self.found.get("status") or {}

    def condition(self, kind: str) -> dict[str, Any]:
        return next((each for each in self.status().get("conditions", []) if each["type"] == kind), {})

    def short(self, kind: str) -> tuple[str, str]:
        """Status and reason of a condition."""
        found = self.condition(kind)
        return found.get("status", ""), found.get("reason", "")

    def all_pods(self, role: str = "") -> list[Any]:
        chosen = f"shoal.dev/job={self.name}" + (f",shoal.dev/role={role}" if role else "")
        return self.world.list("Pod", labels=chosen)

    def pods(self, role: str, *, ready: bool = True) -> list[str]:
        return sorted(pod["metadata"]["name"] for pod in self.all_pods(role) if not ready or is_ready(pod))

    def pod_uids(self, role: str = "") -> set[str]:
        return {pod["metadata"]["uid"] for pod in self.all_pods(role)}

    def made(self) -> list[str]:
        """All that there is of the job."""
        chosen = f"shoal.dev/job={self.name}"
        return [f"{kind} {each['metadata']['name']}" for kind in MADE for each in self.world.list(kind, labels=chosen)]

    def events(self) -> list[tuple[str, str]]:
        """Reason and note of each event that is told of it, in order."""
        told = [each for each in self.world.list("Event") if each.get("reportingController") == "shoal.dev/operator"]
        mine = [each for each in told if each["regarding"]["name"] == self.name]
        return [(each["reason"], each["note"]) for each in sorted(mine, key=lambda each: each["eventTime"])]

    # --- What is waited for ---

    def tells(self, reason: str, *words: str) -> None:
        """Until an event with this reason has each of these words; events come behind what they tell of."""

        def told() -> bool:
            notes = [note for why, note in self.events() if why == reason]
            return bool(notes) and all(any(word in note for note in notes) for word in words)

        self.until(told, f"an event {reason} with {words!r}")

    def until(self, found: Callable[[], Any], what: str) -> None:
        try:
            self.world.until(found, f"{what} of {self.name}")
        except BaseException:
            print(json.dumps(self.status(), indent=1))
            for pod in self.all_pods():
                print(pod["metadata"]["name"], pod["metadata"]["uid"], pod["spec"].get("nodeName"), pod["status"])
            for claim in self.world.list("PersistentVolumeClaim"):
                print(claim["metadata"]["name"], claim["spec"].get("volumeName"), claim["status"])
            raise

    def state(self, state: str) -> None:
        self.until(lambda: self.status().get("state") == state, state)

    def says(self, kind: str, status: str, reason: str, words: str = "") -> None:
        """Until a condition is this, with these words."""
        self.until(
            lambda: self.short(kind) == (status, reason) and words in self.condition(kind).get("message", ""),
            f"{kind} {status} {reason} {words!r}",
        )

    def at_work(self, trainers: list[int], servers: int = 2) -> None:
        wanted = [f"{self.name}-trainer-{index}" for index in trainers]
        self.until(lambda: self.pods("trainer", ready=False) == self.pods("trainer") == wanted, f"trainers {trainers}")
        self.until(lambda: len(self.pods("pserver")) == servers and len(self.pods("master")) == 1, "servers and master")

    def nobody(self) -> None:
        self.nobody_but_trainers()
        assert self.pods("trainer") == []

    def nobody_but_trainers(self) -> None:
        """Until master and servers are gone."""
        self.until(lambda: not any(self.pods(role, ready=False) for role in ("pserver", "master")), "servers to go")

    def nothing(self) -> None:
        """Until all of it is gone."""
        self.until(lambda: not self.made(), "all to go")


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def define(cluster: ControlPlane) -> None:
    """The cluster knows TrainingJobs, and the priorities of their pods."""
    listed = {"apiVersion": "v1", "kind": "List", "items": [crd()]}
    cluster.kubectl("apply", "-f", str(PRIORITIES), "-f", "-", input=json.dumps(listed))
    # `kubectl wait` fails while there are no conditions at all.
    with Api(cluster.kubeconfig) as api:
        cluster.until(lambda: _established(api), "the definition")
        # For a moment after that it says that it is not ready.
        cluster.until(lambda: _listed(api), "the first listing")


def _established(api: Api) -> bool:
    found = api.get("CustomResourceDefinition", "trainingjobs.shoal.dev") or {}
    conditions = found.get("status", {}).get("conditions") or []
    return any((each["type"], each["status"]) == ("Established", "True") for each in conditions)


def _listed(api: Api) -> bool:
    with contextlib.suppress(ApiAwayError):
        api.list("TrainingJob")
        return True
    return False


@contextlib.contextmanager
def a_world(cluster: ControlPlane, folder: Path, *, nodes: int = 3) -> Iterator[World]:
    """With its operator running, which is told to end at the end; everything of it goes then."""
    define(cluster)
    with run_etcd(folder / "etcd") as etcd, some_nodes(cluster, nodes) as added, fresh_namespace(cluster) as namespace:
        world = World(cluster, namespace, etcd, folder, *CLASSES)
        world.nodes = added
        world.start()
        try:
            with Masters(world.api, etcd.endpoint, namespace) as world.masters:
                yield world
        finally:
            ended = world.end()
            world.api.close()
        # One that was started a moment ago has no handler yet.
        assert ended in {0, -signal.SIGTERM}, world.log()


@contextlib.contextmanager
def some_nodes(cluster: ControlPlane, count: int) -> Iterator[list[str]]:
    """Hollow nodes."""
    added = cluster.add_nodes(count)
    try:
        yield added
    finally:
        cluster.kubectl("delete", "nodes", *added, "--wait=false", "--ignore-not-found")
