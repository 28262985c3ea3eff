import pytest

from tests.cluster.fixtures import pytest_collection_finish
from tests.deploy.audited import Audited

__all__ = ["cluster", "pytest_collection_finish"]


@pytest.fixture(scope="session")
def cluster(pytestconfig, tmp_path_factory):
    """Provide a control plane for these tests only, as they install cluster-scoped objects."""
    made = Audited(tmp_path_factory.mktemp("deploy"))
    pytestconfig.add_cleanup(made.stop)
    made.start()
    return made
