from tests.autoscaler.worlds_on_cluster import cluster, world
from tests.cluster.fixtures import pytest_collection_finish

__all__ = ["cluster", "pytest_collection_finish", "world"]
