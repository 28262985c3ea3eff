"""The rendered manifests of deploy/, and what the tests derive from them for processes of this machine."""

from __future__ import annotations

import base64
import itertools
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import binaries

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
OVERLAYS = sorted(path.name for path in (DEPLOY / "overlays").iterdir())
SYSTEM = "shoal-system"


def render(folder: Path) -> list[dict[str, Any]]:
    """Return the objects that ``kubectl apply -k`` would apply."""
    done = subprocess.run(
        [str(binaries.path("kubectl")), "kustomize", str(folder)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "kustomize has a warning"
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def overlay(name: str) -> list[dict[str, Any]]:
    return render(DEPLOY / "overlays" / name)


def find(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def templates(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return name -> pod template of every object that creates pods."""
    found = {}
    for each in objects:
        spec = each.get("spec") or {}
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "containers" in (spec.get("template") or {}).get("spec", {}):
            found[each["metadata"]["name"]] = spec["template"]
    return found


def arguments(objects: list[dict[str, Any]], name: str) -> list[str]:
    """Return the command line of the pod's container."""
    (container,) = templates(objects)[name]["spec"]["containers"]
    return [*container["command"], *container["args"]]


def rights(objects: list[dict[str, Any]], account: str) -> set[tuple[str, str, str]]:
    """Return (group, resource, verb) of everything that is granted to an account of shoal-system."""
    roles = {(each["kind"], each["metadata"]["name"]): each for each in objects if each["kind"].endswith("Role")}
    granted = set()
    for each in objects:
        subjects = [{"kind": "ServiceAccount", "name": account, "namespace": SYSTEM}]
        if each["kind"].endswith("RoleBinding") and each["subjects"] == subjects:
            for rule in roles[each["roleRef"]["kind"], each["roleRef"]["name"]]["rules"]:
                granted |= set(itertools.product(rule["apiGroups"], rule["resources"], rule["verbs"]))
    return granted


def opened(secret: dict[str, Any], folder: Path) -> Path:
    """Write a Secret's entries to files, as a pod has them mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    for key, value in secret["data"].items():
        (folder / key).write_bytes(base64.b64decode(value))
    return folder


def etcd_command(
    objects: list[dict[str, Any]], member: int, folder: Path, ports: list[tuple[int, int, int]]
) -> list[str]:
    """Return a member's command line from the manifest, for this machine's loopback and this folder.

    Args:
        ports: Ports of each member for clients, peers and probes.
    """
    (container,) = templates(objects)["shoal-etcd"]["spec"]["containers"]
    (members,) = [each["value"] for each in container["env"] if each["name"] == "MEMBERS"]
    own = dict(zip(("2379", "2380", "2381"), ports[member], strict=True))

    def here(text: str) -> str:
        text = text.replace("$(MEMBERS)", members).replace("$(MEMBER)", f"shoal-etcd-{member}")
        text = re.sub(
            r"shoal-etcd-(\d)\.shoal-etcd-members\.shoal-system\.svc:(2379|2380)",
            lambda found: f"127.0.0.1:{ports[int(found[1])][int(found[2]) - 2379]}",
            text,
        )
        text = re.sub(r"0\.0\.0\.0:(\d+)", lambda found: f"127.0.0.1:{own[found[1]]}", text)
        return text.replace("/var/lib/etcd", str(folder / f"etcd-{member}")).replace(
            "/etc/shoal/etcd", str(folder / "server")
        )

    return [str(binaries.path("etcd")), *map(here, container["args"])]
