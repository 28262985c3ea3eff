from tests.cluster.fixtures import (
    add_nodes,
    control_plane,
    namespace,
    node_cluster,
    node_namespace,
    pytest_collection_finish,
    pytest_configure,
)

__all__ = [
    "add_nodes",
    "control_plane",
    "namespace",
    "node_cluster",
    "node_namespace",
    "pytest_collection_finish",
    "pytest_configure",
]
