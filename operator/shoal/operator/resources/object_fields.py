"""Reads fields of Kubernetes objects. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from shoal.api.metadata import resource_version
from shoal.operator.core.field_ownership import fields_of
from shoal.operator.resources.node_affinity import preferred_node_of, with_preferred_nodes
from shoal.operator.resources.pods import label

__all__ = [
    "condition",
    "controlled",
    "deleting",
    "is_pod_of",
    "newer",
    "own_container",
    "parse_time",
    "phase_of",
    "place_of",
    "ready",
    "revision_of",
    "same",
    "unreachable",
    "without",
    "without_unread_fields",
]

Manifest = Mapping[str, Any]
Place = tuple[str, str]
"""Namespace and name of a job."""

_CONTROLLERS: Final = {"trainer": "TrainingJob", "pserver": "StatefulSet", "master": "ReplicaSet"}
"""Kind of the controller that owns the pods of each role."""
_METADATA: Final = (
    "name", "namespace", "uid", "labels", "annotations", "ownerReferences", "deletionTimestamp", "resourceVersion",
)  # fmt: skip
_SPEC: Final = ("nodeName", "priorityClassName")
_STATUS: Final = ("phase", "reason", "message", "conditions", "initContainerStatuses", "containerStatuses")


def without_unread_fields(manifest: Manifest) -> Manifest:
    """Return an object with only the fields that the operator reads: the cache keeps thousands of objects."""
    metadata = {key: manifest["metadata"][key] for key in _METADATA if key in manifest["metadata"]}
    status, spec = manifest.get("status") or {}, manifest.get("spec") or {}
    if manifest["kind"] == "PersistentVolumeClaim":
        classless = spec.get("storageClassName") is None and status.get("phase") == "Pending"
        return {"metadata": metadata, "classless": classless}
    if manifest["kind"] != "Pod":
        return {"metadata": metadata, "fields": fields_of(manifest)}
    # The preferred node of a pod is not needed once the pod is bound.
    affinity = (
        {}
        if spec.get("nodeName")
        else with_preferred_nodes({"spec": {}}, filter(None, [preferred_node_of(manifest)]))["spec"]
    )
    return {
        "metadata": without(metadata, "annotations"),
        "spec": {key: spec[key] for key in _SPEC if key in spec} | affinity,
        "status": {key: status[key] for key in _STATUS if key in status},
    }


def same(before: Manifest, after: Manifest, *, but: str = "") -> bool:
    """Return whether two versions of an object are equal, apart from one field and the resource version."""
    fields = (before.keys() | after.keys()) - {but, "metadata"}
    if any(before.get(each) != after.get(each) for each in fields):
        return False
    return without(before["metadata"], "resourceVersion") == without(after["metadata"], "resourceVersion")


def without(mapping: Manifest, key: str) -> dict[str, Any]:
    """Return a mapping without one key."""
    return {name: value for name, value in mapping.items() if name != key}


def place_of(job: Manifest) -> Place:
    """Return the namespace and the name of a job."""
    return job["metadata"].get("namespace", "default"), job["metadata"]["name"]


def is_pod_of(pod: Manifest, job: str, uid: str) -> bool:
    """Return whether a pod is the one that its labels claim, by its name and its controller.

    The garbage collector deletes a pod whose owner's UID is not that of the object with the owner's name.
    """
    called, role = pod["metadata"]["name"], label(pod, "role")
    owners = pod["metadata"].get("ownerReferences") or []
    owner: Manifest = next((each for each in owners if each.get("controller")), {})
    if owner.get("kind") != _CONTROLLERS.get(role):
        return False
    number = called.removeprefix(f"{job}-{role}-")
    if role == "trainer":
        known = number.isdigit() and number == label(pod, "index") and called == f"{job}-{role}-{int(number)}"
        return bool(known and owner.get("uid") == uid)
    if role == "pserver":
        return bool(owner.get("name") == f"{job}-{role}" and number.isdigit())
    return str(owner.get("name")).startswith(f"{job}-{role}-") and number != called


def controlled(manifest: Manifest, kind: str = "", *, uid: str = "") -> bool:
    """Return whether a controller of this kind, and with this UID if one is given, owns an object."""
    return any(
        each.get("controller") and (not kind or each.get("kind") == kind) and (not uid or each.get("uid") == uid)
        for each in manifest["metadata"].get("ownerReferences") or []
    )


def revision_of(manifest: Manifest) -> int:
    """Return the resource version of an object; 0: it has none."""
    return resource_version(manifest["metadata"])


def newer(one: Manifest, other: Manifest) -> bool:
    """Return whether one is a later version of the same object than the other."""
    same = one["metadata"].get("uid") == other["metadata"].get("uid")
    return same and revision_of(one) > revision_of(other)


def parse_time(text: object) -> datetime | None:
    """Parse a time in the API server's format, to UTC; None: the text is no time."""
    try:
        found = datetime.fromisoformat(str(text)) if text else None
        return found.astimezone(UTC) if found is not None and found.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def phase_of(pod: Manifest) -> str:
    """Return the phase of a pod; empty: it has none yet."""
    return str((pod.get("status") or {}).get("phase", ""))


def deleting(pod: Manifest) -> bool:
    """Return whether a pod is being deleted."""
    return pod["metadata"].get("deletionTimestamp") is not None


def condition(manifest: Manifest, kind: str) -> Manifest:
    """Return the condition of this type; empty: the object has none."""
    conditions: list[Manifest] = (manifest.get("status") or {}).get("conditions") or []
    return next((each for each in conditions if each.get("type") == kind), {})


def own_container(pod: Manifest) -> Manifest:
    """Return the status of the role's container, which alone decides the pod's state; empty: it has none yet."""
    containers: list[Manifest] = (pod.get("status") or {}).get("containerStatuses") or []
    return next((each for each in containers if each.get("name") == label(pod, "role")), {})


def ready(pod: Manifest) -> bool:
    """Return whether the container of a pod's role is ready, whatever other containers report.

    The cluster sets the condition Ready to False on pods of an unreachable node; their container statuses stay as they were.
    """
    found = condition(pod, "Ready")
    others = found.get("status") == "False" and found.get("reason") == "ContainersNotReady"
    return bool(found.get("status") == "True" or (others and own_container(pod).get("ready")))


def unreachable(node: Manifest) -> bool:
    """Return whether the cluster has lost contact to a node; a kubelet that has another problem reports NotReady itself."""
    taints = (node.get("spec") or {}).get("taints") or []
    tainted = any(each.get("key") == "node.kubernetes.io/unreachable" for each in taints)
    return tainted or condition(node, "Ready").get("status") == "Unknown"
