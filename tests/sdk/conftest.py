from tests.operator.conftest import add_nodes, control_plane, namespace, pytest_collection_finish, shared, world

__all__ = ["add_nodes", "control_plane", "namespace", "pytest_collection_finish", "shared", "world"]
