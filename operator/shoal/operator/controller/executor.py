"""Carries out the actions that ``reconcile`` returned: in order, but those for pods concurrently.

An action that fails blocks only those that depend on it. Failures are returned: the status reports them, and the next sync
tries them again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from shoal.api import TrainingJob
from shoal.api.status import Reason
from shoal.kube import Kube, KubeConflictError, KubeError, KubeFencedError, KubeForbiddenError
from shoal.operator.cache.cache import APPLIED
from shoal.operator.controller.fair_semaphore import FairSemaphore
from shoal.operator.core.reconcile import (
    Action,
    Apply,
    CreatePod,
    DeletePod,
    ForgetRecords,
    MakeSecrets,
    PublishDesired,
    Remove,
    StopPod,
)
from shoal.operator.etcd.secrets import DerivedSecrets
from shoal.operator.resources import workloads
from shoal.operator.resources.manifests import applied_hash
from shoal.operator.resources.pods import JobIdentity, label, labels, secret_name
from shoal.operator.status.reasons import PodProblem
from shoal.operator.thread_pool import run_in_thread
from shoal.store import DesiredState, JobKeys, StoreError

__all__ = ["Executor", "Failure"]

_MOST_POD_REQUESTS: Final = 32
"""Concurrent requests for pods, over all jobs: the API server has other clients to serve. `shoal.kube.wire` limits all requests."""
_MOST_APPLIES: Final = 8
"""Concurrent requests for other objects: an API server allocates the addresses of Services one after the other, and requests that
wait for too long have to be repeated."""


_OF_PODS: Final = (CreatePod, DeletePod, StopPod)


def _ignore(*_: object) -> None:
    pass


def _optional(action: Action) -> bool:
    """Return whether a job runs without the object of an action."""
    kind = action.manifest["kind"] if isinstance(action, Apply) else action.kind if isinstance(action, Remove) else ""
    return kind == "PodDisruptionBudget"


@dataclass(frozen=True)
class Failure:
    """A failed action.

    Attributes:
        action: The action.
        error: Its error.
    """

    action: Action
    error: KubeError | StoreError

    @property
    def problem(self) -> PodProblem:
        """The failure as a pod problem of the job."""
        reason = self.error.reason if isinstance(self.error, KubeError) else ""
        role = "trainer" if isinstance(self.action, CreatePod | DeletePod) else ""
        return PodProblem(role, self.what, reason or "Unavailable", str(self.error))

    @property
    def what(self) -> str:
        """Kind and name of the action's object."""
        match self.action:
            case Apply(manifest) | CreatePod(manifest):
                return f"{manifest['kind']} {manifest['metadata']['name']}"
            case Remove(kind, name):
                return f"{kind} {name}"
            case DeletePod(name) | StopPod(name):
                return f"Pod {name}"
            case MakeSecrets():
                return "the job's Secrets"
            case ForgetRecords() | PublishDesired():
                return "the record for the master"


