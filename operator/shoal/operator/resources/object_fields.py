"""What objects of the cluster say about themselves: plain questions to manifests. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from shoal.operator.core.field_ownership import fields_of
from shoal.operator.resources.node_affinity import preferred_node_of, with_preferred_nodes
from shoal.operator.resources.pods import label

__all__ = [
    "condition",
    "controlled",
    "deleting",
    "is_pod_of",
    "moment_of",
    "newer",
    "own_container",
    "phase_of",
    "place_of",
    "ready",
    "revision_of",
    "same",
    "slim",
    "unreachable",
    "without",
]

Manifest = Mapping[str, Any]
Place = tuple[str, str]
"""Namespace and name."""

_CONTROLLERS: Final = {"trainer": "TrainingJob", "pserver": "StatefulSet", "master": "ReplicaSet"}
"""Whose the pods of each role are."""
_METADATA: Final = (
    "name", "namespace", "uid", "labels", "annotations", "ownerReferences", "deletionTimestamp", "resourceVersion",
)  # fmt: skip
_SPEC: Final = ("nodeName", "priorityClassName")
_STATUS: Final = ("phase", "reason", "message", "conditions", "initContainerStatuses", "containerStatuses")


def slim(manifest: Manifest) -> Manifest:
    """An object without what nobody here asks for: thousands of them are kept."""
    metadata = {key: manifest["metadata"][key] for key in _METADATA if key in manifest["metadata"]}
    status, spec = manifest.get("status") or {}, manifest.get("spec") or {}
    if manifest["kind"] == "PersistentVolumeClaim":
        classless = spec.get("storageClassName") is None and status.get("phase") == "Pending"
        return {"metadata": metadata, "classless": classless}
    if manifest["kind"] != "Pod":
        return {"metadata": metadata, "fields": fields_of(manifest)}
    # Once a pod is bound, where it was wanted is of no interest.
    wish = (
        {}
        if spec.get("nodeName")
        else with_preferred_nodes({"spec": {}}, filter(None, [preferred_node_of(manifest)]))["spec"]
    )
    return {
        "metadata": without(metadata, "annotations"),
        "spec": {key: spec[key] for key in _SPEC if key in spec} | wish,
        "status": {key: status[key] for key in _STATUS if key in status},
    }


def same(before: Manifest, after: Manifest, *, but: str = "") -> bool:
    """Whether two versions of an object are the same but for one field."""
    fields = (before.keys() | after.keys()) - {but, "metadata"}
    if any(before.get(each) != after.get(each) for each in fields):
        return False
    return without(before["metadata"], "resourceVersion") == without(after["metadata"], "resourceVersion")


def without(mapping: Manifest, key: str) -> dict[str, Any]:
    """A mapping but for one key."""
    return {name: value for name, value in mapping.items() if name != key}


def place_of(job: Manifest) -> Place:
    """Where a job is."""
    return job["metadata"].get("namespace", "default"), job["metadata"]["name"]


def is_pod_of(pod: Manifest, job: str, uid: str) -> bool:
    """Whether a pod is what its labels say: by its name and its controller.

    The garbage collector sees to it that an owner of a name has the uid of the one that has this name.
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
    """Whether a controller of this kind (and this one, where it is known) owns an object."""
    return any(
        each.get("controller") and (not kind or each.get("kind") == kind) and (not uid or each.get("uid") == uid)
        for each in manifest["metadata"].get("ownerReferences") or []
    )


def revision_of(manifest: Manifest) -> int:
    """Its resource version; 0: it has none."""
    text = str(manifest["metadata"].get("resourceVersion", ""))
    return int(text) if text.isdigit() else 0


def newer(one: Manifest, other: Manifest) -> bool:
    """Whether one is a later version of the same object."""
    same = one["metadata"].get("uid") == other["metadata"].get("uid")
    return same and revision_of(one) > revision_of(other)


def moment_of(text: object) -> datetime | None:
    """A time as the API server writes it, in UTC; None: it is none."""
    try:
        found = datetime.fromisoformat(str(text)) if text else None
        return found.astimezone(UTC) if found is not None and found.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def phase_of(pod: Manifest) -> str:
    """Of a pod."""
    return str((pod.get("status") or {}).get("phase", ""))


def deleting(pod: Manifest) -> bool:
    """Whether it is being deleted."""
    return pod["metadata"].get("deletionTimestamp") is not None


def condition(manifest: Manifest, kind: str) -> Manifest:
    """The condition of this type; empty: it has none."""
    conditions: list[Manifest] = (manifest.get("status") or {}).get("conditions") or []
    return next((each for each in conditions if each.get("type") == kind), {})


def own_container(pod: Manifest) -> Manifest:
    """The status of the container of a pod's role, which alone decides what becomes of the pod; empty: it has none yet."""
    containers: list[Manifest] = (pod.get("status") or {}).get("containerStatuses") or []
    return next((each for each in containers if each.get("name") == label(pod, "role")), {})


def ready(pod: Manifest) -> bool:
    """Whether the container of a pod's role is ready, whatever the others are.

    The cluster takes the condition away from pods of a node that is silent, whose containers look as they did.
    """
    found = condition(pod, "Ready")
    others = found.get("status") == "False" and found.get("reason") == "ContainersNotReady"
    return bool(found.get("status") == "True" or (others and own_container(pod).get("ready")))


def unreachable(node: Manifest) -> bool:
    """Whether nothing is heard of a node any more (its kubelet says NotReady itself when something else is wrong)."""
    taints = (node.get("spec") or {}).get("taints") or []
    tainted = any(each.get("key") == "node.kubernetes.io/unreachable" for each in taints)
    return tainted or condition(node, "Ready").get("status") == "Unknown"
