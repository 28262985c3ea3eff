"""Jobs with their own operator, a process beside the cluster, and with Shoal's etcd where the operator and the pods reach it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import msgspec

from shoal.api.crd import crd
from shoal.local.etcd_server import EtcdServer, find_etcd
from shoal.store import ALL_JOBS, JobKeys, ReportedState, Store
from tests.cluster.node import NodeCluster
from tests.node.jobs import ROOT, TIMEOUT_SECONDS, Jobs

__all__ = ["Etcd", "World", "define"]


class Etcd(EtcdServer):
    """An etcd that also listens where pods reach it."""

    def __init__(self, folder: Path, address: str) -> None:
        super().__init__(find_etcd(os.environ.get("SHOAL_TEST_ETCD")), folder)
        with socket.create_server((address, 0)) as found:
            self.outside = f"{address}:{found.getsockname()[1]}"

    def _command(self) -> list[str]:
        clients = ("--listen-client-urls=", "--advertise-client-urls=")
        return [f"{word},http://{self.outside}" if word.startswith(clients) else word for word in super()._command()]


class World(Jobs):
    """A namespace with its operator, its etcd and its jobs."""

    def __init__(self, cluster: NodeCluster, namespace: str, folder: Path, *options: str) -> None:
        super().__init__(cluster, namespace, folder)
        self._options = options
        self.etcd = Etcd(folder / "etcd", cluster.outside)
        self._operator: subprocess.Popen[bytes] | None = None
        self._store: Store | None = None

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
                [sys.executable, "-m", "shoal.operator", *etcds, "--namespace", self.namespace, *self._options],
                env={**os.environ, "KUBECONFIG": str(self.cluster.kubeconfig)},
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )

    @property
    def alive(self) -> bool:
        """Whether the operator that was started last is running."""
        return self._operator is not None and self._operator.poll() is None

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self._operator is not None
        self._operator.send_signal(number)
        return self._operator.wait(30)

    @property
    def _log(self) -> Path:
        return self.folder / "operator.log"

    # --- The masters' records ---

    def record(self, job: str, name: str) -> Any:
        """Return a record that the job's master has written into etcd."""
        uid = self.get("trainingjob", job)["metadata"]["uid"]
        assert self._store is not None
        found = self._store.get(JobKeys(self.namespace, job, uid).at(name))
        return msgspec.json.decode(found.value) if found is not None else None

    def reported_state(self, job: str) -> ReportedState | None:
        found = self.record(job, "progress")
        return msgspec.convert(found, ReportedState) if found is not None else None

    def progresses(self, job: str, *, trainers: list[int], seconds: float = TIMEOUT_SECONDS) -> None:
        """Wait until exactly these trainers are at work and further samples are committed."""
        before = self.reported_state(job)
        samples = before.samples if before is not None else 0

        def moved() -> bool:
            reported_state = self.reported_state(job)
            return (
                reported_state is not None
                and reported_state.served
                and reported_state.trainers == trainers
                and reported_state.samples > samples
            )

        self.until(moved, f"{job} to go on with trainers {trainers}", seconds=seconds)

    def last_words(self) -> str:
        """Return the diagnostics of the jobs, with the operator's log."""
        reported_state = [str(self.reported_state(job["metadata"]["name"])) for job in self.get("tj")["items"]]
        return "\n".join([self._log.read_text()[-6000:], super().last_words(), *reported_state])


def define(cluster: NodeCluster) -> None:
    """Install the TrainingJob definition in the cluster."""
    cluster.kubectl("apply", "-f", "-", input=json.dumps(crd()))

    def established() -> bool:
        found = cluster.get("crd/trainingjobs.shoal.dev").get("status", {}).get("conditions") or []
        return any(each["type"] == "Established" and each["status"] == "True" for each in found)

    cluster.until(established, "the definition")
