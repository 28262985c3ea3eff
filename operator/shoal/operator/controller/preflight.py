"""What only the API server can say about a job, before anything of it is made or changed."""

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
    """Asks without changing anything, and the same only once: a job is scaled more often than its pods change.

    Args:
        kube: The gateway.
    """

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._fine: dict[str, str] = {}
        """Of each job, which pods the API server had no words against."""

    def forget(self, uid: str) -> None:
        """The job is gone."""
        self._fine.pop(uid, None)

    async def refused(self, job: TrainingJob, identity: JobIdentity, seen: Observed) -> str:
        """Why a job cannot be taken as it is now, with a documented reason before a colon; empty: it can.

        Raises:
            KubeError: The API server was away for too long.
        """
        found = await asyncio.gather(
            self._taken(job, identity, seen), self._pods(job, identity), self._servers(job, identity, seen)
        )
        return next(filter(None, found), "")

    async def _taken(self, job: TrainingJob, identity: JobIdentity, seen: Observed) -> str:
        """Whether an object of somebody else's has a name that the job needs."""
        wanted = [
            *workloads.standing(job, identity),
            workloads.servers(job, identity, replicas=0),
            workloads.master(job, identity, replicas=0),
        ]
        keys = [(each["kind"], each["metadata"]["name"]) for each in wanted]
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

    async def _pods(self, job: TrainingJob, identity: JobIdentity) -> str:
        """What the API server says about the pods of the templates."""
        made = {
            "trainer": trainer_pod(job, identity, 0),
            "parameterServer": as_pod(job, server_pod(job, identity), names(job)["pserver"]),
            "master": as_pod(job, master_pod(job, identity), names(job)["master"]),
        }
        asked = _digest(made)
        if self._fine.get(identity.uid) == asked:
            return ""
        said = await asyncio.gather(*(self._pod(job, pod) for pod in made.values()))
        for part, words in zip(made, said, strict=True):
            if words:
                return f"{Reason.INVALID_TEMPLATE}: a pod made from spec.{part} is refused: {words}"
        if None not in said:
            self._fine[identity.uid] = asked
        return ""

    async def _pod(self, job: TrainingJob, pod: dict[str, Any]) -> str | None:
        """What is wrong with it; None: it is forbidden, for now."""
        # Its account may not be there yet, and its name may be: neither is what is asked.
        spec = {key: value for key, value in pod["spec"].items() if key != "serviceAccountName"}
        metadata = {key: value for key, value in pod["metadata"].items() if key != "name"}
        metadata |= {"generateName": f"{names(job)['trainer']}-"}
        try:
            await self._kube.create({**pod, "metadata": metadata, "spec": spec}, dry_run=True)
        except KubeInvalidError as error:
            return "; ".join(f"{field}: {text}" for field, text in error.causes) or str(error)
        except KubeForbiddenError:
            # A quota or a policy of the namespace: that may change, and is told of the pods themselves.
            return None
        return ""

    async def _servers(self, job: TrainingJob, identity: JobIdentity, seen: Observed) -> str:
        """Whether the parameter servers that exist can become what is wanted."""
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
    """A pod of a controller's template; what a claim template would mount is an empty folder."""
    metadata = template["metadata"] | {"name": name, "namespace": job.metadata.namespace}
    spec = dict(template["spec"])
    if SNAPSHOTS not in {each["name"] for each in spec["volumes"]}:
        spec["volumes"] = [*spec["volumes"], {"name": SNAPSHOTS, "emptyDir": {}}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
