"""From an empty cluster to a complete job, with the manifests' own accounts, Secrets, etcd and command lines."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import urllib.request
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shoal.operator.etcd import certificate
from shoal.store import ALL_JOBS, Credentials, Put, Store
from tests.cluster.processes import free_ports
from tests.deploy.audited import Audited
from tests.deploy.rendered import SYSTEM, arguments, etcd_command, find, opened, overlay, rights
from tests.deploy.test_rights import only
from tests.operator import kubelet
from tests.operator.standin import Masters
from tests.operator.world import ROOT, World, spawn
from tests.zygote import Child

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


class Etcd:
    """The members of an overlay's etcd, as processes of this machine."""

    def __init__(self, name: str, folder: Path) -> None:
        self.objects, self.folder = overlay(name), folder
        numbers = free_ports(9)
        self.ports = [tuple(numbers[3 * index : 3 * index + 3]) for index in range(3)]
        self.members = 3 if name == "ha-etcd" else 1
        self.running: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def endpoint(self) -> str:
        return ",".join(f"https://127.0.0.1:{clients}" for clients, _, _ in self.ports[: self.members])

    def start(self, member: int) -> None:
        with (self.folder / f"etcd-{member}.log").open("ab") as log:
            self.running[member] = subprocess.Popen(
                etcd_command(self.objects, member, self.folder, self.ports), stdout=log, stderr=log
            )

    def probe(self, member: int, path: str) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[member][2]}{path}", timeout=10) as answer:
                return answer.status
        except OSError:
            return 0

    def end(self, member: int) -> None:
        self.running[member].kill()
        self.running.pop(member).wait(30)


@contextmanager
def etcd_of(name: str, folder: Path):
    etcd = Etcd(name, folder)
    with ExitStack() as ends:
        for member in range(etcd.members):
            ends.callback(lambda member=member: member in etcd.running and etcd.end(member))
        yield etcd


