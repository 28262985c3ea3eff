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
    """Build the manifest of a small job; a section that is None is omitted."""
    spec = {key: value for key, value in {**SPEC, **spec}.items() if value is not None}
    kind = {"apiVersion": "shoal.dev/v1alpha1", "kind": "TrainingJob"}
    return {**kind, "metadata": {"name": name, **(metadata or {})}, "spec": spec}


@functools.cache
def zygote() -> Zygote:
    """Return the process that all operators are forked from: importing their modules takes one second."""
    made = Zygote(OPERATOR, warnings="default")
    atexit.register(made.close)
    return made


def spawn(command: list[str], *, kubeconfig: Path, log: Path, **variables: str) -> Child:
    """Start an operator, ``python COMMAND``, with an account on a cluster."""
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
        """Return a parameterServer section with claims for snapshots, and create volumes for the claims."""
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
        """Run kubectl in this namespace."""
        return self.cluster.kubectl("-n", self.namespace, *arguments, input=input)

    def apply(self, *manifests: dict[str, Any], how: str = "apply") -> str:
        """Apply manifests and return kubectl's output."""
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
    """A TrainingJob by its name, whether it exists or not."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name

    # --- The user's commands ---

    def apply(self, **spec: Any) -> None:
        """Apply a small job with these sections in its spec (``kubectl apply``)."""
        self.world.apply(manifest(self.name, **spec))

    def patch(self, spec: dict[str, Any]) -> None:
        """Patch the job (``kubectl patch``)."""
        self.world.kubectl("patch", f"tj/{self.name}", "--type=merge", "-p", json.dumps({"spec": spec}))

    def scale(self, replicas: int) -> None:
        """Scale the job (``kubectl scale``)."""
        self.world.kubectl("scale", f"tj/{self.name}", f"--replicas={replicas}")

    def wait(self, condition: str) -> None:
        """Wait for a condition (``kubectl wait``)."""
        self.world.kubectl("wait", f"tj/{self.name}", f"--for=condition={condition}", "--timeout=60s")

    def delete(self) -> None:
        """Delete the job and wait until it is gone (``kubectl delete``)."""
        self.world.kubectl("delete", f"tj/{self.name}")

    def end(self, state: str = "Complete") -> None:
        """Let the job's master report this outcome."""
        self.world.masters.ended[self.uid] = state

    # --- Observations ---

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
        """Return status and reason of a condition."""
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
        """List all objects of the job."""
        chosen = f"shoal.dev/job={self.name}"
        return [f"{kind} {each['metadata']['name']}" for kind in MADE for each in self.world.list(kind, labels=chosen)]

    def events(self) -> list[tuple[str, str]]:
        """Return reason and note of each event of the job, in order."""
        reported = [
            each for each in self.world.list("Event") if each.get("reportingController") == "shoal.dev/operator"
        ]
        mine = [each for each in reported if each["regarding"]["name"] == self.name]
        return [(each["reason"], each["note"]) for each in sorted(mine, key=lambda each: each["eventTime"])]

    # --- Waits ---

    def has_event(self, reason: str, *words: str) -> None:
        """Wait until events with this reason contain each of these texts; events follow the changes that they report."""

        def is_written() -> bool:
            notes = [note for why, note in self.events() if why == reason]
            return bool(notes) and all(any(word in note for note in notes) for word in words)

        self.until(is_written, f"an event {reason} with {words!r}")

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

    def has_condition(self, kind: str, status: str, reason: str, words: str = "") -> None:
        """Wait until a condition has this status and reason, and its message contains the text."""
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
        """Wait until the pods of master and servers are gone."""
        self.until(lambda: not any(self.pods(role, ready=False) for role in ("pserver", "master")), "servers to go")

    def nothing(self) -> None:
        """Wait until all objects of the job are gone."""
        self.until(lambda: not self.made(), "all to go")


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def define(cluster: ControlPlane) -> None:
    """Install the TrainingJob definition and the priority classes in the cluster."""
    listed = {"apiVersion": "v1", "kind": "List", "items": [crd()]}
    cluster.kubectl("apply", "-f", str(PRIORITIES), "-f", "-", input=json.dumps(listed))
    # `kubectl wait` fails while the definition has no conditions at all.
    with Api(cluster.kubeconfig) as api:
        cluster.until(lambda: _established(api), "the definition")
        # The API server reports the new kind as not ready for a short time after that.
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
    """Run a world with its operator; at the end the operator is stopped and everything in the world is deleted."""
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
        # An operator that has only just started has no signal handler yet.
        assert ended in {0, -signal.SIGTERM}, world.log()


@contextlib.contextmanager
def some_nodes(cluster: ControlPlane, count: int) -> Iterator[list[str]]:
    """Add hollow nodes for the time of the context."""
    added = cluster.add_nodes(count)
    try:
        yield added
    finally:
        cluster.kubectl("delete", "nodes", *added, "--wait=false", "--ignore-not-found")
