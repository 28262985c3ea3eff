from tests.cluster.fixtures import add_nodes, control_plane, namespace, pytest_collection_finish

__all__ = ["add_nodes", "control_plane", "namespace", "pytest_collection_finish"]
