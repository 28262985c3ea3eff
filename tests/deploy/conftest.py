import pytest

from tests.cluster.fixtures import pytest_collection_finish
from tests.deploy.audited import Audited

__all__ = ["cluster", "pytest_collection_finish"]


@pytest.fixture(scope="session")
def cluster(pytestconfig, tmp_path_factory):
    """A control plane of these tests' own: what they install stands in the whole cluster."""
    made = Audited(tmp_path_factory.mktemp("deploy"))
    pytestconfig.add_cleanup(made.stop)
    made.start()
    return made
