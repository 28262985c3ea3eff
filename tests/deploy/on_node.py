"""deploy/ on the real node of these tests: the same manifests, with this machine's Python and etcd in the containers.

    cluster.kubectl("apply", "--server-side", "-k", str(write_overlay(tmp_path, "overlays/default")))

All differences are in one kustomization, as a user could write it: images, mounts, a PATH, and a namespace that admits
mounts of the node.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import binaries
from tests.cluster.image import IMAGE, mounts
from tests.deploy.rendered import DEPLOY, SYSTEM, render, templates

__all__ = ["write_overlay"]

PROGRAMS = "/shoal-programs"


def write_overlay(folder: Path, source: str, *components: str) -> Path:
    """Write a folder for ``kubectl apply -k`` and return it.

    Args:
        folder: Where it is written, with copies of etcd's programs that the node mounts.
        source: Overlay in deploy/, as `overlays/default`.
        components: Components of deploy/ to add.
    """
    programs = folder / "programs"
    programs.mkdir(parents=True)
    binaries.build(("etcd", *binaries.BESIDE_NODE))
    for name in ("etcd", *binaries.BESIDE_NODE):
        shutil.copy(binaries.path(name), programs / name)
    open_to_all(programs)
    here, tag = IMAGE.rsplit(":", 1)
    kustomization: dict[str, Any] = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(DEPLOY / source, folder.resolve())],
        "components": [os.path.relpath(DEPLOY / "components" / each, folder.resolve()) for each in components],
        "images": [
            {"name": image, "newName": here, "newTag": tag}
            for image in ("example.org/shoal/operator", "gcr.io/etcd-development/etcd")
        ],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    objects = render(folder)
    changes = [change(objects, pods, programs) for pods in templates(objects)]
    if any(each["kind"] == "Namespace" for each in objects):
        changes.append(ADMITS_MOUNTS)
    patches = [{"patch": json.dumps(each)} for each in changes]
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization | {"patches": patches}))
    return folder


ADMITS_MOUNTS = {
    "apiVersion": "v1",
    "kind": "Namespace",
    "metadata": {
        "name": SYSTEM,
        "labels": {f"pod-security.kubernetes.io/{each}": "privileged" for each in ("enforce", "warn")},
    },
}


def change(objects: list[dict[str, Any]], name: str, programs: Path) -> dict[str, Any]:
    """Return the patch of a pod template: image policy, mounts and PATH."""
    (found,) = [each for each in objects if each["metadata"]["name"] == name and each["kind"] in KINDS]
    (container,) = templates(objects)[name]["spec"]["containers"]
    if container["command"][0] == "python":
        volumes, inside = mounts()
        path = str(Path(sys.executable).parent)
    else:
        volumes = [{"name": "programs", "hostPath": {"path": str(programs)}}]
        inside = [{"name": "programs", "mountPath": PROGRAMS, "readOnly": True}]
        path = PROGRAMS
    more = {"name": container["name"], "imagePullPolicy": "Never", "volumeMounts": inside,
            "env": [{"name": "PATH", "value": path}]}  # fmt: skip
    spec: dict[str, Any] = {"template": {"spec": {"containers": [more], "volumes": volumes}}}
    if found["kind"] == "CronJob":
        spec = {"jobTemplate": {"spec": spec}}
    return {
        "apiVersion": found["apiVersion"],
        "kind": found["kind"],
        "metadata": {"name": name, "namespace": SYSTEM},
        "spec": spec,
    }


KINDS = ("Deployment", "StatefulSet", "Job", "CronJob")


def open_to_all(folder: Path) -> None:
    """Make a folder readable for all users, as containers run as another one; permissions above a mounted folder do not matter."""
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
