"""What a pod or a node says of itself beside what it asks for or has: whose it is, which version, what the scheduler thinks. Pure."""

from __future__ import annotations

from shoal.autoscaler.snapshot.resources import Manifest, part, parts

__all__ = ["CrewKey", "crew_of", "is_refused", "named_for", "revision_of"]

CrewKey = tuple[str, str]
"""A job's uid, and its namespace: nothing elsewhere is its own."""


def crew_of(manifest: Manifest, namespace: str) -> tuple[CrewKey | None, str]:
    """Whose pod it says it is, and in which role; a trainer is believed only what the garbage collector would believe."""
    metadata = part(manifest.get("metadata"))
    labels = part(metadata.get("labels"))
    uid, role = str(labels.get("shoal.dev/uid", "")), str(labels.get("shoal.dev/role", ""))
    if not uid or role not in {"trainer", "pserver", "master"}:
        return None, ""
    if role == "trainer":
        owner = next((each for each in parts(metadata.get("ownerReferences")) if each.get("controller")), {})
        if owner.get("kind") != "TrainingJob" or owner.get("uid") != uid:
            return None, ""
    return (uid, namespace), role


def is_refused(pod: Manifest) -> bool:
    """Whether the scheduler says that it finds no node for it."""
    return any(
        (each.get("type"), each.get("status"), each.get("reason")) == ("PodScheduled", "False", "Unschedulable")
        for each in parts(part(pod.get("status")).get("conditions"))
    )


def named_for(name: str, role: str, job: str) -> bool:
    """Whether a pod of a role, but no trainer, is called as a job's own are."""
    return name.startswith(f"{job}-{role}-")


def revision_of(metadata: Manifest) -> int:
    """Its resource version; 0: it has none."""
    text = str(metadata.get("resourceVersion") or "")
    return int(text) if text.isdecimal() else 0
