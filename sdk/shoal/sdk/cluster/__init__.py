"""Jobs on a cluster, by way of its API server alone: no etcd, and no connection to a job's processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from shoal.api.metric_series import METRICS_KEY, metrics_name
from shoal.api.plan import PLAN_KEY, PLAN_NAME, Plan
from shoal.kube import Kube, KubeConflictError, KubeError, KubeForbiddenError, KubeUnreachableError, Listed, follow
from shoal.sdk.backend import Failure, JobKey, LogOptions
from shoal.sdk.cluster import conversion
from shoal.sdk.cluster.fetch import fetch_file
from shoal.sdk.cluster.logs import last_lines, read_logs
from shoal.sdk.cluster.translation import translated, translation
from shoal.sdk.errors import (
    AlreadyExistsError,
    FetchError,
    InvalidJobError,
    JobDeletedError,
    NotFoundError,
    ShoalError,
)
from shoal.sdk.manifests import Submission
from shoal.sdk.sources import Sources, config_map, mounted
from shoal.sdk.types import Event, JobStatus, LogLine, Member, SizeChange

__all__ = ["ClusterBackend"]

_KIND: Final = "TrainingJob"
_MANAGER: Final = "shoal-sdk"
_UNAUTHORIZED: Final = 401
_UNREACHABLE_SECONDS: Final = 300.0
"""Time without an API server after which a watch gives up. Seconds."""
_CONFLICT_TRIES: Final = 5
_CONFLICT_SECONDS: Final = 0.5
TIMEOUT_SECONDS = 30.0
"""Time for which a request is repeated while the API server does not answer. Seconds."""
_LAST_LINES: Final = 20

T = TypeVar("T")


class ClusterBackend:
    """Jobs of one namespace of a cluster.

    Args:
        namespace: Namespace of the jobs. Default: None, that of the kubeconfig's context, or of this pod.
        context: Context of the kubeconfig. Default: None, the current one.
        kubeconfig: Path of the kubeconfig. Default: None, the path that kubectl uses.
        manager: Field manager of changes. Default: ``shoal-sdk``.
    """

    def __init__(
        self,
        *,
        namespace: str | None = None,
        context: str | None = None,
        kubeconfig: str | Path | None = None,
        manager: str = _MANAGER,
    ) -> None:
        self._named_namespace = namespace
        self._context = context
        self._kubeconfig = str(kubeconfig) if kubeconfig is not None else None
        self._manager = manager
        self._kube: Kube | None = None
        self._connecting = asyncio.Lock()

    # --- The connection ---

    async def kube(self) -> Kube:
        """Return the client of the API server; the first call connects."""
        async with self._connecting:
            if self._kube is None:
                with translated("the cluster"):
                    self._kube = await Kube.connect(
                        kubeconfig=self._kubeconfig,
                        context=self._context,
                        manager=self._manager,
                        timeout_seconds=TIMEOUT_SECONDS,
                    )
            return self._kube

    async def close(self) -> None:
        """Close all connections."""
        if self._kube is not None:
            await self._kube.close()
            self._kube = None

    async def _call(self, what: str, work: Callable[[Kube], Awaitable[T]], *, namespace: str = "") -> T:
        """Run requests; with credentials that were renewed in the kubeconfig, they are run again once."""
        kube = await self.kube()
        with translated(what, namespace=namespace):
            try:
                return await work(kube)
            except KubeForbiddenError as error:
                if error.status != _UNAUTHORIZED:
                    raise
        await self.close()
        kube = await self.kube()
        with translated(what, namespace=namespace):
            return await work(kube)

    async def _namespace(self) -> str:
        return self._named_namespace or (await self.kube()).namespace

    def key(self, name: str) -> JobKey:
        """Return the identity of a job by its name; the namespace may be unknown before the first request."""
        return JobKey(name, self._named_namespace or "")

    async def _placed(self, key: JobKey) -> JobKey:
        return key if key.namespace else JobKey(key.name, await self._namespace(), key.uid)

    # --- Submitting ---

    async def submit(self, submission: Submission) -> JobKey:
        """Create a job, and after it the ConfigMap of its sources, which belongs to it."""
        manifest = await self._manifest(submission)
        namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
        created = await self._call(
            f"job {namespace}/{name}", lambda kube: self._create(kube, manifest), namespace=namespace
        )
        key = JobKey(name, namespace, created["metadata"]["uid"])
        if submission.sources is not None:
            try:
                await self._ship(submission.sources, created, key)
            except BaseException:
                # Without its sources the job would wait for ever.
                await self._remove(key)
                raise
        return key

    async def _manifest(self, submission: Submission) -> dict[str, Any]:
        mapping = submission.job.to_mapping()
        if submission.job.spec.image is None and submission.sources is None and not _has_image(mapping):
            raise InvalidJobError("spec.image: is missing; name the image that has the script, or give script=")
        if submission.sources is not None:
            output = submission.job.spec.output
            if output is not None and output.volume_claim_name is None:
                text = "a file in the pod would be lost with it; name a PersistentVolumeClaim by output_claim="
                raise InvalidJobError(f"output: {text}")
            mapping = mounted(mapping, submission.sources)
        namespace = self._named_namespace or mapping["metadata"].get("namespace") or await self._namespace()
        return {**mapping, "metadata": {**mapping["metadata"], "namespace": namespace}}

    async def _create(self, kube: Kube, manifest: dict[str, Any]) -> dict[str, Any]:
        """Create a job; an answer that was lost is found by the request's own mark."""
        try:
            return await kube.create(manifest)
        except KubeConflictError as error:
            if error.reason != "AlreadyExists":
                raise
            metadata = manifest["metadata"]
            raise AlreadyExistsError(
                f"job {metadata['namespace']}/{metadata['name']} exists already; choose another name=, or delete it"
            ) from None

    async def _ship(self, sources: Sources, job: Mapping[str, Any], key: JobKey) -> None:
        manifest = config_map(sources, job)
        name = manifest["metadata"]["name"]

        async def create(kube: Kube) -> None:
            for attempt in range(_CONFLICT_TRIES):
                try:
                    await kube.create(manifest)
                except KubeConflictError:
                    found = await kube.get("ConfigMap", name, namespace=key.namespace)
                    owners = (found or {}).get("metadata", {}).get("ownerReferences") or []
                    if any(each.get("uid") == key.uid for each in owners):
                        return  # it was created by an attempt whose answer was lost
                    if found is not None:
                        # It belongs to a deleted job of the same name, and the garbage collector has not removed it yet.
                        await kube.delete("ConfigMap", name, namespace=key.namespace, uid=found["metadata"]["uid"])
                    if attempt == _CONFLICT_TRIES - 1:
                        raise
                    await asyncio.sleep(_CONFLICT_SECONDS)
                else:
                    return

        await self._call(f"the sources of job {key}", create, namespace=key.namespace)

    async def _remove(self, key: JobKey) -> None:
        kube = await self.kube()
        try:
            await kube.delete(_KIND, key.name, namespace=key.namespace, uid=key.uid)
        except KubeError:
            return

    async def dry_run(self, submission: Submission) -> dict[str, Any]:
        """Return the manifest as the API server would store it, after its validation."""
        manifest = await self._manifest(submission)
        namespace = manifest["metadata"]["namespace"]
        found = await self._call(
            f"job {namespace}/{manifest['metadata']['name']}",
            lambda kube: kube.create(manifest, dry_run=True),
            namespace=namespace,
        )
        for key in ("uid", "creationTimestamp", "generation", "managedFields", "resourceVersion"):
            found["metadata"].pop(key, None)
        return found

    # --- Reading ---

    async def _get(self, key: JobKey) -> dict[str, Any]:
        key = await self._placed(key)
        found = await self._call(
            f"job {key}", lambda kube: kube.get(_KIND, key.name, namespace=key.namespace), namespace=key.namespace
        )
        if found is None:
            # A GET of a kind that the cluster does not have is answered like that of an object that does not exist.
            await self._call("TrainingJobs", lambda kube: kube.listing(_KIND, namespace=key.namespace, name=key.name))
            raise NotFoundError(f"job {key} does not exist; `shoal list -A` shows the jobs of all namespaces")
        if key.uid and found["metadata"]["uid"] != key.uid:
            raise NotFoundError(f"job {key} was deleted, and another job has its name now")
        return found

    async def status(self, key: JobKey) -> JobStatus:
        """Return the state of a job."""
        return conversion.job_status(await self._get(key))

    async def list_jobs(self, *, labels: Mapping[str, str], all_namespaces: bool) -> list[JobStatus]:
        """Return the state of all jobs of the namespace, or of all namespaces."""
        namespace = "" if all_namespaces else await self._namespace()
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        found = await self._call(
            f"jobs of namespace {namespace}" if namespace else "jobs of all namespaces",
            lambda kube: kube.list(_KIND, namespace=namespace, selector=selector),
            namespace=namespace,
        )
        return [conversion.job_status(each) for each in found]

    async def watch(self, key: JobKey) -> AsyncIterator[JobStatus]:
        """Yield the state of a job, and again after each change, until the job ends."""
        key = await self._placed(key)
        last: JobStatus | None = None
        async with aclosing(self._manifests(key)) as manifests:  # type: ignore[type-var]
            async for manifest in manifests:
                if manifest is None or (key.uid and manifest["metadata"]["uid"] != key.uid):
                    if last is None and not key.uid:
                        raise NotFoundError(f"job {key} does not exist")
                    then = "another job has its name now" if manifest is not None else "it does not exist any more"
                    was = f"; it was {last.state.value} at {last.progress.samples:,} samples" if last else ""
                    raise JobDeletedError(f"job {key} was deleted, {then}{was}")
                key = JobKey(key.name, key.namespace, manifest["metadata"]["uid"])
                status = conversion.job_status(manifest)
                if status != last:
                    last = status
                    yield status
                if status.is_ended:
                    return

    async def _manifests(self, key: JobKey) -> AsyncIterator[dict[str, Any] | None]:
        """Yield the versions of an object; None when it does not exist."""
        await self._get(JobKey(key.name, key.namespace))
        kube = await self.kube()
        try:
            changes = follow(kube, _KIND, namespace=key.namespace, name=key.name, ends=_ends)
            async with aclosing(changes):
                async for change in changes:
                    if isinstance(change, Listed):
                        yield change.items[0] if change.items else None
                    else:
                        yield None if change.deleted else change.manifest
        except KubeError as error:
            raise translation(error, f"job {key}", namespace=key.namespace) from error

    async def members(self, key: JobKey) -> list[Member]:
        """Return the processes of a job, by role and index."""
        key = await self._placed(key)
        pods = await self._pods(key)
        return sorted((conversion.member(each, key.name) for each in pods), key=_by_role)

    async def _pods(self, key: JobKey) -> list[dict[str, Any]]:
        uid = key.uid or (await self._get(key))["metadata"]["uid"]
        return await self._call(
            f"pods of job {key}",
            lambda kube: kube.list("Pod", namespace=key.namespace, selector=f"shoal.dev/uid={uid}"),
            namespace=key.namespace,
        )

    async def events(self, key: JobKey) -> list[Event]:
        """Return the events of a job, the oldest first."""
        job = await self._get(key)
        metadata = job["metadata"]
        fields = f"involvedObject.kind={_KIND},involvedObject.uid={metadata['uid']}"
        found = await self._call(
            f"events of job {metadata['namespace']}/{metadata['name']}",
            lambda kube: kube.list("CoreEvent", namespace=metadata["namespace"], fields=fields),
            namespace=metadata["namespace"],
        )
        return sorted(map(conversion.event, found), key=lambda each: each.time)

    async def history(self, key: JobKey) -> list[SizeChange]:
        """Return the last changes of the number of trainers, from the job's status."""
        return conversion.history(await self._get(key))

    async def metrics(self, key: JobKey) -> list[dict[str, Any]]:
        """Return the values that the script logged, from the ConfigMap in which the operator keeps them."""
        key = await self._placed(key)
        found = await self._call(
            f"logged values of job {key}",
            lambda kube: kube.get("ConfigMap", metrics_name(key.name), namespace=key.namespace),
            namespace=key.namespace,
        )
        if found is None:
            await self._get(key)
            return []
        return list(msgspec.json.decode((found.get("data") or {}).get(METRICS_KEY, "[]")))

    async def logs(self, key: JobKey, options: LogOptions) -> AsyncIterator[LogLine]:
        """Yield lines of the logs of a job's pods."""
        job = await self._get(key)
        key = JobKey(job["metadata"]["name"], job["metadata"]["namespace"], job["metadata"]["uid"])
        try:
            async with aclosing(read_logs(await self.kube(), key, options, self._manifests(key))) as lines:  # type: ignore[type-var]
                async for line in lines:
                    yield line
        except KubeError as error:
            raise translation(error, f"logs of job {key}", namespace=key.namespace) from error

    async def failure(self, key: JobKey) -> Failure:
        """Return the process that failed last, with the last lines of its log."""
        key = await self._placed(key)
        found = conversion.failed_container(await self._pods(key), key.name)
        if found is None:
            return Failure()
        failure, pod, previous = found
        try:
            lines = await last_lines(await self.kube(), pod, key, failure.process, _LAST_LINES, previous=previous)
        except KubeError:
            lines = ()
        return Failure(failure.process, lines or failure.last_lines)

    # --- Changing ---

    async def scale(self, key: JobKey, *, replicas: int | None, low: int | None, high: int | None) -> None:
        """Pin the number of trainers (None: un-pin), or change its bounds."""
        bounds = (("minReplicas", low), ("maxReplicas", high))
        trainer: dict[str, int | None] = {name: value for name, value in bounds if value is not None}
        trainer = trainer or {"replicas": replicas}
        await self._change(key, {"spec": {"trainer": trainer}})

    async def suspend(self, key: JobKey, *, suspend: bool) -> None:
        """Suspend or resume a job."""
        await self._change(key, {"spec": {"suspend": suspend}})

    async def _change(self, key: JobKey, change: Mapping[str, Any]) -> None:
        key = await self._placed(key)
        try:
            await self._call(
                f"job {key}",
                lambda kube: kube.change(_KIND, key.name, change, uid=key.uid, namespace=key.namespace),
                namespace=key.namespace,
            )
        except ShoalError:
            # A refused change may be one of a job that does not exist (any more), which is the better message.
            await self._get(key)
            raise

    async def delete(self, key: JobKey) -> None:
        """Delete a job; the API server deletes its objects after it."""
        key = await self._placed(key)
        deleted = await self._call(
            f"job {key}",
            lambda kube: kube.delete(_KIND, key.name, namespace=key.namespace, uid=key.uid),
            namespace=key.namespace,
        )
        if not deleted:
            await self._get(key)  # raises the error with the reason

    # --- Results ---

    async def output(self, key: JobKey) -> str:
        """Return the path of the model file."""
        job = await self._get(key)
        output = (job["spec"].get("output") or {}).get("path")
        if not output:
            raise FetchError(f"job {key} has no spec.output; name the file, such as fetch_model('model.safetensors')")
        return str(output)

    async def fetch(self, key: JobKey, name: str, target: Path, on_progress: Callable[[int, int], None]) -> None:
        """Copy a file from the claim of the job's output, through a pod that exists for this copy only."""
        job = await self._get(key)
        await fetch_file(await self.kube(), job, name, target, on_progress)

    async def plan(self, namespace: str) -> Plan:
        """Return the autoscaler's last plan, from the namespace of Shoal's operator."""
        found = await self._call(
            f"plan in namespace {namespace}",
            lambda kube: kube.get("ConfigMap", PLAN_NAME, namespace=namespace),
            namespace=namespace,
        )
        if found is None:
            fix = "its operator may run elsewhere (namespace=), or without an autoscaler (deploy/overlays/autoscaler)"
            raise NotFoundError(f"no plan in namespace {namespace}: {fix}")
        try:
            return msgspec.json.decode(str((found.get("data") or {}).get(PLAN_KEY, "")), type=Plan)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ShoalError(f"the plan in {namespace} is of another version of Shoal: {error}") from None


def _ends(error: KubeError, seconds: float) -> bool:
    """Return whether a watch ends with an error: a missing permission, or an API server that is away for too long."""
    return not isinstance(error, KubeUnreachableError) or seconds > _UNREACHABLE_SECONDS


def _has_image(mapping: Mapping[str, Any]) -> bool:
    pod = ((mapping["spec"].get("trainer") or {}).get("template") or {}).get("spec") or {}
    return any(each.get("name") == "trainer" and each.get("image") for each in pod.get("containers") or [])


_ROLES: Final = ("master", "pserver", "trainer")


def _by_role(member: Member) -> tuple[int, int, str]:
    role, _, index = member.name.rpartition("-")
    return _ROLES.index(role) if role in _ROLES else len(_ROLES), int(index) if index.isdigit() else 0, member.name
