"""An operator with an API server and an etcd that are killed, hang, lose data, refuse or are away: it does no harm and recovers."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from types import SimpleNamespace

import grpc
import pytest
import yaml

from shoal.kube import Kube, KubeError
from shoal.store._stubs import rpc
from tests.cluster import certificates
from tests.cluster.control_plane import ControlPlane
from tests.cluster.parts import CONTROL, Part
from tests.etcds import run_etcd
from tests.kube.compact import compact
from tests.operator.standin import Masters
from tests.operator.team import Team
from tests.operator.world import define

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

NAMESPACE = "default"


def narrow(layout) -> list[str]:
    """An API server that serves at most four requests at a time, of which two may be writes."""
    limits = ("--max-requests-inflight", "--max-mutating-requests-inflight")
    command = CONTROL["kube-apiserver"].command(layout)
    return [*(each for each in command if not each.startswith(limits)), f"{limits[0]}=4", f"{limits[1]}=2"]


class Narrow(ControlPlane):
    PARTS = CONTROL | {"kube-apiserver": Part(narrow, CONTROL["kube-apiserver"].health)}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with ControlPlane(tmp_path_factory.mktemp("bad")) as made:
        prepare(made)
        yield made


def prepare(cluster) -> None:
    define(cluster)
    cluster.add_nodes(3)


def until_gone(cluster):
    """Wait until no object of the job is left."""
    kinds = "pods,statefulsets,deployments,services,pdb"
    chosen = ["-n", NAMESPACE, "-l", "shoal.dev/job=j"]
    cluster.until(lambda: not cluster.get(kinds, *chosen)["items"], "all to go")


@contextlib.contextmanager
def a_team(cluster, folder):
    with run_etcd(folder / "etcd") as etcd:
        team = Team(cluster, NAMESPACE, etcd, folder)
        try:
            with Masters(team.api, etcd.endpoint, NAMESPACE) as team.masters:
                yield team
                cluster.kubectl("delete", "tj", "--all", "-n", NAMESPACE)
                until_gone(cluster)
                cluster.kubectl("delete", "leases", "-n", NAMESPACE, "--all")
        finally:
            team.close()


@pytest.fixture
def team(cluster, tmp_path):
    with a_team(cluster, tmp_path) as made:
        yield made


def begin(team, **options):
    operator = team.join("a", **options)
    team.j.apply()
    team.j.at_work([0, 1])
    team.j.state("Running")
    return operator


def test_an_api_server_that_is_killed_while_a_job_scales(team):
    operator = begin(team, lease=False)
    before = team.uids()
    for wanted in (4, 3, 4):
        team.scale(wanted)
        team.cluster.restart("kube-apiserver")
    team.cluster.awaken()
    team.j.at_work([0, 1, 2, 3])
    assert operator.process.poll() is None
    assert before <= team.uids()


def test_an_api_server_unreachable_for_longer_than_the_timeout(team, monkeypatch):
    # The default timeout is longer than the time after which Kubernetes takes silent nodes for dead.
    monkeypatch.setenv("REQUEST_TIMEOUT", "2")
    operator = begin(team, lease=False)
    before = team.uids()
    team.cluster.kill("kube-apiserver")
    # A job that makes progress has a status to be written.
    team.until(lambda: operator.metric("shoal_operator_sync_seconds_count", outcome="failed") > 0, "a look to fail")
    assert operator.metric("shoal_operator_api_requests_total", code="0") > 3
    assert operator.ask("/healthz")[0] == 200
    team.cluster.launch("kube-apiserver")
    team.cluster.awaken()
    assert before <= team.uids()
    team.scale(3)
    team.j.at_work([0, 1, 2])
    assert operator.process.poll() is None
    assert before <= team.uids()


def test_a_leader_whose_api_server_hangs_ends_itself_and_leads_again(team):
    operator = begin(team)
    part = team.cluster.parts["kube-apiserver"]
    part.signal(signal.SIGSTOP)
    try:
        assert operator.process.wait(60) == 3
    finally:
        part.signal(signal.SIGCONT)
    team.cluster.awaken()
    assert "could not be renewed" in operator.log.read_text()
    before = team.uids()
    again = team.join("b")
    team.scale(3)
    team.j.at_work([0, 1, 2])
    assert again.leads
    assert before <= team.uids()


def test_a_history_that_is_compacted_away_with_deletions_in_it(team):
    operator = begin(team, lease=False)
    delete_unseen(team.cluster, f"/registry/pods/{NAMESPACE}/j-trainer-1")
    team.j.at_work([0, 1])
    assert operator.process.poll() is None


def test_the_only_job_is_deleted_unseen(team):
    """A restarted watch lists no job then, so the operator gets no event and has to find the deletion from the empty list."""
    operator = begin(team, lease=False)
    delete_unseen(team.cluster, f"/registry/shoal.dev/trainingjobs/{NAMESPACE}/j")
    team.until(lambda: operator.metric("shoal_jobs") == 0, "the operator to notice")
    until_gone(team.cluster)
    assert operator.process.poll() is None


def delete_unseen(cluster, key):
    """Delete an object while the API server is down and compact etcd's history, so that no watch can report the deletion."""
    cluster.kill("kube-apiserver")
    with grpc.insecure_channel(cluster._layout.at("etcd").removeprefix("http://")) as channel:
        found = rpc.KVStub(channel).DeleteRange(rpc.DeleteRangeRequest(key=key.encode()))
    assert found.deleted == 1
    compact(cluster)
    cluster.launch("kube-apiserver")
    cluster.awaken()


