"""All pods of a namespace from one watch, with the times of their changes.

Two readers share it: the sampler of the experiment, once per second, and the stand-in for the masters of hollow jobs. The
stand-in would otherwise list all pods several times per second, on the cores that are measured.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import msgspec

from benchmarks.hollow import Api
from shoal.store import JobKeys
from tests.operator.standin import Masters

__all__ = ["WEB", "HollowMasters", "PodLog", "SeenPod"]

WEB = "web"


class _Metadata(msgspec.Struct, rename="camel"):
    name: str
    uid: str
    labels: dict[str, str] = {}
    deletion_timestamp: str = ""


class _Resources(msgspec.Struct):
    requests: dict[str, str] = {}


class _Container(msgspec.Struct):
    resources: _Resources = msgspec.field(default_factory=_Resources)


class _Spec(msgspec.Struct, rename="camel"):
    containers: list[_Container]
    node_name: str = ""


class _Condition(msgspec.Struct):
    type: str
    status: str
    reason: str = ""


class _Status(msgspec.Struct):
    phase: str = "Pending"
    conditions: list[_Condition] = []


class _Pod(msgspec.Struct):
    metadata: _Metadata
    spec: _Spec
    status: _Status = msgspec.field(default_factory=_Status)


class _List(msgspec.Struct):
    metadata: dict[str, Any]
    items: list[_Pod]


class _Event(msgspec.Struct):
    type: str
    object: _Pod


@dataclass(slots=True)
class SeenPod:
    """One pod. Times are seconds of the monotonic clock; 0 if the event has not happened.

    Attributes:
        name: Name of the pod.
        uid: Uid of the pod.
        role: trainer, pserver or master; web for a pod of the Deployment.
        job: Name of the job; empty for web.
        job_uid: Uid of the job; empty for web.
        cores: Requested CPU. Cores.
        created: Time when it was first seen.
        node: Node that it is bound to.
        phase: Phase in its status.
        ready: Whether its condition Ready is true.
        bound: Time when it was first seen with a node.
        ran: Time when it was first seen Running.
        leaving: Time when it was first seen with a deletion timestamp, ended, or deleted.
        deleting: Whether it has a deletion timestamp.
        preempted: Whether the scheduler preempted it.
    """

    name: str
    uid: str
    role: str
    job: str
    job_uid: str
    cores: int
    created: float
    node: str = ""
    phase: str = ""
    ready: bool = False
    bound: float = 0.0
    ran: float = 0.0
    leaving: float = 0.0
    deleting: bool = False
    preempted: bool = False

    @property
    def holds(self) -> bool:
        """Whether the pod occupies room on a node."""
        return bool(self.node) and self.phase not in {"Succeeded", "Failed"}


class PodLog:
    """Watches all pods of a namespace; an asynchronous context manager.

    Args:
        api: Client of the API server.
        namespace: Namespace of the pods.
    """

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self._path = f"/api/v1/namespaces/{namespace}/pods"
        self.there: dict[str, SeenPod] = {}
        """Existing pods, by uid."""
        self.past: list[SeenPod] = []
        """Deleted pods."""
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        revision = await self._list()
        self._task = asyncio.create_task(self._follow(revision))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    def all(self) -> list[SeenPod]:
        """Return all pods, existing and deleted."""
        return [*self.past, *self.there.values()]

    async def _list(self) -> str:
        async with self._api.session.get(self._path) as response:
            found = msgspec.json.decode(await response.read(), type=_List)
        for pod in found.items:
            self._saw(pod)
        for uid in set(self.there) - {pod.metadata.uid for pod in found.items}:
            self._gone(uid)
        return str(found.metadata["resourceVersion"])

    async def _follow(self, revision: str) -> None:
        decoder = msgspec.json.Decoder(type=_Event)
        while True:
            query = f"?watch=1&resourceVersion={revision}&timeoutSeconds=3000"
            rest = b""
            async with self._api.session.get(self._path + query, timeout=None) as response:
                async for piece in response.content.iter_any():
                    *lines, rest = (rest + piece).split(b"\n")
                    for line in lines:
                        event = decoder.decode(line)
                        self._saw(event.object)
                        if event.type == "DELETED":
                            self._gone(event.object.metadata.uid)
            revision = await self._list()

    def _saw(self, pod: _Pod) -> None:
        now, metadata = time.monotonic(), pod.metadata
        seen = self.there.get(metadata.uid)
        if seen is None:
            labels = metadata.labels
            cores = sum(int(each.resources.requests.get("cpu", "0")) for each in pod.spec.containers)
            seen = self.there[metadata.uid] = SeenPod(
                metadata.name, metadata.uid, labels.get("shoal.dev/role", WEB), labels.get("shoal.dev/job", ""),
                labels.get("shoal.dev/uid", ""), cores, now,
            )  # fmt: skip
        seen.node, seen.phase = pod.spec.node_name, pod.status.phase
        seen.ready = any(each.type == "Ready" and each.status == "True" for each in pod.status.conditions)
        seen.deleting = bool(metadata.deletion_timestamp)
        seen.preempted = any(each.reason == "PreemptionByScheduler" for each in pod.status.conditions)
        if seen.node and not seen.bound:
            seen.bound = now
        if seen.phase == "Running" and not seen.ran:
            seen.ran = now
        if (seen.deleting or seen.phase in {"Succeeded", "Failed"}) and not seen.leaving:
            seen.leaving = now

    def _gone(self, uid: str) -> None:
        pod = self.there.pop(uid)
        pod.leaving = pod.leaving or time.monotonic()
        self.past.append(pod)


class HollowMasters(Masters):
    """The tests' stand-in for masters, which reads the pods from a log; drained trainers exit after a delay.

    Args:
        api: Client of the API server.
        etcd: Endpoint of etcd.
        namespace: Namespace of the jobs.
        log: Log of the pods.
        grace_seconds: Time from the drain to the exit of a trainer. Seconds.
    """

    def __init__(self, api: Any, etcd: str, namespace: str, *, log: PodLog, grace_seconds: float) -> None:
        super().__init__(api, etcd, namespace)
        self._log = log
        self._grace = grace_seconds
        self._drained: dict[str, float] = {}

    def _look(self) -> None:
        jobs: dict[str, JobKeys] = {}
        pods: dict[str, list[Any]] = {}
        for seen in list(self._log.there.values()):
            if seen.role == WEB:
                continue
            if seen.job_uid not in jobs:
                jobs[seen.job_uid] = JobKeys(self.namespace, seen.job, seen.job_uid)
            pods.setdefault(seen.job_uid, []).append(_as_manifest(seen))
        self._jobs, self._pods = list(jobs.values()), pods

    def _end(self, pod: dict[str, Any]) -> None:
        drained = self._drained.setdefault(pod["metadata"]["uid"], time.monotonic())
        if time.monotonic() - drained >= self._grace:
            super()._end(pod)


def _as_manifest(seen: SeenPod) -> dict[str, Any]:
    """Return the fields of a pod's manifest that the stand-in reads."""
    metadata = {"name": seen.name, "uid": seen.uid, "labels": {"shoal.dev/role": seen.role}}
    if seen.deleting:
        metadata["deletionTimestamp"] = "now"
    ready = "True" if seen.ready and seen.phase == "Running" else "False"
    return {"metadata": metadata, "status": {"conditions": [{"type": "Ready", "status": ready}]}}
