"""Helm, and the chart in deploy/helm/shoal as it renders it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import binaries
from tests.deploy.rendered import DEPLOY, SYSTEM

CHART = DEPLOY / "helm" / "shoal"
HELM_LABELS = ("app.kubernetes.io/managed-by", "app.kubernetes.io/instance", "helm.sh/chart")


class HelmError(Exception):
    """Helm failed; the message is its own."""


class Helm:
    """Helm with all its files in one folder.

    Args:
        folder: Folder of its configuration and caches, and of `helm` as a name for PATH.
        kubeconfig: Kubeconfig of its cluster. Default: None, it renders only.
    """

    def __init__(self, folder: Path, kubeconfig: Path | None = None) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True, exist_ok=True)
        program = self.bin / "helm"
        if not program.exists():
            program.symlink_to(binaries.path("helm"))
        homes = {f"HELM_{each}_HOME": str(folder / each.lower()) for each in ("CACHE", "CONFIG", "DATA")}
        self.variables = {**os.environ, **homes, "KUBECONFIG": str(kubeconfig or folder / "none")}

    def run(self, *arguments: str, values: Mapping[str, Any] | None = None) -> str:
        """Run Helm with these values and return its output; raise `HelmError` if it fails."""
        given = [] if values is None else ["--values", "-"]
        done = subprocess.run(
            [str(self.bin / "helm"), *arguments, *given],
            input=json.dumps(values), env=self.variables, check=False, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise HelmError(f"helm {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def template(
        self, values: Mapping[str, Any] | None = None, *, namespace: str = SYSTEM, chart: Path = CHART
    ) -> list[dict[str, Any]]:
        """Return the objects of a release that is named shoal."""
        said = self.run("template", "shoal", str(chart), "--namespace", namespace, values=values or {})
        return [each for each in yaml.safe_load_all(said) if each]


def nested(path: str, value: Any) -> dict[str, Any]:
    """Return values with one value set, by its path with dots."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with those of all parts."""
    result: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
            result[key] = merged(result[key], value) if both else value
    return result


def comparable(objects: list[dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Return objects by kind, namespace and name, without what only Helm or only kustomize decides on.

    Left out are Helm's labels and its resource policy, the order of environment variables, the layout of the
    AutoscalerConfig, and the namespace of the release, which exists before the release does.
    """
    found = {}
    for each in json.loads(json.dumps(objects)):
        metadata = each["metadata"]
        for label in HELM_LABELS:
            metadata.get("labels", {}).pop(label, None)
        metadata.get("annotations", {}).pop("helm.sh/resource-policy", None)
        for key in ("labels", "annotations"):
            if not metadata.get(key, True):
                del metadata[key]
        if each["kind"] == "ConfigMap":
            each["data"] = {key: yaml.safe_load(value) for key, value in each["data"].items()}
        _sort_variables(each)
        found[each["kind"], metadata.get("namespace", ""), metadata["name"]] = each
    assert len(found) == len(objects), "two objects have one name"
    found.pop(("Namespace", "", SYSTEM), None)
    return found


def _sort_variables(value: Any) -> None:
    if isinstance(value, dict):
        if "env" in value and isinstance(value["env"], list):
            value["env"].sort(key=lambda each: each["name"])
        for below in value.values():
            _sort_variables(below)
    elif isinstance(value, list):
        for below in value:
            _sort_variables(below)