def test_a_server_that_is_overloaded(tmp_path):
    """The API server exempts members of the group system:masters from its limits, so the operator uses another user."""
    with Narrow(tmp_path / "cluster") as cluster:
        prepare(cluster)
        kubeconfig = ordinary(cluster, tmp_path)
        with a_team(cluster, tmp_path) as team, load(kubeconfig):
            operator = team.join("a", kubeconfig=kubeconfig, lease=False)
            team.j.apply()
            team.j.at_work([0, 1])
            team.scale(4)
            team.j.at_work([0, 1, 2, 3])
            assert operator.metric("shoal_operator_api_requests_total", code="429") > 0
            assert operator.process.poll() is None


def ordinary(cluster, folder):
    """Write a kubeconfig of a user that may do everything but is exempt from no limit."""
    kept = cluster._layout.certificates
    certificates.make_client(kept, "operator", user="operator", group="operators")
    cluster.kubectl("create", "clusterrolebinding", "operators", "--clusterrole=cluster-admin", "--group=operators")
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    config["users"][0]["user"] = {
        "client-certificate": str(kept / "operator.crt"), "client-key": str(kept / "operator.key"),
    }  # fmt: skip
    (folder / "kubeconfig").write_text(yaml.safe_dump(config))
    return folder / "kubeconfig"


@contextlib.contextmanager
def load(kubeconfig):
    """Run 24 clients that request long lists and write, without pause."""
    end = SimpleNamespace(asked=False)

    async def ask(kube, number):
        config = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"much": "x" * 100_000},
                  "metadata": {"name": f"load-{number}", "namespace": "kube-system"}}  # fmt: skip
        while not end.asked:
            with contextlib.suppress(KubeError):
                await kube.apply(config, dry_run=True)
                await kube.list("ConfigMap", namespace="kube-system")

    async def run():
        async with await Kube.connect(kubeconfig=str(kubeconfig), timeout_seconds=0.1) as kube:
            await asyncio.gather(*(ask(kube, number) for number in range(24)))
        # A closed TLS connection is gone only several turns of the event loop later, and aiohttp does not wait for that.
        await asyncio.sleep(0.5)

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        yield
    finally:
        end.asked = True
        thread.join(60)


def test_an_unreachable_etcd_ends_no_process_and_is_reported(team):
    operator = begin(team, lease=False)
    team.scale(4)
    team.j.at_work([0, 1, 2, 3])
    before = team.uids()
    team.etcd.kill()
    # The drain is published through etcd first, so no trainer is deleted while etcd is away.
    team.scale(2)
    team.until(lambda: team.j.condition("Progressing").get("reason") == "EtcdUnreachable", "the condition")
    team.until(lambda: team.j.status()["trainers"]["desired"] == 2, "the new number")
    assert operator.metric("shoal_operator_etcd_up") == 0
    assert operator.ask("/readyz") == (503, "etcd does not answer\n")
    assert operator.ask("/healthz")[0] == 200
    assert before == team.uids()
    team.etcd.start()
    team.j.at_work([0, 1])
    team.until(lambda: team.j.condition("Progressing").get("status") == "True", "progress")
    assert operator.ask("/readyz")[0] == 200


@contextlib.contextmanager
def once_said(words, log, then):
    """Run a function as soon as a log contains this text; within the context it has to appear."""
    said = threading.Event()

    def wait() -> None:
        while not (log.exists() and words in log.read_text()):
            if said.wait(0.1):
                return
        said.set()
        then()

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
        assert said.is_set(), words
    finally:
        said.set()
        thread.join(60)


def test_an_operator_that_finds_no_etcd_waits_for_it(team):
    team.etcd.kill()
    with once_said("no etcd answers", team.folder / "a.log", team.etcd.start):
        begin(team, lease=False)


def test_an_operator_that_is_there_before_the_definition_waits_for_it(tmp_path):
    with ControlPlane(tmp_path / "cluster") as cluster, run_etcd(tmp_path / "etcd") as etcd:
        team = Team(cluster, NAMESPACE, etcd, tmp_path)
        try:
            with once_said("install their definition", tmp_path / "a.log", lambda: prepare(cluster)):
                begin_without_masters(team)
        finally:
            team.close()


def begin_without_masters(team) -> None:
    team.join("a", lease=False)
    team.until(lambda: team.cluster.get("nodes")["items"], "nodes")
    team.j.apply()
    team.until(lambda: len(team.j.pods("trainer")) == 2, "trainers")


@pytest.mark.parametrize("quick", [True, False], ids=["at once", "later"])
def test_a_definition_that_was_deleted_and_is_applied_again_is_served(tmp_path, quick):
    """The deletion removes all jobs. The operator is unready meanwhile, and reconciles the jobs that are created afterwards."""
    with ControlPlane(tmp_path / "cluster") as cluster, run_etcd(tmp_path / "etcd") as etcd:
        prepare(cluster)
        team = Team(cluster, NAMESPACE, etcd, tmp_path)
        try:
            begin_without_masters(team)
            cluster.kubectl("delete", "crd", "trainingjobs.shoal.dev", "--wait=true")
            if not quick:
                team.until(lambda: team.members["a"].ask("/readyz")[0] == 503, "the operator to be unready")
                team.until(lambda: "install their definition" in team.members["a"].ask("/readyz")[1], "its words")
            define(cluster)
            # The garbage collector removes the old job's objects once it knows the kind again.
            other = team.job("other")
            other.apply()
            team.until(lambda: len(other.pods("trainer")) == 2, "trainers")
            team.until(lambda: team.members["a"].ask("/readyz")[0] == 200, "the operator to be ready")
        finally:
            team.close()
