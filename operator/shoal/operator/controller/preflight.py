"""The preflight: server-side dry runs for a job, before any of its objects is created or changed."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

from shoal.api import TrainingJob
from shoal.api.status import Reason
from shoal.kube import Kube, KubeForbiddenError, KubeInvalidError
from shoal.operator.core.reconcile import Observed
from shoal.operator.resources import workloads
from shoal.operator.resources.manifests import applied_hash
from shoal.operator.resources.pods import SNAPSHOTS, JobIdentity, label, master_pod, names, server_pod, trainer_pod

__all__ = ["Preflight", "as_pod"]


class Preflight:
    """Runs the preflight once for each version of a job's pods: a job is scaled more often than its pods change.

    Args:
        kube: Client of the API server.
    """

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._passed: dict[str, str] = {}
        """UID of a job -> digest of the pods that the API server accepted."""

    def forget(self, uid: str) -> None:
        """Drop what is kept of a job that was deleted."""
        self._passed.pop(uid, None)

    async def refused(self, job: TrainingJob, identity: JobIdentity, seen: Observed) -> str:
        """Return why a job cannot be accepted, as a documented reason, a colon and a message; empty: it can.

        Raises:
            KubeError: The API server was unreachable for longer than the client retries.
        """
        found = await asyncio.gather(
            self._name_conflict(job, identity, seen),
            self._template_errors(job, identity),
            self._servers_error(job, identity, seen),
        )
        return next(filter(None, found), "")

    async def _name_conflict(self, job: TrainingJob, identity: JobIdentity, seen: Observed) -> str:
        """Return the error if an object that is not of this job has a name that the job needs; empty: no name is taken."""
        checked = [
            *workloads.permanent(job, identity),
            workloads.servers(job, identity, replicas=0),
            workloads.master(job, identity, replicas=0),
        ]
        keys = [(each["kind"], each["metadata"]["name"]) for each in checked]
        unknown = [key for key in keys if key not in seen.applied]
        found = await asyncio.gather(
            *(self._kube.get(kind, name, namespace=job.metadata.namespace) for kind, name in unknown)
        )
        for (kind, name), there in zip(unknown, found, strict=True):
            if there is not None and label(there, "uid") != identity.uid:
                return (
                    f"{Reason.NAME_TAKEN}: {kind} {name} exists and is not of this job; "
                    "remove it, or give the job another name"
                )
        return ""

    async def _template_errors(self, job: TrainingJob, identity: JobIdentity) -> str:
        """Return why the API server refuses a pod of one of the templates; empty: it accepts all."""
        made = {
            "trainer": trainer_pod(job, identity, 0),
            "parameterServer": as_pod(job, server_pod(job, identity), names(job)["pserver"]),
            "master": as_pod(job, master_pod(job, identity), names(job)["master"]),
        }
        digest = _digest(made)
        if self._passed.get(identity.uid) == digest:
            return ""
        errors = await asyncio.gather(*(self._pod_error(job, pod) for pod in made.values()))
        for part, error_text in zip(made, errors, strict=True):
            if error_text:
                return f"{Reason.INVALID_TEMPLATE}: a pod made from spec.{part} is refused: {error_text}"
        if None not in errors:
            self._passed[identity.uid] = digest
        return ""

    async def _pod_error(self, job: TrainingJob, pod: dict[str, Any]) -> str | None:
        """Return why a pod is invalid; empty: it is valid; None: it is valid, but forbidden for now."""
        # The service account may not exist yet, and a pod of this name may exist: the dry run is about neither.
        spec = {key: value for key, value in pod["spec"].items() if key != "serviceAccountName"}
        metadata = {key: value for key, value in pod["metadata"].items() if key != "name"}
        metadata |= {"generateName": f"{names(job)['trainer']}-"}
        try:
            await self._kube.create({**pod, "metadata": metadata, "spec": spec}, dry_run=True)
        except KubeInvalidError as error:
            return "; ".join(f"{field}: {text}" for field, text in error.causes) or str(error)
        except KubeForbiddenError:
            # By a quota or a policy of the namespace: that may change, and is reported as a pod problem.
            return None
        return ""

    async def _servers_error(self, job: TrainingJob, identity: JobIdentity, seen: Observed) -> str:
        """Return why the existing parameter servers cannot be changed to the wanted ones; empty: they can."""
        manifest = workloads.servers(job, identity, replicas=job.servers, nodes=seen.preferred.get("StatefulSet", ()))
        applied = seen.applied.get(("StatefulSet", names(job)["pserver"]))
        if applied is None or applied == applied_hash(manifest):
            return ""
        try:
            await self._kube.apply(manifest, dry_run=True)
        except KubeInvalidError as error:
            return f"{Reason.CANNOT_CHANGE}: spec.parameterServer: {error}"
        return ""


def _digest(pods: dict[str, dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(pods, sort_keys=True).encode()).hexdigest()


def as_pod(job: TrainingJob, template: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the pod of a controller's template; an emptyDir stands for the volume of a claim template."""
    metadata = template["metadata"] | {"name": name, "namespace": job.metadata.namespace}
    spec = dict(template["spec"])
    if SNAPSHOTS not in {each["name"] for each in spec["volumes"]}:
        spec["volumes"] = [*spec["volumes"], {"name": SNAPSHOTS, "emptyDir": {}}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
