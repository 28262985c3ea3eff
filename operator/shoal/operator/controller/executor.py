"""Carries out what ``reconcile`` named: one job's actions in order, its pods side by side.

An action that fails stops none that does not need it: what failed is handed back, to be said of the job and tried again.
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
from shoal.operator.thread_pool import run_in_thread
from shoal.store import DesiredState, JobKeys, StoreError

__all__ = ["Executor", "Failure"]

_AT_ONCE: Final = 32
"""Requests for pods under way at a time, over all jobs: the API server has others to serve."""
_APPLIES_AT_ONCE: Final = 8
"""The same for all else: an API server gives Services their addresses one after the other, and who waits there too long has
to ask again."""


_OF_PODS: Final = (CreatePod, DeletePod, StopPod)


def _ignore(_: object) -> None:
    pass


def _optional(action: Action) -> bool:
    """Whether a job runs without it."""
    kind = action.manifest["kind"] if isinstance(action, Apply) else action.kind if isinstance(action, Remove) else ""
    return kind == "PodDisruptionBudget"


@dataclass(frozen=True)
class Failure:
    """An action that failed.

    Attributes:
        action: It.
        error: Why.
    """

    action: Action
    error: KubeError | StoreError

    @property
    def what(self) -> str:
        """Kind and name of what it was about."""
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
    """Acts on the cluster and in etcd.

    Args:
        kube: The gateway.
        vault: What jobs' Secrets hold.
        tell: Writes what is wanted of a job into etcd; blocks, and is called in a thread.
        forget: Removes all records of a job from etcd; likewise.
        admit: Sees that a job's user with this password is in etcd; likewise. None: etcd lets everybody in.
        answered: Gets each object as the API server has it after a write: a watch may bring it much later.
    """

    def __init__(
        self,
        kube: Kube,
        *,
        vault: DerivedSecrets,
        tell: Callable[[TrainingJob, str, DesiredState], None],
        forget: Callable[[JobKeys], None] = _ignore,
        admit: Callable[[JobKeys, str], None] | None = None,
        answered: Callable[[Mapping[str, Any]], object] = _ignore,
    ) -> None:
        self._kube = kube
        self._vault = vault
        self._tell = tell
        self._forget = forget
        self._admit = admit
        self._answered = answered
        self._room = FairSemaphore(_AT_ONCE)
        self._applies = asyncio.Semaphore(_APPLIES_AT_ONCE)

    async def carry_out(self, job: TrainingJob, identity: JobIdentity, actions: Sequence[Action]) -> list[Failure]:
        """Do all that can be done; gives what failed, which is named again by the next look.

        Pods wait for the master's record: a trainer is drained before its pod is deleted.

        Raises:
            KubeFencedError: Nothing may be written any more; of pods, in a group.
        """
        failed: list[Failure] = []

        async def tried(action: Action) -> None:
            try:
                if isinstance(action, _OF_PODS):
                    await self._pod(job, identity.uid, action)
                else:
                    await self._one(job, identity, action)
            except KubeFencedError:
                raise
            except (KubeError, StoreError) as error:
                failed.append(Failure(action, error))

        pods = [action for action in actions if isinstance(action, _OF_PODS)]
        rest = [action for action in actions if not isinstance(action, _OF_PODS)]
        first = [action for action in rest if not _optional(action)]
        for action in first:
            await tried(action)
        if not any(isinstance(each.action, PublishDesired) for each in failed):
            async with asyncio.TaskGroup() as group:
                for each in pods:
                    group.create_task(tried(each))
        for action in rest:
            if _optional(action):
                await tried(action)
        return failed

    async def _one(self, job: TrainingJob, identity: JobIdentity, action: Action) -> None:
        match action:
            case MakeSecrets():
                await self._secrets(job, identity)
            case Apply(manifest):
                notes = manifest["metadata"].get("annotations", {}) | {APPLIED: applied_hash(manifest)}
                metadata = manifest["metadata"] | {"annotations": notes}
                async with self._applies:
                    self._answered(await self._kube.apply(manifest | {"metadata": metadata}))
            case Remove(kind, name):
                async with self._applies:
                    await self._kube.delete(kind, name, namespace=job.metadata.namespace)
            case PublishDesired(wanted):
                await run_in_thread(lambda: self._tell(job, identity.uid, wanted))
            case ForgetRecords():
                keys = JobKeys(job.metadata.namespace, job.metadata.name, identity.uid)
                await run_in_thread(lambda: self._forget(keys))

    async def _pod(self, job: TrainingJob, uid: str, action: CreatePod | DeletePod | StopPod) -> None:
        # Of jobs that grow together each gets its next trainer in turn: of trainers that are alike the kube-scheduler evicts
        # those that started last, and would take all of them from one job.
        async with self._room.of(uid):
            if isinstance(action, StopPod):
                await self._kube.stop_pod(action.name, namespace=job.metadata.namespace, uid=action.uid)
                return
            if isinstance(action, DeletePod):
                grace = 0 if action.force else None
                namespace = job.metadata.namespace
                await self._kube.delete("Pod", action.name, namespace=namespace, uid=action.uid, grace_seconds=grace)
                return
            try:
                self._answered(await self._kube.create(action.manifest))
            except KubeConflictError as error:
                if error.reason != "AlreadyExists":
                    raise
                await self._ours(action.manifest)

    async def _ours(self, pod: dict[str, Any]) -> None:
        """It exists, as a look that came too early would find; or somebody else's has its name.

        Raises:
            KubeForbiddenError: The latter.
        """
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        found = await self._kube.list("Pod", namespace=namespace, name=name)
        if found and label(found[0], "uid") != label(pod, "uid"):
            owners = [f"{each['kind']} {each['name']}" for each in found[0]["metadata"].get("ownerReferences") or []]
            whose = f"belongs to {', '.join(owners)}" if owners else "is not of this job"
            words = f"Pod {name} exists and {whose}; remove it, or give the job another name"
            raise KubeForbiddenError(words, reason=Reason.NAME_TAKEN)

    async def _secrets(self, job: TrainingJob, identity: JobIdentity) -> None:
        """The user before the Secret that lets the master in."""
        keys = JobKeys(job.metadata.namespace, job.metadata.name, identity.uid)
        admit = self._admit
        if admit is not None:
            await run_in_thread(lambda: admit(keys, self._vault.password(identity.uid)))
        for what, content in self._vault.secrets(keys).items():
            await self._secret(job, identity, secret_name(job, identity, what), content)

    async def _secret(self, job: TrainingJob, identity: JobIdentity, name: str, content: Mapping[str, str]) -> None:
        """One of this name has this content."""
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
