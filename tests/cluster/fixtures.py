"""Fixtures of all tests that need a Kubernetes; a test folder's conftest.py imports those that it uses.

One control plane serves the whole session, through whichever conftest it is requested: starting one takes seconds, and
namespaces isolate the tests. A test that breaks the control plane creates a `ControlPlane` of its own.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

from tests.cluster import binaries
from tests.cluster.control_plane import ControlPlane
from tests.cluster.node import NodeCluster

__all__ = [
    "add_nodes",
    "control_plane",
    "fresh_namespace",
    "namespace",
    "node_cluster",
    "node_namespace",
    "pytest_collection_finish",
    "pytest_configure",
]

Cluster = TypeVar("Cluster", bound=ControlPlane)
SHARED = pytest.StashKey[dict[Any, Any]]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "node: needs root and a real node with containers")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build missing programs before the first test, whose time limit is too short for that."""
    marks = {mark.name for item in session.items for mark in item.iter_markers()}
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    if "cluster" not in marks or session.config.option.collectonly:
        return
    try:
        (binaries.node if "node" in marks else binaries.hollow)(say=reporter.write_line if reporter else print)
    except binaries.Missing as error:
        pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)


def _shared(kind: type[Cluster], config: pytest.Config, paths: pytest.TempPathFactory) -> Cluster:
    """Return the session's cluster of this kind, which is started on first use."""
    clusters: dict[Any, Any] = config.stash.setdefault(SHARED, {})
    if kind not in clusters:
        cluster = kind(paths.mktemp("cluster"))
        config.add_cleanup(cluster.stop)
        cluster.start()
        clusters[kind] = cluster
    shared: Cluster = clusters[kind]
    return shared


@pytest.fixture(scope="session")
def control_plane(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> ControlPlane:
    """Provide the session's control plane, with hollow nodes only."""
    return _shared(ControlPlane, pytestconfig, tmp_path_factory)


@pytest.fixture(scope="session")
def node_cluster(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> NodeCluster:
    """Provide the session's cluster with a real node."""
    return _shared(NodeCluster, pytestconfig, tmp_path_factory)


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """Provide a fresh namespace; its pods are gone when the test is over, the rest of it is deleted soon after."""
    with fresh_namespace(control_plane) as name:
        yield name


@pytest.fixture
def node_namespace(node_cluster: NodeCluster) -> Iterator[str]:
    """Provide a fresh namespace in the cluster with a real node; it is removed as `namespace` is."""
    with fresh_namespace(node_cluster) as name:
        yield name


@contextmanager
def fresh_namespace(cluster: ControlPlane) -> Iterator[str]:
    """Create a namespace; at the end its pods are gone, and the rest of it is deleted soon after."""
    name = f"t-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", name)
    # Pods are admitted only once the service account exists.
    cluster.kubectl("wait", "-n", name, "--for=create", "serviceaccount/default", "--timeout=60s")
    yield name
    # A namespace that is being deleted accepts no new objects, so no controller creates the pods again.
    cluster.kubectl("delete", "namespace", name, "--wait=false")
    cluster.kubectl("delete", "pods", "-n", name, "--all", "--force", "--grace-period=0", "--wait=false")
    cluster.until(lambda: not cluster.get("pods", "-n", name)["items"], f"the pods of {name} to go")


@pytest.fixture
def add_nodes(control_plane: ControlPlane) -> Iterator[Callable[..., list[str]]]:
    """Provide `ControlPlane.add_nodes` with nodes for one test; requested before `namespace`, the nodes outlive its pods."""
    names: list[str] = []

    def add(count: int, **wanted: object) -> list[str]:
        added = control_plane.add_nodes(count, **wanted)
        names.extend(added)
        return added

    yield add
    if names:
        control_plane.kubectl("delete", "nodes", *names, "--wait=false")