class Executor:
    """Carries out actions on the cluster and in etcd.

    Args:
        kube: Client of the API server.
        secrets: Derives the content of jobs' Secrets.
        publish_desired: Writes a job's desired state to etcd. Blocks; called in a thread.
        forget_records: Removes all records of a job from etcd, or its outcome only. Blocks; called in a thread. Default: does nothing.
        admit: Ensures that a job's user exists in etcd with this password. Blocks; called in a thread. None: etcd has no
            authentication.
        on_response: Called with each object of a response to a write: its event may be received much later.
    """

    def __init__(
        self,
        kube: Kube,
        *,
        secrets: DerivedSecrets,
        publish_desired: Callable[[TrainingJob, str, DesiredState], None],
        forget_records: Callable[[JobKeys, bool], None] = _ignore,
        admit: Callable[[JobKeys, str], None] | None = None,
        on_response: Callable[[Mapping[str, Any]], object] = _ignore,
    ) -> None:
        self._kube = kube
        self._derived = secrets
        self._publish_desired = publish_desired
        self._forget_records = forget_records
        self._admit = admit
        self._on_response = on_response
        self._pod_requests = FairSemaphore(_MOST_POD_REQUESTS)
        self._applies = asyncio.Semaphore(_MOST_APPLIES)

    async def carry_out(self, job: TrainingJob, identity: JobIdentity, actions: Sequence[Action]) -> list[Failure]:
        """Carry out actions and return the failures; the next sync repeats their actions.

        Pods wait for the write of the desired state: a trainer is drained before its pod is deleted.

        Raises:
            KubeFencedError: This process may not write any more. In an exception group if raised for a pod.
        """
        failed: list[Failure] = []

        async def attempt(action: Action) -> None:
            try:
                if isinstance(action, _OF_PODS):
                    await self._act_on_pod(job, identity.uid, action)
                else:
                    await self._act(job, identity, action)
            except KubeFencedError:
                raise
            except (KubeError, StoreError) as error:
                failed.append(Failure(action, error))

        pods = [action for action in actions if isinstance(action, _OF_PODS)]
        rest = [action for action in actions if not isinstance(action, _OF_PODS)]
        first = [action for action in rest if not _optional(action)]
        for action in first:
            await attempt(action)
        if not any(isinstance(each.action, PublishDesired) for each in failed):
            async with asyncio.TaskGroup() as group:
                for each in pods:
                    group.create_task(attempt(each))
        for action in rest:
            if _optional(action):
                await attempt(action)
        return failed

    async def _act(self, job: TrainingJob, identity: JobIdentity, action: Action) -> None:
        match action:
            case MakeSecrets():
                await self._secrets(job, identity)
            case Apply(manifest):
                notes = manifest["metadata"].get("annotations", {}) | {APPLIED: applied_hash(manifest)}
                metadata = manifest["metadata"] | {"annotations": notes}
                async with self._applies:
                    self._on_response(await self._kube.apply(manifest | {"metadata": metadata}))
            case Remove(kind, name):
                async with self._applies:
                    await self._kube.delete(kind, name, namespace=job.metadata.namespace)
            case PublishDesired(desired):
                await run_in_thread(lambda: self._publish_desired(job, identity.uid, desired))
            case ForgetRecords(outcome_only):
                keys = JobKeys(job.metadata.namespace, job.metadata.name, identity.uid)
                await run_in_thread(lambda: self._forget_records(keys, outcome_only))

    async def _act_on_pod(self, job: TrainingJob, uid: str, action: CreatePod | DeletePod | StopPod) -> None:
        # Jobs that grow at the same time get their next trainers in turn: among equal trainers the kube-scheduler preempts
        # those that started last, and would otherwise take all of them from one job.
        async with self._pod_requests.of(uid):
            if isinstance(action, StopPod):
                await self._kube.stop_pod(action.name, namespace=job.metadata.namespace, uid=action.uid)
                return
            if isinstance(action, DeletePod):
                grace = 0 if action.force else None
                namespace = job.metadata.namespace
                await self._kube.delete("Pod", action.name, namespace=namespace, uid=action.uid, grace_seconds=grace)
                return
            try:
                self._on_response(await self._kube.create(action.manifest))
            except KubeConflictError as error:
                if error.reason != "AlreadyExists":
                    raise
                await self._check_owner(action.manifest)

    async def _check_owner(self, pod: dict[str, Any]) -> None:
        """Check that an existing pod is the job's own, created before the cache had it.

        Raises:
            KubeForbiddenError: It is not of this job.
        """
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        found = await self._kube.list("Pod", namespace=namespace, name=name)
        if found and label(found[0], "uid") != label(pod, "uid"):
            owners = [f"{each['kind']} {each['name']}" for each in found[0]["metadata"].get("ownerReferences") or []]
            owner_text = f"belongs to {', '.join(owners)}" if owners else "is not of this job"
            message = f"Pod {name} exists and {owner_text}; remove it, or give the job another name"
            raise KubeForbiddenError(message, reason=Reason.NAME_TAKEN)

    async def _secrets(self, job: TrainingJob, identity: JobIdentity) -> None:
        """Ensure the job's user in etcd, and then the Secrets: the master logs in with one of them."""
        keys = JobKeys(job.metadata.namespace, job.metadata.name, identity.uid)
        admit = self._admit
        if admit is not None:
            await run_in_thread(lambda: admit(keys, self._derived.password(identity.uid)))
        for what, content in self._derived.secrets(keys).items():
            await self._secret(job, identity, secret_name(job, identity, what), content)

    async def _secret(self, job: TrainingJob, identity: JobIdentity, name: str, content: Mapping[str, str]) -> None:
        """Ensure that a Secret of this name exists."""
        metadata = {
            "name": name,
            "namespace": job.metadata.namespace,
            "labels": labels(job, identity, "secret"),
            "ownerReferences": [workloads.owner(job, identity)],
        }
        made = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "immutable": True, "stringData": content}
        try:
            await self._kube.create(made)
        except KubeConflictError as error:
            if error.reason != "AlreadyExists":
                raise
