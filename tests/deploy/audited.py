"""A control plane with an audit log of the requests of Shoal's own accounts."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import yaml

from tests.cluster.control_plane import ControlPlane
from tests.cluster.parts import CONTROL, Layout, Part
from tests.deploy.rendered import SYSTEM

API_SERVER = CONTROL["kube-apiserver"]
POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "userGroups": [f"system:serviceaccounts:{SYSTEM}"]}, {"level": "None"}],
}


@dataclass(frozen=True)
class Asked:
    """One request in the audit log."""

    group: str
    resource: str
    verb: str
    namespace: str
    code: int


def command(layout: Layout) -> list[str]:
    policy = layout.folder / "audit.yaml"
    policy.write_text(yaml.safe_dump(POLICY))
    return [
        *API_SERVER.command(layout),
        f"--audit-policy-file={policy}",
        f"--audit-log-path={layout.folder / 'audit.log'}",
        # Some clusters enable this plugin; blockOwnerDeletion in an owner reference then needs a right of its own.
        "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
    ]


class Audited(ControlPlane):
    """A control plane with three nodes, and volumes enough for etcd in all these tests."""

    PARTS: ClassVar[Mapping[str, Part]] = {**CONTROL, "kube-apiserver": replace(API_SERVER, command=command)}

    def start(self) -> None:
        super().start()
        self.add_nodes(3)
        self.add_volumes(20, size="8Gi")

    def asked(self, account: str) -> list[Asked]:
        """Return all requests of an account of shoal-system, without the discovery requests that every account may make."""
        found = []
        for line in (self.folder / "audit.log").read_text().splitlines():
            event = json.loads(line)
            what = event.get("objectRef")
            if event["user"]["username"] != f"system:serviceaccount:{SYSTEM}:{account}" or what is None:
                continue
            resource = "/".join(part for part in (what.get("resource"), what.get("subresource")) if part)
            code = event.get("responseStatus", {}).get("code", 0)
            found.append(Asked(what.get("apiGroup", ""), resource, event["verb"], what.get("namespace", ""), code))
        return found

    def kubeconfig_of(self, account: str, folder: Path) -> Path:
        """Write the kubeconfig of an account of shoal-system, which has the rights of its pods only."""
        token = self.kubectl("create", "token", account, "-n", SYSTEM).strip()
        config = yaml.safe_load(self.kubeconfig.read_text())
        config["users"] = [{"name": "admin", "user": {"token": token}}]
        file = folder / f"{account}.kubeconfig"
        file.write_text(yaml.safe_dump(config))
        file.chmod(0o600)
        return file

    def apply(self, folder: Path) -> tuple[str, str]:
        """Run ``kubectl apply -k`` and return its output and its warnings."""
        done = subprocess.run(
            [str(self.folder / "bin" / "kubectl"), "--kubeconfig", str(self.kubeconfig), "apply", "-k", str(folder),
             "--server-side", "--validate=strict"],
            check=False, capture_output=True, text=True, env={**os.environ, "HOME": str(self.folder)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr
