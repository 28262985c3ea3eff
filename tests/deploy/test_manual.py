"""The commands of docs/operations.md, on a cluster: they do what the manual describes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from tests.deploy.rendered import DEPLOY, ROOT, SYSTEM, render
from tests.deploy.test_overlays import stands

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
TEXT = (ROOT / "docs" / "operations.md").read_text()


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def commands(title: str) -> list[str]:
    return [line.strip() for line in section(title).splitlines() if line.startswith("    kubectl ")]


@pytest.fixture
def checkout(cluster, tmp_path):
    """Copy the parts of the repository that are applied, with the reader's own overlay in it."""
    # A Job of another test has another image; the manual describes that case.
    cluster.kubectl("delete", "job", "shoal-setup", "-n", SYSTEM, "--ignore-not-found")
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    shutil.copytree(ROOT / "crds", tmp_path / "crds")
    (written,) = re.findall(r"```yaml\n(.*?)```", section("Install"), re.DOTALL)
    # The cluster has no Prometheus operator.
    written = "\n".join(line for line in written.splitlines() if "pod-monitor" not in line)
    (tmp_path / "deploy" / "mine").mkdir()
    (tmp_path / "deploy" / "mine" / "kustomization.yaml").write_text(written)
    return tmp_path


def follow(cluster, checkout, title: str, *, after: str = "") -> str:
    """Run a section's commands: all of them, or those after a text up to the end of its paragraph."""
    said = ""
    wanted = commands(title)
    if after:
        block = section(title).partition(after)[2].partition("\n\n    ")[2].partition("\n\n")[0]
        wanted = [" && ".join(line.strip() for line in block.splitlines())]
    for line in wanted:
        if "port-forward" in line or " logs " in line:
            continue  # port-forward never exits, and hollow pods have no logs
        variables = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig), "HOME": str(checkout),
                     "PATH": f"{cluster.folder / 'bin'}:{os.environ['PATH']}"}  # fmt: skip
        done = subprocess.run(
            ["bash", "-c", line], cwd=checkout, env=variables, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        said += done.stdout
    return said


def cluster_wide(cluster) -> set[tuple[str, str]]:
    """Return (kind, name) of the cluster-scoped objects that may be Shoal's."""
    found = cluster.get("clusterroles,clusterrolebindings,priorityclasses,crds,namespaces")["items"]
    return {(each["kind"], each["metadata"]["name"]) for each in found}


def test_installed_upgraded_inspected_and_removed(cluster, checkout):
    cluster.kubectl("create", "namespace", "team")
    before = cluster_wide(cluster)
    follow(cluster, checkout, "Install")
    stands(cluster, "shoal-operator", 2)
    pods = cluster.get("pods", "-n", SYSTEM, "-l", "app.kubernetes.io/name=shoal-operator")["items"]
    assert {pod["spec"]["containers"][0]["image"] for pod in pods} == {"registry.example.org/shoal/operator:0.1.0"}
    assert cluster.get("networkpolicy", "-n", "team")["items"]
    mine = checkout / "deploy" / "mine" / "kustomization.yaml"
    mine.write_text(mine.read_text().replace("newTag: 0.1.0", "newTag: 0.2.0"))
    follow(cluster, checkout, "Upgrade, with jobs running")
    (job,) = cluster.get("jobs", "-n", SYSTEM, "-l", "app.kubernetes.io/name=shoal-setup")["items"]
    assert job["spec"]["template"]["spec"]["containers"][0]["image"].endswith(":0.2.0")
    follow(cluster, checkout, "Monitoring")
    follow(cluster, checkout, "Uninstall")
    installed = {(each["kind"], each["metadata"]["name"]) for each in render(mine.parent)}
    assert not cluster_wide(cluster) & installed
    assert cluster_wide(cluster) <= before
    cluster.kubectl("delete", "namespace", "team", "--wait=false")


def test_a_private_registry_as_in_the_manual(cluster, checkout):
    follow(cluster, checkout, "Private registries")
    secret = cluster.get("secret", "shoal-pull", "-n", SYSTEM)
    assert secret["type"] == "kubernetes.io/dockerconfigjson"
    cluster.kubectl("delete", "secret", "shoal-pull", "-n", SYSTEM)


def test_whatever_the_manual_names_is_there():
    for path in re.findall(r"`((?:deploy|operator)/[a-z0-9_./-]+)`", TEXT):
        assert path.startswith("deploy/mine") or (ROOT / path).exists(), path
    for name in re.findall(r"`(shoal_[a-z_]+)", TEXT):
        reported = (ROOT / "operator/shoal/operator/endpoints.py").read_text()
        assert re.sub("_(count|total)$", "", name) in reported, name
