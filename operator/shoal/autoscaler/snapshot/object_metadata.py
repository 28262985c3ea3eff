"""Metadata and conditions of pods and nodes: the owning job, the resource version, the scheduler's refusal. Pure."""

from __future__ import annotations

from shoal.autoscaler.snapshot.resources import Manifest, part, parts

__all__ = ["JobKey", "is_refused", "job_of", "named_for"]

JobKey = tuple[str, str]
"""A job's uid and its namespace: pods in other namespaces are never the job's."""


def job_of(manifest: Manifest, namespace: str) -> tuple[JobKey | None, str]:
    """Return the job and the role of a pod; (None, ""): it is foreign.

    Labels decide for masters and parameter servers. A trainer must also have the job as its controller, which is what the
    garbage collector goes by.
    """
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
    """Return whether the scheduler reports that it finds no node for a pod."""
    return any(
        (each.get("type"), each.get("status"), each.get("reason")) == ("PodScheduled", "False", "Unschedulable")
        for each in parts(part(pod.get("status")).get("conditions"))
    )


def named_for(name: str, role: str, job: str) -> bool:
    """Return whether a pod's name is that of a job's pod of a role; for masters and parameter servers, not for trainers."""
    return name.startswith(f"{job}-{role}-")
