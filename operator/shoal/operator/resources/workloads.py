"""Builds all objects of a job except its trainers, from its manifest; each is applied as a whole. Pure."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Sequence
from typing import Any, Final

from shoal.api import TrainingJob
from shoal.operator.core.accepted_spec import ACCEPTED_KEY, text_of
from shoal.operator.resources.node_affinity import NODES, with_preferred_nodes
from shoal.operator.resources.pods import (
    GROUP,
    MASTER_PORT,
    OUTPUT_FOLDER,
    SERVER_PORT,
    SNAPSHOTS,
    TOKEN_VERSION,
    JobIdentity,
    labels,
    master_pod,
    names,
    own_labels,
    server_pod,
)

__all__ = ["budgets", "manifest_for_pods", "master", "owner", "permanent", "servers"]


def owner(job: TrainingJob, identity: JobIdentity) -> dict[str, Any]:
    """Return the owner reference by which objects are deleted with the job."""
    return {
        "apiVersion": job.api_version,
        "kind": job.kind,
        "name": job.metadata.name,
        "uid": identity.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def permanent(job: TrainingJob, identity: JobIdentity) -> list[dict[str, Any]]:
    """Return the objects that exist for as long as the job runs: ServiceAccount, ConfigMap, Services, budgets."""
    known = names(job)
    return [
        _object(
            job, identity, "v1", "ServiceAccount", known["account"], "account", {"automountServiceAccountToken": False}
        ),
        _object(
            job,
            identity,
            "v1",
            "ConfigMap",
            known["job"],
            "master",
            {"data": {"job.json": _job_file(job), ACCEPTED_KEY: text_of(job)}},
        ),
        _service(job, identity, "master", MASTER_PORT),
        _service(job, identity, "pserver", SERVER_PORT),
        *budgets(job, identity),
    ]


_MASTERS: Final = ("command", "strategy", "epochs", "seed", "checkpoint", "output")


def manifest_for_pods(job: TrainingJob) -> dict[str, Any]:
    """Return the manifest for the master: only the fields that it reads, as a change of the manifest restarts it.

    A relative `output.path` is on the claim.
    """
    mapping = job.to_mapping()
    spec = {key: value for key, value in mapping["spec"].items() if key in _MASTERS}
    spec["parameterServer"] = {"replicas": job.servers}
    if "runPolicy" in mapping["spec"] and "stepTimeout" in mapping["spec"]["runPolicy"]:
        spec["runPolicy"] = {"stepTimeout": mapping["spec"]["runPolicy"]["stepTimeout"]}
    output = job.spec.output
    if output is not None and output.volume_claim_name is not None:
        spec["output"]["path"] = posixpath.join(OUTPUT_FOLDER, output.path)
    metadata = {"name": job.metadata.name, "namespace": job.metadata.namespace}
    return mapping | {"metadata": metadata, "spec": spec}


def _job_file(job: TrainingJob) -> str:
    return json.dumps(manifest_for_pods(job), sort_keys=True)


def master(job: TrainingJob, identity: JobIdentity, *, replicas: int, nodes: Sequence[str] = ()) -> dict[str, Any]:
    """Return the master's Deployment: one pod at a time, though two would do no harm. For `nodes` see `servers`."""
    pod = master_pod(job, identity)
    # A master reads its manifest only when it starts.
    read = {f"{GROUP}/manifest": hashlib.sha256(_job_file(job).encode()).hexdigest()[:16]}
    pod["metadata"]["annotations"] = pod["metadata"].get("annotations", {}) | read
    spec = {
        "replicas": replicas,
        "strategy": {"type": "Recreate"},
        "selector": _selector(job, identity, "master"),
        "template": with_preferred_nodes(pod, nodes),
        "revisionHistoryLimit": 1,
    }
    made = _object(job, identity, "apps/v1", "Deployment", names(job)["master"], "master", {"spec": spec})
    made["metadata"]["annotations"] = {TOKEN_VERSION: identity.token}
    return _remembered(made, nodes)


def servers(job: TrainingJob, identity: JobIdentity, *, replicas: int, nodes: Sequence[str] = ()) -> dict[str, Any]:
    """Return the parameter servers' StatefulSet, with a claim for the snapshots of each server.

    Args:
        job: The job.
        identity: The job's identity on this cluster.
        replicas: Number of servers.
        nodes: Their preferred nodes when they were first created. An annotation stores them, as they must not change: a
            changed template causes a rollout.
    """
    part = job.spec.parameter_server
    assert part is not None
    spec: dict[str, Any] = {
        "replicas": replicas,
        "serviceName": names(job)["pserver"],
        "podManagementPolicy": "Parallel",
        "selector": _selector(job, identity, "pserver"),
        "template": with_preferred_nodes(server_pod(job, identity), nodes, together=True),
        "revisionHistoryLimit": 1,
        # The job owns the claims: they outlive the StatefulSet, and are deleted with the job.
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
    }
    if part.claim is not None:
        # A later job of the same name waits until claims with this label are deleted. A claim template is immutable.
        metadata = {
            "name": SNAPSHOTS,
            "labels": {f"{GROUP}/job": job.metadata.name},
            "ownerReferences": [owner(job, identity) | {"blockOwnerDeletion": False}],
        }
        spec["volumeClaimTemplates"] = [{"metadata": metadata, "spec": part.claim}]
    made = _object(job, identity, "apps/v1", "StatefulSet", names(job)["pserver"], "pserver", {"spec": spec})
    return _remembered(made, nodes)


def _remembered(made: dict[str, Any], nodes: Sequence[str]) -> dict[str, Any]:
    """Annotate an object with the preferred nodes of its pods."""
    if nodes:
        made["metadata"].setdefault("annotations", {})[NODES] = ",".join(nodes)
    return made


def budgets(job: TrainingJob, identity: JobIdentity) -> list[dict[str, Any]]:
    """Return the PodDisruptionBudgets: for the minimum of trainers, and for servers with snapshots in their pods."""
    if job.spec.run_policy.disruption_budget == "None":
        return []
    limits: dict[str, dict[str, Any]] = {"trainer": {"minAvailable": job.spec.trainer.min_replicas}}
    if job.spec.parameter_server is not None and job.spec.parameter_server.claim is None:
        limits["pserver"] = {"maxUnavailable": 0}
    return [
        _object(
            job,
            identity,
            "policy/v1",
            "PodDisruptionBudget",
            names(job)[role],
            role,
            {
                "spec": {
                    **limit,
                    "selector": _selector(job, identity, role),
                    "unhealthyPodEvictionPolicy": "AlwaysAllow" if role == "trainer" else "IfHealthyBudget",
                }
            },
        )
        for role, limit in limits.items()
    ]


def _service(job: TrainingJob, identity: JobIdentity, role: str, port: int) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "selector": _selector(job, identity, role)["matchLabels"],
        "ports": [{"port": port, "name": "shoal"}],
    }
    if role == "pserver":
        spec |= {"clusterIP": "None", "publishNotReadyAddresses": True}
    return _object(job, identity, "v1", "Service", names(job)[role], role, {"spec": spec})


def _selector(job: TrainingJob, identity: JobIdentity, role: str) -> dict[str, Any]:
    own = own_labels(job, identity, role)
    return {"matchLabels": {key: own[key] for key in ("shoal.dev/uid", "shoal.dev/role")}}


def _object(
    job: TrainingJob, identity: JobIdentity, version: str, kind: str, name: str, role: str, rest: dict[str, Any]
) -> dict[str, Any]:
    metadata = {
        "name": name,
        "namespace": job.metadata.namespace,
        "labels": labels(job, identity, role),
        "ownerReferences": [owner(job, identity)],
    }
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **rest}
