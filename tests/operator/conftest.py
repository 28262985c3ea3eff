import itertools

import pytest

from tests.cluster.fixtures import add_nodes, control_plane, namespace, pytest_collection_finish
from tests.operator.world import a_world

__all__ = ["add_nodes", "control_plane", "job", "namespace", "pytest_collection_finish", "shared", "world"]


NUMBERS = itertools.count()


@pytest.fixture
def world(control_plane, tmp_path):
    """Run a world for one test, which may kill the world's operator."""
    with a_world(control_plane, tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def shared(control_plane, tmp_path_factory):
    """Run one world for all tests of a module, whose jobs have different names."""
    with a_world(control_plane, tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.fixture
def job(shared):
    """Provide a job in the module's world, not created yet; it is deleted after the test."""
    made = shared.job(f"job-{next(NUMBERS)}")
    yield made
    shared.kubectl("delete", "tj", made.name, "--wait=false", "--ignore-not-found")
