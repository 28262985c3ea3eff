from tests.cluster.fixtures import control_plane, namespace, pytest_collection_finish

__all__ = ["control_plane", "namespace", "pytest_collection_finish"]