def set_up(cluster: Audited, etcd: Etcd, folder: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start the set-up Job's command with the Job's account."""
    (at,) = [each for each in arguments(etcd.objects, "shoal-setup") if each.startswith("--etcd=")]
    command = [each.replace(at, f"--etcd={etcd.endpoint}") for each in arguments(etcd.objects, "shoal-setup")]
    assert command[0] == "python"
    config = cluster.kubeconfig_of("shoal-setup", folder)
    with (folder / "setup.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *command[1:], *more],
            cwd=ROOT,
            env={**os.environ, "KUBECONFIG": str(config)},
            stdout=log,
            stderr=log,
        )


def installed(cluster: Audited, etcd: Etcd, folder: Path) -> Credentials:
    """Start etcd with the Secrets that the set-up has made, and return the operator's credentials."""
    running = set_up(cluster, etcd, folder)
    try:
        cluster.kubectl("wait", "--for=create", "secret/shoal-etcd-operator", "-n", SYSTEM, "--timeout=60s")
        opened(cluster.get("secret", "shoal-etcd-server", "-n", SYSTEM), folder / "server")
        for member in range(etcd.members):
            etcd.start(member)
        assert running.wait(90) == 0, (folder / "setup.log").read_text()
    finally:
        running.kill()
        running.wait(30)
    return Credentials.read(opened(cluster.get("secret", "shoal-etcd-operator", "-n", SYSTEM), folder / "operator"))


@pytest.fixture
def fresh(cluster):
    """Provide the cluster without the Secrets of a set-up."""
    only(cluster, "default")
    cluster.kubectl("delete", "secret", "shoal-etcd-server", "shoal-etcd-operator", "-n", SYSTEM, "--ignore-not-found")
    return cluster


def test_the_set_up_protects_three_members_and_they_bear_the_loss_of_one(fresh, tmp_path):
    with etcd_of("ha-etcd", tmp_path) as etcd:
        credentials = installed(fresh, etcd, tmp_path)
        fresh.until(lambda: [etcd.probe(n, "/readyz") for n in range(3)] == [200] * 3, "three members")
        assert [etcd.probe(n, "/livez") for n in range(3)] == [200] * 3
        with pytest.raises(Exception, match="user name is empty"):
            Store.connect(etcd.endpoint, prefix=ALL_JOBS, tls=credentials.tls)
        with Store.connect(etcd.endpoint, prefix=ALL_JOBS, credentials=credentials) as store:
            etcd.end(0)
            store.transact([], [Put(f"{ALL_JOBS}x", b"1")])
            etcd.start(0)
            fresh.until(lambda: etcd.probe(0, "/readyz") == 200, "the member to come back")
        before = (tmp_path / "setup.log").read_text()
        again = set_up(fresh, etcd, tmp_path)
        assert again.wait(60) == 0, (tmp_path / "setup.log").read_text()
        message = (tmp_path / "setup.log").read_text().removeprefix(before)
        assert "Secret shoal-etcd-server exists" in message
        assert credentials.password not in before + message


def test_two_set_ups_at_once_and_one_killed_agree(fresh, tmp_path):
    with etcd_of("default", tmp_path) as etcd:
        runs = [set_up(fresh, etcd, tmp_path) for _ in range(3)]
        try:
            fresh.kubectl("wait", "--for=create", "secret/shoal-etcd-server", "-n", SYSTEM, "--timeout=60s")
            runs[0].kill()
            installed(fresh, etcd, tmp_path)
            assert [run.wait(60) for run in runs[1:]] == [0, 0], (tmp_path / "setup.log").read_text()
        finally:
            for run in runs:
                run.kill()
                run.wait(30)
        server, operator = (
            fresh.get("secret", name, "-n", SYSTEM)["data"] for name in ("shoal-etcd-server", "shoal-etcd-operator")
        )
        assert server["ca.crt"] == operator["ca.crt"]
        assert {each.code for each in fresh.asked("shoal-setup")} <= {200, 201, 404, 409}


def test_a_certificate_of_a_new_authority_is_reported(fresh, tmp_path):
    with etcd_of("default", tmp_path) as etcd:
        installed(fresh, etcd, tmp_path)
        fresh.kubectl("delete", "secret", "shoal-etcd-server", "-n", SYSTEM)
        assert set_up(fresh, etcd, tmp_path).wait(60) == 1
        assert "another ca.crt than shoal-etcd-server; copy it from there" in (tmp_path / "setup.log").read_text()
        authority = fresh.get("secret", "shoal-etcd-server", "-n", SYSTEM)["data"]["ca.crt"]
        patch = f'{{"data":{{"ca.crt":"{authority}"}}}}'
        fresh.kubectl("patch", "secret", "shoal-etcd-operator", "-n", SYSTEM, "-p", patch)
        # Etcd reads its certificate anew at each TLS handshake.
        opened(fresh.get("secret", "shoal-etcd-server", "-n", SYSTEM), tmp_path / "server")
        assert set_up(fresh, etcd, tmp_path).wait(60) == 0, (tmp_path / "setup.log").read_text()
        assert base64.b64decode(authority) == (tmp_path / "server" / "ca.crt").read_bytes()


def test_secrets_that_do_not_match_are_reported_with_the_fix(fresh, tmp_path):
    etcd = Etcd("default", tmp_path)

    def put(name: str, **files: bytes) -> None:
        fresh.kubectl("delete", "secret", name, "-n", SYSTEM, "--ignore-not-found")
        data = {key.replace("_", "."): base64.b64encode(value).decode() for key, value in files.items()}
        fresh.create({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}, namespace=SYSTEM)

    def message(code: int) -> str:
        (tmp_path / "setup.log").unlink(missing_ok=True)
        running = set_up(fresh, etcd, tmp_path, "--timeout=1")
        assert running.wait(60) == code
        return (tmp_path / "setup.log").read_text()

    put("shoal-etcd-server", ca_crt=b"x", tls_key=b"")
    assert "Secret shoal-etcd-server has no tls.crt and no tls.key; delete it and run this again" in message(1)
    put("shoal-etcd-server", ca_crt=b"x", tls_key=b"x", tls_crt=b"x")
    assert "tls.crt in Secret shoal-etcd-server is no certificate" in message(1)
    past = datetime.now(UTC) - certificate.LIFE + timedelta(days=100)
    old = certificate.make(["x"], now=past)
    put("shoal-etcd-server", ca_crt=old.authority, tls_key=old.key, tls_crt=old.certificate)
    assert "etcd's certificate ends on " in (words := message(1))
    assert "no etcd answers at " in words
    assert "PRIVATE" not in words


class Installed(World):
    """A world whose operator has its own account, arguments and credentials."""

    def __init__(self, cluster, namespace, etcd, folder, name: str) -> None:
        super().__init__(cluster, namespace, etcd, folder)
        self._folder, self._name = folder, name

    def start(self, program: str = "shoal.operator", **variables: str) -> Child:
        (self.port,) = free_ports(1)
        here = {
            "--etcd=https://shoal-etcd.shoal-system.svc:2379": f"--etcd={self.etcd.endpoint}",
            "--etcd-credentials=/etc/shoal/etcd": f"--etcd-credentials={self._folder / 'operator'}",
            "--serve=0.0.0.0:8080": f"--serve=127.0.0.1:{self.port}",
        }
        if self._name == "autoscaler":
            config = self._folder / "autoscaler.yaml"
            config.write_text(find(overlay(self._name), "ConfigMap", "shoal-autoscaler")["data"][config.name])
            here[f"--autoscaler=/etc/shoal/autoscaler/{config.name}"] = f"--autoscaler={config}"
        command = [here.get(each, each) for each in arguments(overlay(self._name), "shoal-operator")]
        assert not [each for each in here if each not in arguments(overlay(self._name), "shoal-operator")]
        config = self.cluster.kubeconfig_of("shoal-operator", self._folder)
        self._operator = spawn(command[1:], kubeconfig=config, log=self._log, **variables)
        return self._operator

    def probe(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return answer.status == 200
        except OSError:
            return False


class Trusted(Masters):
    """The masters' stand-in for an etcd with authentication."""

    def __enter__(self):
        self._store = Store.connect(self.etcd, prefix=ALL_JOBS, credentials=self.credentials)
        self._thread.start()
        return self


USED_WITHOUT_A_REQUEST = {
    # An admission plugin checks this right when owners are set; where it is on, every create is refused without the right.
    ("shoal.dev", "trainingjobs/finalizers", "update"),
}


@pytest.mark.parametrize("name", ["default", "namespaced", "autoscaler"])
def test_a_job_lives_with_the_rights_granted_and_every_right_is_used(fresh, tmp_path, name):
    only(fresh, name)
    namespace = "shoal-jobs" if name == "namespaced" else f"life-{name}-{tmp_path.name[-1]}"
    if name != "namespaced":
        fresh.kubectl("create", "namespace", namespace)
    fresh.kubectl("delete", "lease", "shoal-operator", "-n", SYSTEM, "--ignore-not-found")
    before = len(fresh.asked("shoal-operator"))
    with etcd_of(name, tmp_path) as etcd:
        credentials = installed(fresh, etcd, tmp_path)
        world = Installed(fresh, namespace, etcd, tmp_path, name)
        world.start()
        masters = Trusted(world.api, etcd.endpoint, namespace)
        masters.credentials = credentials
        with masters as world.masters:
            live(world)
        assert world.probe("/healthz")
        world.api.close()
        assert world.end() == 0, world.log()
    asked = fresh.asked("shoal-operator")[before:]
    assert [each for each in asked if each.code in {401, 403}] == []
    used = {(each.group, each.resource, each.verb) for each in asked}
    used |= {(each.group, each.resource, "create") for each in asked if (each.verb, each.code) == ("patch", 201)}
    granted = rights(overlay(name), "shoal-operator")
    assert granted - used == USED_WITHOUT_A_REQUEST
    # Every right that was used is in the manifests, so none was granted by a group's rights from elsewhere.
    assert used <= granted


def live(world: World) -> None:
    pinned = {"minReplicas": 2, "maxReplicas": 4, "replicas": 2}
    servers = world.claims()
    world.j.apply(trainer=pinned, parameterServer=servers)
    world.j.at_work([0, 1])
    world.j.patch({"runPolicy": {"disruptionBudget": "None"}})
    world.until(lambda: not world.list("PodDisruptionBudget"), "no budget")
    in_trouble(world)
    assert world.probe("/readyz")
    world.cluster.kubectl("scale", "tj/j", "--replicas=3", "-n", world.namespace)
    world.j.at_work([0, 1, 2])
    world.cluster.kubectl("scale", "tj/j", "--replicas=2", "-n", world.namespace)
    world.j.at_work([0, 1])
    world.j.apply(trainer=pinned, parameterServer=servers, suspend=True)
    world.j.nobody()
    # The next leader acquires the Lease.
    world.end(signal.SIGTERM)
    world.start()
    world.j.apply(trainer=pinned, parameterServer=servers, suspend=False)
    world.j.at_work([0, 1])
    world.j.end("Complete")
    world.j.wait("Complete")
    world.j.nobody()
    world.j.apply(trainer=pinned, parameterServer=servers, runPolicy={"ttlSecondsAfterFinished": 1})
    world.until(lambda: not world.cluster.get("tj,pods", "-n", world.namespace)["items"], "all to go")


def in_trouble(world: World) -> None:
    """Run a pod that does not start and a script that fails: the operator lists the former's events and stops the latter's pod."""
    before = len(world.cluster.asked("shoal-operator"))
    slow, fails = world.job("slow"), world.job("fails")
    slow.apply(trainer={"minReplicas": 1, "template": {"metadata": kubelet.STAYS_PENDING}})
    fails.apply(runPolicy={"backoffLimit": 0})
    fails.at_work([0, 1])
    fails.state("Running")
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
    kubelet.ended(world, "fails-trainer-0", 3, at=datetime.now(UTC), now=waiting)
    fails.wait("Failed")

    def used(resource: str, verb: str) -> bool:
        asked = world.cluster.asked("shoal-operator")[before:]
        return any((each.group, each.resource, each.verb) == ("", resource, verb) for each in asked)

    world.until(lambda: used("events", "list"), "the events of a pod")
    world.until(lambda: used("pods", "patch"), "the stop of a pod")
    for job in (slow, fails):
        job.delete()
        job.nothing()
