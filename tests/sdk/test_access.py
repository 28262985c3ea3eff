"""How the SDK reaches a cluster: renewed tokens, wrong certificates, proxies, and namespaces that are being deleted."""

from __future__ import annotations

import json

import pytest
import yaml

from shoal.sdk import Client, ClusterUnreachableError, ForbiddenError
from tests.cluster import certificates
from tests.operator.world import define, manifest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]


@pytest.fixture
def config(control_plane, tmp_path):
    """Provide a function that writes a kubeconfig with another user or cluster."""
    define(control_plane)
    base = yaml.safe_load(control_plane.kubeconfig.read_text())

    def write(*, user=None, cluster=None):
        found = json.loads(json.dumps(base))
        if user is not None:
            found["users"][0]["user"] = user
        found["clusters"][0]["cluster"] |= cluster or {}
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(found))
        return tmp_path / "kubeconfig"

    return write


@pytest.fixture
def token(control_plane, namespace):
    """Provide the token of a service account that may view the namespace."""
    control_plane.kubectl("create", "serviceaccount", "viewer", "-n", namespace)
    control_plane.kubectl(
        "create", "rolebinding", "viewer", "-n", namespace, "--clusterrole=cluster-admin",
        f"--serviceaccount={namespace}:viewer",
    )  # fmt: skip
    return control_plane.kubectl("create", "token", "viewer", "-n", namespace).strip()


def test_a_token_that_was_renewed_in_the_kubeconfig_is_used(config, token, namespace):
    with Client(kubeconfig=config(user={"token": token}), namespace=namespace) as client:
        assert client.list() == []
        # The file has a token that has expired, and then a new one; the client read the first one.
        with Client(kubeconfig=config(user={"token": "expired"}), namespace=namespace) as late:
            with pytest.raises(ForbiddenError, match="log in to the cluster again"):
                late.list()
            config(user={"token": token})
            assert late.list() == []


def test_the_caller_of_a_missing_permission_is_a_service_account_with_its_fix(config, token, namespace, control_plane):
    control_plane.kubectl("delete", "rolebinding", "viewer", "-n", namespace)
    with (
        Client(kubeconfig=config(user={"token": token}), namespace=namespace) as client,
        pytest.raises(ForbiddenError) as error,
    ):
        client.list()
    assert f"--clusterrole=view --serviceaccount={namespace}:viewer" in str(error.value)


def test_a_server_with_another_certificate_is_not_trusted(config, tmp_path, monkeypatch):
    monkeypatch.setattr("shoal.sdk.cluster.TIMEOUT_SECONDS", 0.5)
    (tmp_path / "other").mkdir()
    certificates.make_authority(tmp_path / "other")
    (other,) = (tmp_path / "other").glob("*.crt")
    path = config(cluster={"certificate-authority": str(other)})
    with (
        Client(kubeconfig=path, namespace="default") as client,
        pytest.raises(ClusterUnreachableError, match="ertificate"),
    ):
        client.list()


def test_a_proxy_of_the_environment_is_used_and_can_be_switched_off(config, namespace, monkeypatch):
    monkeypatch.setattr("shoal.sdk.cluster.TIMEOUT_SECONDS", 0.5)
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with Client(kubeconfig=config(), namespace=namespace) as client, pytest.raises(ClusterUnreachableError):
        client.list()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Client(kubeconfig=config(), namespace=namespace) as client:
        assert client.list() == []


def test_a_namespace_that_is_being_deleted_takes_no_job(control_plane, config, namespace):
    held = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "held", "namespace": namespace, "finalizers": ["example.org/hold"]},
    }
    control_plane.create(held, namespace=namespace)
    control_plane.kubectl("delete", "namespace", namespace, "--wait=false")
    try:
        with (
            Client(kubeconfig=config(), namespace=namespace) as client,
            pytest.raises(ForbiddenError, match="being terminated"),
        ):
            client.submit(manifest=manifest("late"))
    finally:
        control_plane.kubectl(
            "patch", "configmap", "held", "-n", namespace, "--type=merge", "-p", '{"metadata": {"finalizers": null}}'
        )
