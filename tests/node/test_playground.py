"""``make cluster`` with root and the tools for a real node: the commands that it prints work."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.cluster import playground
from tests.cluster.control_plane import BrokenError
from tests.cluster.node import NodeCluster
from tests.cluster.test_control_plane import command_line

pytestmark = [pytest.mark.cluster, pytest.mark.node, pytest.mark.timeout(300)]


def test_up_with_a_real_node_has_shoal_installed_and_ready(tmp_path):
    folder = tmp_path / "cluster"
    try:
        up = command_line(folder, "up", "--real", "--nodes", "1")
        assert up.returncode == 0, up.stdout + up.stderr
        assert "operators 2/2" in up.stdout
        cluster = NodeCluster(folder, tied=False)
        assert playground.installed(cluster)
        (overlay,) = re.findall(r"kubectl apply -k (\S+)", up.stdout)
        cluster.kubectl("apply", "-k", overlay)
        # The claims' volumes bind at once, and no pod of the job is placed on a hollow node.
        chosen = "-l=shoal.dev/job=flights"
        cluster.until(lambda: len(cluster.get("pods", chosen)["items"]) == 5, "the job's pods")
        try:
            cluster.until(
                lambda: all(pod["spec"].get("nodeName") for pod in cluster.get("pods", chosen)["items"]), "a place"
            )
        except BrokenError as error:
            raise BrokenError(f"{error}\n{cluster.kubectl('describe', 'pods,pvc,nodes')}") from None
        assert {pod["spec"]["nodeName"] for pod in cluster.get("pods", chosen)["items"]} == {"node"}
    finally:
        down = command_line(folder, "down")
    assert "9 processes ended" in down.stdout, down.stderr
    assert not list(folder.iterdir())


def test_without_root_only_a_hollow_cluster_starts_with_the_reason(tmp_path, monkeypatch):
    words = "import os, sys; os.geteuid = lambda: 1000; from tests.cluster.__main__ import choose, parser; "
    words += "print(type(choose(parser().parse_args(sys.argv[1:]))).__name__)"
    monkeypatch.setenv("SHOAL_CLUSTER", str(tmp_path / "cluster"))

    def chosen(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-c", words, "up", *arguments]
        return subprocess.run(line, check=False, capture_output=True, text=True, timeout=60)

    said, kind = chosen().stdout.splitlines()
    assert "no real node: a real node needs root; run this as root" in said
    assert kind == "ControlPlane"
    assert "needs root" in chosen("--real").stderr
