"""Several operator processes for one namespace, with a Lease, probes and metrics."""

from __future__ import annotations

import json
import signal
import urllib.error
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.processes import free_ports
from tests.operator.world import World, spawn

__all__ = ["Member", "Team"]


class Member:
    """One operator process."""

    def __init__(self, name, process, port, folder) -> None:
        self.name, self.process, self.port = name, process, port
        self.sent = folder / f"{name}.sent"
        self.log = folder / f"{name}.log"

    def ask(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples with these labels."""
        families = text_string_to_metric_families(self.ask("/metrics")[1])
        samples = [each for family in families for each in family.samples]
        return sum(each.value for each in samples if each.name == name and labels.items() <= each.labels.items())

    @property
    def leads(self) -> bool:
        return self.metric("shoal_operator_leading") == 1

    @property
    def writes(self) -> int:
        return len(self.sent.read_text().splitlines()) if self.sent.exists() else 0

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(number)
        return self.process.wait(30)


class Team(World):
    """A namespace with any number of operators."""

    def __init__(self, cluster, namespace, etcd, folder) -> None:
        super().__init__(cluster, namespace, etcd, folder)
        self.folder = folder
        self.members: dict[str, Member] = {}

    def join(self, name: str, *arguments: str, kubeconfig=None, lease: bool = True) -> Member:
        port = free_ports(1)[0]
        chosen = ["--lease", f"{self.namespace}/shoal"] if lease else []
        process = spawn(
            ["-m", "tests.operator.counted", "--etcd", self.etcd.endpoint, "--namespace", self.namespace,
             "--serve", f"127.0.0.1:{port}", *chosen, *arguments],
            kubeconfig=kubeconfig or self.cluster.kubeconfig,
            log=self.folder / f"{name}.log",
            COUNT_INTO=str(self.folder / f"{name}.sent"),
        )  # fmt: skip
        self.members[name] = Member(name, process, port, self.folder)
        self.until(lambda: self.members[name].ask("/readyz")[0] == 200, f"{name} to be ready")
        return self.members[name]

    def leader(self, *names: str) -> Member:
        """Wait until one of these leads, and return it."""
        there = [self.members[name] for name in names]
        self.until(lambda: any(each.leads for each in there), f"one of {names} to lead")
        return next(each for each in there if each.leads)

    def lease(self) -> dict:
        return self.cluster.get("lease", "shoal", "-n", self.namespace)["spec"]

    def scale(self, replicas: int) -> None:
        patch = json.dumps({"spec": {"trainer": {"replicas": replicas}}})
        self.cluster.kubectl("patch", "tj/j", "--type=merge", "-p", patch, "-n", self.namespace)

    def uids(self) -> set[str]:
        """Return the uids of all pods of the job."""
        pods = self.cluster.get("pods", "-n", self.namespace)["items"]
        return {pod["metadata"]["uid"] for pod in pods}

    def log(self) -> str:
        return "".join(f"--- {each.name}\n{each.log.read_text()[-3000:]}" for each in self.members.values())

    def close(self) -> None:
        self.api.close()
        for each in self.members.values():
            each.process.kill()
            each.process.wait(30)
