"""Jobs in a namespace of the node's cluster, whose pods really train: observations, actions and waits of the tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.cluster.control_plane import KubectlError
from tests.cluster.image import IMAGE, mounts
from tests.cluster.node import NodeCluster

__all__ = ["PATH", "ROOT", "TIMEOUT_SECONDS", "Jobs", "processes_with", "template"]

ROOT = Path(__file__).resolve().parents[2]
PATH = f"{Path(sys.executable).parent}:/usr/local/bin:/busybox:/usr/bin:/bin"
TIMEOUT_SECONDS = 120.0
"""Seconds; for machines that have more to do."""


def template(
    role: str, *, control: Path | None = None, env: dict[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    """Return a pod template with this machine's Python in the role's container, which can write to volumes only.

    Args:
        role: The container's name.
        control: A folder of this machine that the container may read at the same path.
        env: Further variables.
        more: Further fields of the container.
    """
    volumes, inside = mounts(*([control] if control is not None else []))
    inherited = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    variables = {"PATH": PATH, **inherited, **(env or {})}
    container = {
        "name": role,
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        "volumeMounts": inside,
        "workingDir": str(ROOT),
        "securityContext": {"readOnlyRootFilesystem": True},
        **more,
    }
    return {"spec": {"containers": [container], "volumes": volumes}}


class Jobs:
    """A namespace, and the jobs in it.

    Args:
        cluster: A cluster with a real node.
        namespace: An existing namespace.
        folder: Folder for the test's files.
    """

    def __init__(self, cluster: NodeCluster, namespace: str, folder: Path) -> None:
        self.cluster, self.namespace, self.folder = cluster, namespace, folder
        self.control = folder / "control"
        self.control.mkdir()
        # Pods run as another user, and pytest's folders are for their owner only; of a mount, only this folder's mode counts.
        self.control.chmod(0o755)
        self._begun = time.monotonic()

    # --- Observations ---

    def kubectl(self, *arguments: str, **more: Any) -> str:
        return self.cluster.kubectl(*arguments, "-n", self.namespace, **more)

    def get(self, *arguments: str) -> Any:
        return self.cluster.get(*arguments, "-n", self.namespace)

    def pods(self, job: str, role: str = "") -> dict[str, Any]:
        """Return a job's pods by name."""
        also = f",shoal.dev/role={role}" if role else ""
        return {pod["metadata"]["name"]: pod for pod in self.get("pods", "-l", f"shoal.dev/job={job}{also}")["items"]}

    def ready(self, job: str, role: str) -> list[str]:
        return sorted(name for name, pod in self.pods(job, role).items() if _is(pod, "Ready"))

    def status(self, job: str) -> dict[str, Any]:
        return self.get("trainingjob", job).get("status", {})

    def condition(self, job: str, kind: str) -> dict[str, Any]:
        return next((each for each in self.status(job).get("conditions", []) if each["type"] == kind), {})

    # --- Actions ---

    def apply(self, name: str, **spec: Any) -> None:
        manifest = {
            "apiVersion": "shoal.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": spec,
        }
        self.cluster.kubectl("apply", "-f", "-", input=json.dumps(manifest))

    def counting(self, **more: Any) -> dict[str, Any]:
        """Return the spec of a job that counts, at the pace of ``control / "pace"``."""
        variables = {"PACED_CONTROL": str(self.control), "COUNT_SAMPLES": "600", **more.pop("env", {})}
        trainer = {"template": template("trainer", control=self.control, env=variables), **more.pop("trainer", {})}
        servers = {"template": template("pserver"), **more.pop("parameterServer", {"emptyDir": {}})}
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

    def volume(self, claim: str | None = None, *, namespace: str = "", size: str = "1Gi") -> Path:
        """Add a volume for the claim of this name, or for any claim without a class, and return its folder."""
        owner = {"namespace": namespace or self.namespace, "name": claim} if claim is not None else None
        [folder] = self.cluster.add_volumes(1, size=size, claim=owner)
        return folder

    def claim(self, name: str) -> Path:
        """Create a claim of the user's and return the folder of its files."""
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
        """Send SIGKILL to the Python of one container; `shoal exec`, its first process, keeps running."""
        os.kill(self._process(job, role, index), signal.SIGKILL)

    def cut_off(self, job: str, role: str, index: int = 0) -> None:
        """Take the pod's network interface down: its peers receive nothing more, not even the end of a connection."""
        inside = ["nsenter", "-t", str(self._process(job, role, index)), "-n"]
        subprocess.run([*inside, "ip", "link", "set", "eth0", "down"], check=True)

    def processes(self, job: str, role: str, index: int = 0) -> list[int]:
        """Return a container's processes, by their ids on this machine."""
        return processes_of(self.get("trainingjob", job)["metadata"]["uid"], role, index)

    def _process(self, job: str, role: str, index: int) -> int:
        [pid] = self.processes(job, role, index)
        return pid

    def pace(self, seconds: float) -> None:
        """Set the time that trainers wait after each batch."""
        self.put("pace", str(seconds))

    def put(self, name: str, text: str) -> None:
        """Replace a file of the control folder atomically."""
        draft = self.folder / "draft"
        draft.write_text(text)
        draft.chmod(0o644)
        draft.replace(self.control / name)

    # --- Waits ---

    def until(self, found: Any, what: str, *, seconds: float = TIMEOUT_SECONDS) -> None:
        begun = time.monotonic()
        try:
            self.cluster.until(found, what, seconds=seconds)
        except BaseException:
            print(self.last_words())
            raise
        print(f"{time.monotonic() - self._begun:6.1f} s: {what} (after {time.monotonic() - begun:.1f} s)", flush=True)

    def last_words(self) -> str:
        """Return diagnostics of the namespace: objects, events and logs."""
        said = [self.kubectl("get", "tj,pods,pvc,pv", "-o", "wide")]
        said += [self.kubectl("get", "events", "--sort-by=.lastTimestamp")[-5000:]]
        for name in (pod["metadata"]["name"] for pod in self.get("pods")["items"]):
            for previous in ("true", "false"):
                with contextlib.suppress(KubectlError):
                    log = self.kubectl("logs", name, f"--previous={previous}", "--tail=15")
                    said.append(f"== {name} (previous: {previous})\n{log}")
        return "\n".join([*said, *(json.dumps(job.get("status"), indent=1) for job in self.get("tj")["items"])])


def processes_of(uid: str, role: str, index: int) -> list[int]:
    """Return a container's processes except `shoal exec`, identified by the job's environment variables."""
    found = processes_with(SHOAL_UID=uid, SHOAL_ROLE=role, SHOAL_INDEX=str(index))
    return [pid for pid in found if b"exec" not in _command(pid)]


def processes_with(**variables: str) -> list[int]:
    """Return the processes of this machine, also those in containers, that have these environment variables."""
    wanted = {f"{name}={value}".encode() for name, value in variables.items()}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted <= set((folder / "environ").read_bytes().split(b"\0")):
                found.append(int(folder.name))
    return sorted(found)


def _command(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []  # it has exited


def _is(pod: dict[str, Any], condition: str) -> bool:
    return any(c["type"] == condition and c["status"] == "True" for c in pod["status"].get("conditions", []))
