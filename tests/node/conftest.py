from __future__ import annotations

import pytest

from tests.cluster.fixtures import fresh_namespace, node_cluster, node_namespace, pytest_collection_finish
from tests.node.world import World, define

__all__ = ["node_cluster", "node_namespace", "pytest_collection_finish", "world"]


@pytest.fixture(scope="module")
def world(node_cluster, tmp_path_factory):
    """Provide a namespace of the node's cluster with an operator that serves it, for all tests of a file."""
    define(node_cluster)
    with (
        fresh_namespace(node_cluster) as namespace,
        World(node_cluster, namespace, tmp_path_factory.mktemp("world")) as made,
    ):
        yield made
