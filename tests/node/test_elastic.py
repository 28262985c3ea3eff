"""A job that trains in real pods makes room for a pod of higher priority and grows again afterwards; its account stays exact."""

from __future__ import annotations

import json

import pytest

from tests.cluster.fixtures import fresh_namespace
from tests.node.jobs import IMAGE, ROOT, template
from tests.node.test_life import check
from tests.node.world import World, define

pytestmark = [pytest.mark.cluster, pytest.mark.node, pytest.mark.timeout(240)]

EPOCHS = 8


@pytest.fixture
def world(node_cluster, tmp_path):
    """Run a world whose operator follows the autoscaler's plans."""
    define(node_cluster)
    node_cluster.kubectl("apply", "-f", str(ROOT / "deploy" / "base" / "priorities.yaml"))
    config = tmp_path / "autoscaler.yaml"
    config.write_text("{}\n")
    with (
        fresh_namespace(node_cluster) as namespace,
        World(node_cluster, namespace, tmp_path, "--autoscaler", str(config)) as made,
    ):
        yield made


def test_it_shrinks_for_an_ordinary_pod_and_grows_back(world):
    folder = world.claim("model")
    (node,) = world.cluster.get("nodes")["items"]
    cores = int(node["status"]["allocatable"]["cpu"])
    # Three trainers fill the node; the pod needs the room of two.
    trainer = {"requests": {"cpu": f"{1000 * cores // 3}m"}}
    spec = world.counting(
        epochs=EPOCHS,
        trainer={"minReplicas": 1, "maxReplicas": 4, "resources": trainer},
        output={"path": "m.safetensors", "volumeClaimName": "model"},
    )
    world.pace(0.5)
    world.apply("elastic", **spec)
    world.progresses("elastic", trainers=[0, 1, 2])
    pod = template("trainer")["spec"]
    container = {
        **pod["containers"][0], "name": "web", "image": IMAGE, "command": ["sleep", "600"],
        "resources": {"requests": {"cpu": f"{1000 * cores // 2}m"}},
    }  # fmt: skip
    web = {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": world.namespace},
        "spec": {**pod, "containers": [container], "terminationGracePeriodSeconds": 0},
    }  # fmt: skip
    world.kubectl("apply", "-f", "-", input=json.dumps(web))
    world.kubectl("wait", "pod/web", "--for=condition=Ready", "--timeout=90s")
    samples = world.reported_state("elastic").samples

    def one_goes_on() -> bool:
        """Check that the one trainer that was not preempted commits further samples."""
        reported = world.reported_state("elastic")
        return len(reported.trainers) == 1 and reported.samples > samples

    world.until(one_goes_on, "one trainer to go on")
    assert world.status("elastic")["allocation"]["desired"] == 1
    world.kubectl("delete", "pod", "web")
    world.progresses("elastic", trainers=[0, 1, 2])
    world.pace(0.0)
    world.until(lambda: world.status("elastic").get("state") == "Complete", "its end", seconds=120)
    check(world, "elastic", folder / "m.safetensors", epochs=EPOCHS)
