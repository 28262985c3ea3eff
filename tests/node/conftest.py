from __future__ import annotations

import json

import pytest

from shoal.api.crd import crd
from tests.cluster.fixtures import fresh_namespace, node_cluster, node_namespace, pytest_collection_finish
from tests.node.world import World

__all__ = ["node_cluster", "node_namespace", "pytest_collection_finish", "world"]


def established(cluster) -> bool:
    found = cluster.get("crd/trainingjobs.shoal.dev").get("status", {}).get("conditions") or []
    return any(each["type"] == "Established" and each["status"] == "True" for each in found)


@pytest.fixture(scope="module")
def world(node_cluster, tmp_path_factory):
    """A namespace of the node's cluster with an operator that serves it; one for all tests of a file."""
    node_cluster.kubectl("apply", "-f", "-", input=json.dumps(crd()))
    node_cluster.until(lambda: established(node_cluster), "the definition")
    with (
        fresh_namespace(node_cluster) as namespace,
        World(node_cluster, namespace, tmp_path_factory.mktemp("world")) as made,
    ):
        yield made
