from tests.cluster.fixtures import pytest_collection_finish

__all__ = ["pytest_collection_finish"]
