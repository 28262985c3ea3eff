"""Carries out what ``reconcile`` named: one job's actions in order, its pods side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from shoal.api import TrainingJob
from shoal.api.status import Reason
from shoal.kube import Kube, KubeConflictError, KubeForbiddenError
from shoal.operator import objects
from shoal.operator.aside import aside
from shoal.operator.pods import Identity, label, labels, secret_name
from shoal.operator.reconcile import Action, Apply, CreatePod, DeletePod, MakeSecrets, Tell
from shoal.operator.rendered import applied_hash
from shoal.operator.store import APPLIED
from shoal.operator.turns import Turns
from shoal.operator.vault import Vault
from shoal.store import JobKeys, Wanted

__all__ = ["Executor"]

_AT_ONCE: Final = 32
"""Requests for pods under way at a time, over all jobs: the API server has others to serve."""
_APPLIES_AT_ONCE: Final = 8
"""The same for all else: an API server gives Services their addresses one after the other, and who waits there too long has
to ask again."""


def _ignore(_manifest: Mapping[str, Any]) -> None:
    pass


class Executor:
    """Acts on the cluster and in etcd.

    Args:
        kube: The gateway.
        vault: What jobs' Secrets hold.
        tell: Writes what is wanted of a job into etcd; blocks, and is called in a thread.
        admit: Sees that a job's user with this password is in etcd; likewise. None: etcd lets everybody in.
        answered: Gets each object as the API server has it after a write: a watch may bring it much later.
    """

    def __init__(
        self,
        kube: Kube,
        *,
        vault: Vault,
        tell: Callable[[TrainingJob, str, Wanted], None],
        admit: Callable[[JobKeys, str], None] | None = None,
        answered: Callable[[Mapping[str, Any]], object] = _ignore,
    ) -> None:
        self._kube = kube
        self._vault = vault
        self._tell = tell
        self._admit = admit
        self._answered = answered
        self._room = Turns(_AT_ONCE)
        self._applies = asyncio.Semaphore(_APPLIES_AT_ONCE)

    async def carry_out(self, job: TrainingJob, identity: Identity, actions: Sequence[Action]) -> None:
        """Do it all, or up to the first that fails; what is left is named again by the next look.

        Raises:
            KubeError: The API server refused something, or was away for too long.
            StoreError: etcd did.
        """
        pods = [action for action in actions if isinstance(action, CreatePod | DeletePod)]
        for action in actions:
            if not isinstance(action, CreatePod | DeletePod):
                await self._one(job, identity, action)
        async with asyncio.TaskGroup() as group:
            for each in pods:
                group.create_task(self._pod(job, identity.uid, each))

    async def _one(self, job: TrainingJob, identity: Identity, action: Action) -> None:
        match action:
            case MakeSecrets():
                await self._secrets(job, identity)
            case Apply(manifest):
                notes = manifest["metadata"].get("annotations", {}) | {APPLIED: applied_hash(manifest)}
                metadata = manifest["metadata"] | {"annotations": notes}
                async with self._applies:
                    self._answered(await self._kube.apply(manifest | {"metadata": metadata}))
            case Tell(wanted):
                await aside(lambda: self._tell(job, identity.uid, wanted))

    async def _pod(self, job: TrainingJob, uid: str, action: CreatePod | DeletePod) -> None:
        # Of jobs that grow together each gets its next trainer in turn: of trainers that are alike the kube-scheduler evicts
        # those that started last, and would take all of them from one job.
        async with self._room.of(uid):
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
        found = await self._kube.get("Pod", name, namespace=namespace)
        if found is not None and label(found, "uid") != label(pod, "uid"):
            words = f"Pod {name} exists and is not of this job; remove it, or give the job another name"
            raise KubeForbiddenError(words, reason=Reason.NAME_TAKEN)

    async def _secrets(self, job: TrainingJob, identity: Identity) -> None:
        """The user before the Secret that lets the master in."""
        keys = JobKeys(job.metadata.namespace, job.metadata.name, identity.uid)
        admit = self._admit
        if admit is not None:
            await aside(lambda: admit(keys, self._vault.password(identity.uid)))
        for what, content in self._vault.secrets(keys).items():
            await self._secret(job, identity, secret_name(job, identity, what), content)

    async def _secret(self, job: TrainingJob, identity: Identity, name: str, content: Mapping[str, str]) -> None:
        """One of this name has this content."""
        metadata = {
            "name": name,
            "namespace": job.metadata.namespace,
            "labels": labels(job, identity, "secret"),
            "ownerReferences": [objects.owner(job, identity)],
        }
        made = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "immutable": True, "stringData": content}
        try:
            await self._kube.create(made)
        except KubeConflictError as error:
            if error.reason != "AlreadyExists":
                raise
