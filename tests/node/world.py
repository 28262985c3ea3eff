"""A namespace of the node's cluster, Shoal's etcd and the operator beside it, and jobs whose pods really train."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import msgspec

from shoal.local.etcd import EtcdServer, find_etcd
from shoal.store import ALL_JOBS, JobKeys, Published, Store
from tests.cluster.image import IMAGE, mounts
from tests.cluster.node import NodeCluster

__all__ = ["Etcd", "World", "template"]

ROOT = Path(__file__).resolve().parents[2]
PATH = f"{Path(sys.executable).parent}:/busybox:/usr/bin:/bin"
PATIENCE = 120.0
"""Seconds; for machines that have more to do."""


class Etcd(EtcdServer):
    """Listens where pods reach it, too."""

    def __init__(self, folder: Path, address: str) -> None:
        super().__init__(find_etcd(os.environ.get("SHOAL_TEST_ETCD")), folder)
        with socket.create_server((address, 0)) as found:
            self.outside = f"{address}:{found.getsockname()[1]}"

    def _command(self) -> list[str]:
        clients = ("--listen-client-urls=", "--advertise-client-urls=")
        return [f"{word},http://{self.outside}" if word.startswith(clients) else word for word in super()._command()]


def template(
    role: str, *, control: Path | None = None, env: dict[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    """A pod template with this machine's Python in the role's container.

    Args:
        role: The container's name.
        control: A folder of this machine that the container may read at the same path.
        env: Further variables.
        more: Further fields of the container.
    """
    volumes, inside = mounts(*([control] if control is not None else []))
    variables = {"PATH": PATH, **(env or {})}
    container = {
        "name": role,
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        "volumeMounts": inside,
        "workingDir": str(ROOT),
        **more,
    }
    return {"spec": {"containers": [container], "volumes": volumes}}


class World:
    """What a test has in its hands."""

    def __init__(self, cluster: NodeCluster, namespace: str, folder: Path) -> None:
        self.cluster, self.namespace, self.folder = cluster, namespace, folder
        self.etcd = Etcd(folder / "etcd", cluster.outside)
        self.control = folder / "control"
        self.control.mkdir()
        # Pods run as somebody else, and pytest's folders are for their owner alone; mounted, only this one counts.
        self.control.chmod(0o755)
        self._operator: subprocess.Popen[bytes] | None = None
        self._store: Store | None = None
        self._begun = time.monotonic()

    def __enter__(self) -> Self:
        self.etcd.start()
        self._store = Store.connect(self.etcd.endpoint, prefix=ALL_JOBS)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.end()
        finally:
            if self._store is not None:
                self._store.close()
            self.etcd.stop()

    # --- The operator ---

    def start(self) -> None:
        etcds = ["--etcd", self.etcd.endpoint, "--masters-etcd", self.etcd.outside]
        with self._log.open("ab") as log:
            self._operator = subprocess.Popen(
                [sys.executable, "-m", "shoal.operator", *etcds, "--namespace", self.namespace],
                env={**os.environ, "KUBECONFIG": str(self.cluster.kubeconfig)},
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )

    @property
    def alive(self) -> bool:
        """Whether the operator that was started last runs."""
        return self._operator is not None and self._operator.poll() is None

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self._operator is not None
        self._operator.send_signal(number)
        return self._operator.wait(30)

    @property
    def _log(self) -> Path:
        return self.folder / "operator.log"

    # --- Asking ---

    def kubectl(self, *arguments: str, **more: Any) -> str:
        return self.cluster.kubectl(*arguments, "-n", self.namespace, **more)

    def get(self, *arguments: str) -> Any:
        return self.cluster.get(*arguments, "-n", self.namespace)

    def pods(self, job: str, role: str = "") -> dict[str, Any]:
        """A job's pods by name."""
        also = f",shoal.dev/role={role}" if role else ""
        return {pod["metadata"]["name"]: pod for pod in self.get("pods", "-l", f"shoal.dev/job={job}{also}")["items"]}

    def ready(self, job: str, role: str) -> list[str]:
        return sorted(name for name, pod in self.pods(job, role).items() if _is(pod, "Ready"))

    def status(self, job: str) -> dict[str, Any]:
        return self.get("trainingjob", job).get("status", {})

    def condition(self, job: str, kind: str) -> dict[str, Any]:
        return next((each for each in self.status(job).get("conditions", []) if each["type"] == kind), {})

    def record(self, job: str, name: str) -> Any:
        """What the job's master wrote into etcd."""
        uid = self.get("trainingjob", job)["metadata"]["uid"]
        assert self._store is not None
        found = self._store.get(JobKeys(self.namespace, job, uid).at(name))
        return msgspec.json.decode(found.value) if found is not None else None

    def told(self, job: str) -> Published | None:
        found = self.record(job, "progress")
        return msgspec.convert(found, Published) if found is not None else None

    # --- Acting ---

    def apply(self, name: str, **spec: Any) -> None:
        manifest = {
            "apiVersion": "shoal.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": spec,
        }
        self.cluster.kubectl("apply", "-f", "-", input=json.dumps(manifest))

    def counting(self, **more: Any) -> dict[str, Any]:
        """The spec of a job that counts, at the pace of ``control / "pace"``."""
        variables = {"PACED_CONTROL": str(self.control), "COUNT_SAMPLES": "600", **more.pop("env", {})}
        trainer = {"template": template("trainer", control=self.control, env=variables), **more.pop("trainer", {})}
        servers = {"template": template("pserver"), **more.pop("parameterServer", {})}
        spec = {
            "image": IMAGE,
            "command": ["python", "-m", "tests.node.paced"],
            "epochs": 2,
            "trainer": trainer,
            "parameterServer": servers,
            "master": {"template": template("master")},
            "checkpoint": {"interval": "1s"},
        }
        return spec | more

    def volume(self, claim: str | None = None) -> Path:
        """A volume that the claim of this name, or else any without a class, is bound to; its folder.

        Of the kind ``local``, as the kubelet gives these to a pod's fsGroup, which it does not for hostPath.
        """
        name = f"volume-{secrets.token_hex(4)}"
        # Not in pytest's folder: it clears that in its own way, and it is its owner's alone.
        folder = self.cluster._layout.settled.state / "volumes" / name
        folder.mkdir(parents=True)
        place = {"key": "kubernetes.io/hostname", "operator": "In", "values": ["node"]}
        owner = {"claimRef": {"namespace": self.namespace, "name": claim}} if claim is not None else {}
        spec = {
            **owner,
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "local": {"path": str(folder)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [place]}]}},
        }
        self.cluster.create({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec})
        return folder

    def claim(self, name: str) -> Path:
        """A claim of the user's, and the folder where its files are."""
        folder = self.volume(name)
        spec = {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Mi"}},
            "storageClassName": "",
        }
        claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}
        self.cluster.create(claim, namespace=self.namespace)
        return folder

    def kill(self, job: str, role: str, index: int = 0) -> None:
        """SIGKILL the Python of one container; `shoal exec`, its first process, lives."""
        os.kill(self._process(job, role, index), signal.SIGKILL)

    def cut_off(self, job: str, role: str, index: int = 0) -> None:
        """Nothing comes or goes any more: who is connected there hears nothing, not even an end."""
        inside = ["nsenter", "-t", str(self._process(job, role, index)), "-n"]
        subprocess.run([*inside, "ip", "link", "set", "eth0", "down"], check=True)

    def processes(self, job: str, role: str, index: int = 0) -> list[int]:
        """A container's processes, as this machine knows them."""
        return processes_of(self.get("trainingjob", job)["metadata"]["uid"], role, index)

    def _process(self, job: str, role: str, index: int) -> int:
        [pid] = self.processes(job, role, index)
        return pid

    # --- Waiting ---

    def until(self, found: Any, what: str, *, seconds: float = PATIENCE) -> None:
        begun = time.monotonic()
        try:
            self.cluster.until(found, what, seconds=seconds)
        except BaseException:
            print(self.last_words())
            raise
        print(f"{time.monotonic() - self._begun:6.1f} s: {what} (after {time.monotonic() - begun:.1f} s)", flush=True)

    def pace(self, seconds: float) -> None:
        """How long trainers wait after each batch."""
        self.put("pace", str(seconds))

    def put(self, name: str, text: str) -> None:
        """Write a file of the control folder, which no reader sees half."""
        draft = self.folder / "draft"
        draft.write_text(text)
        draft.chmod(0o644)
        draft.replace(self.control / name)

    def goes_on(self, job: str, *, trainers: list[int]) -> None:
        """Until these trainers, and nobody else, are at work, and samples are committed that were not before."""
        before = self.told(job)
        samples = before.samples if before is not None else 0

        def moved() -> bool:
            told = self.told(job)
            return told is not None and told.served and told.trainers == trainers and told.samples > samples

        self.until(moved, f"{job} to go on with trainers {trainers}")

    def last_words(self) -> str:
        said = [self._log.read_text()[-6000:], self.kubectl("get", "tj,pods,pvc,pv", "-o", "wide")]
        said += [self.kubectl("get", "events", "--sort-by=.lastTimestamp")[-5000:]]
        for pod in self.get("pods")["items"]:
            name = pod["metadata"]["name"]
            for previous in ("true", "false"):
                with contextlib.suppress(Exception):
                    log = self.kubectl("logs", name, f"--previous={previous}", "--tail=15")
                    said.append(f"== {name} (previous: {previous})\n{log}")
        for job in self.get("tj")["items"]:
            said.append(json.dumps(job.get("status"), indent=1))
            said.append(str(self.told(job["metadata"]["name"])))
        return "\n".join(said)


def processes_of(uid: str, role: str, index: int) -> list[int]:
    """A container's processes that run Python but not `shoal exec`: known by the variables of the job."""
    wanted = {f"SHOAL_UID={uid}".encode(), f"SHOAL_ROLE={role}".encode(), f"SHOAL_INDEX={index}".encode()}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = set((folder / "environ").read_bytes().split(b"\0"))
            if wanted <= variables and b"exec" not in (folder / "cmdline").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return sorted(found)


def _is(pod: dict[str, Any], condition: str) -> bool:
    return any(c["type"] == condition and c["status"] == "True" for c in pod["status"].get("conditions", []))
