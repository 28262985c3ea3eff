"""Fixtures of all tests that need a Kubernetes; a test folder's conftest.py imports those that it uses.

One control plane serves the whole session, whichever conftest it is asked through: starting one takes seconds, and
namespaces keep tests apart. A test that breaks the control plane makes a `ControlPlane` of its own.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator

import pytest

from tests.cluster import binaries
from tests.cluster.control_plane import ControlPlane

__all__ = ["add_nodes", "control_plane", "namespace", "pytest_collection_finish"]

SHARED = pytest.StashKey[ControlPlane]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds what is missing before the first test, whose time limit is too short for that."""
    wanted = any(item.get_closest_marker("cluster") for item in session.items)
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    if not wanted or session.config.option.collectonly:
        return
    try:
        binaries.hollow(say=reporter.write_line if reporter else print)
    except binaries.Missing as error:
        pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)


@pytest.fixture(scope="session")
def control_plane(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> ControlPlane:
    """The session's control plane."""
    if SHARED not in pytestconfig.stash:
        cluster = ControlPlane(tmp_path_factory.mktemp("cluster"))
        pytestconfig.add_cleanup(cluster.stop)
        cluster.start()
        pytestconfig.stash[SHARED] = cluster
    return pytestconfig.stash[SHARED]


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A fresh namespace; its pods are gone when the test is over, the rest of it soon after."""
    name = f"t-{secrets.token_hex(4)}"
    control_plane.kubectl("create", "namespace", name)
    # Without its service account no pod is admitted.
    control_plane.kubectl("wait", "-n", name, "--for=create", "serviceaccount/default", "--timeout=60s")
    yield name
    # A namespace that is being deleted takes nothing new, so no controller brings the pods back.
    control_plane.kubectl("delete", "namespace", name, "--wait=false")
    control_plane.kubectl("delete", "pods", "-n", name, "--all", "--force", "--grace-period=0", "--wait=false")
    control_plane.until(lambda: not control_plane.get("pods", "-n", name)["items"], f"the pods of {name} to go")


@pytest.fixture
def add_nodes(control_plane: ControlPlane) -> Iterator[Callable[..., list[str]]]:
    """`ControlPlane.add_nodes`, whose nodes go with the test. Asked for before `namespace`, it outlives its pods."""
    names: list[str] = []

    def add(count: int, **wanted: object) -> list[str]:
        added = control_plane.add_nodes(count, **wanted)
        names.extend(added)
        return added

    yield add
    if names:
        control_plane.kubectl("delete", "nodes", *names, "--wait=false")
