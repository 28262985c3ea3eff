"""A control plane with hollow nodes and an operator that follows plans, for the autoscaler's tests."""

from __future__ import annotations

import signal
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.control_plane import ControlPlane
from tests.cluster.fixtures import fresh_namespace
from tests.cluster.processes import free_ports
from tests.etcds import run_etcd
from tests.operator.standin import Masters
from tests.operator.world import CLASSES, World, define

ONE_CPU = {"requests": {"cpu": "1", "memory": "64Mi"}}
SMALL = {"requests": {"memory": "64Mi"}}
TWO_NODES = 8
"""Number of trainers of one CPU that fit on two nodes of four CPUs."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with ControlPlane(tmp_path_factory.mktemp("autoscaler")) as made:
        define(made)
        yield made


@pytest.fixture
def world(cluster, tmp_path):
    """A namespace with an operator that follows plans and serves metrics, and two nodes of four CPUs."""
    file = tmp_path / "autoscaler.yaml"
    file.write_text("coolDown: 0s\n")
    nodes = cluster.add_nodes(2, cpu="4", memory="16Gi")
    with run_etcd(tmp_path / "etcd") as etcd, fresh_namespace(cluster) as namespace:
        port = free_ports(1)[0]
        shared = (*CLASSES, "--autoscaler", str(file), "--lease", f"{namespace}/operator")
        world = World(cluster, namespace, etcd, tmp_path, *shared, "--serve", f"127.0.0.1:{port}")
        world.nodes, world.config, world.port = nodes, file, port
        world.second = World(cluster, namespace, etcd, tmp_path / "etcd", *shared)
        world.start()
        try:
            with Masters(world.api, etcd.endpoint, namespace) as world.masters:
                yield world
                world.kubectl("delete", "tj,deployments,pods", "--all", "--wait=false")
        finally:
            ended = world.end()
            world.api.close()
            world.second.api.close()
            cluster.kubectl("delete", "nodes", *world.nodes, "--ignore-not-found")
        # An operator that has just been started has not installed its signal handler yet.
        assert ended in {0, -signal.SIGTERM}, world.log()


def apply(job, low, high, **more):
    job.apply(
        trainer={"minReplicas": low, "maxReplicas": high, "resources": ONE_CPU, **more.pop("trainer", {})},
        parameterServer={"replicas": 1, "resources": SMALL, "emptyDir": {}},
        master={"resources": SMALL},
        **more,
    )


def trainers(job, count):
    def there():
        return len(job.pods("trainer")) == len(job.pods("trainer", ready=False)) == count

    try:
        job.until(there, f"{count} trainers")
    except BaseException:
        print(job.status(), job.pods("trainer", ready=False))
        raise


def configure(world, text):
    """Replace the configuration after the operator has read the first one, and wait until it is loaded."""
    taken = "configuration loaded"
    world.until(lambda: taken in world.log(), "the first configuration")
    before = world.log().count(taken)
    world.config.write_text(text)
    world.until(lambda: world.log().count(taken) > before, "the configuration")


def allocation(job):
    return job.status().get("allocation", {})


def web(world, replicas, **pods):
    """Apply a Deployment of ordinary pods of one CPU; ``pods`` adds to the pod spec."""
    containers = [{"name": "web", "image": "web", "resources": ONE_CPU}]
    spec = {"containers": containers, "terminationGracePeriodSeconds": 0, **pods}
    template = {"metadata": {"labels": {"app": "web"}}, "spec": spec}
    spec = {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": template}
    world.apply({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec})


def webs(world):
    return [pod for pod in world.list("Pod", labels="app=web") if pod["status"].get("phase") == "Running"]


def evicted(world):
    """Return the uids of the pods that the scheduler reports as preempted."""
    return {each["regarding"]["uid"] for each in world.list("Event") if each["reason"] == "Preempted"}


def metrics(world):
    """Return the metrics without labels, by name; empty while the endpoint does not answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{world.port}/metrics", timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
    except OSError:
        return {}
    return {each.name: each.value for family in families for each in family.samples if not each.labels}
