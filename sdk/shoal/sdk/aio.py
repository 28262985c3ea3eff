"""The asynchronous client. The synchronous one of `client` has the same methods and drives this one."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from shoal.api import Duration, TrainingJob
from shoal.sdk.backend import Backend, JobKey, LogOptions
from shoal.sdk.errors import FetchError, InvalidJobError, JobFailedError, ShoalError, WaitTimeoutError
from shoal.sdk.manifests import submission
from shoal.sdk.types import (
    Event,
    JobStatus,
    LogLine,
    Member,
    ParameterServers,
    SizeChange,
    State,
    Trainers,
)

if TYPE_CHECKING:
    from shoal.api.plan import Plan

__all__ = ["AsyncClient", "AsyncJob"]


class AsyncClient:
    """A client of one namespace of a cluster, or of the jobs on this machine.

    Args:
        namespace: Namespace of the jobs. Default: None, that of the kubeconfig's context, or of this pod.
        context: Context of the kubeconfig. Default: None, the current one.
        kubeconfig: Path of the kubeconfig. Default: None, the path that kubectl uses; without one, the service account
            of this pod.
        backend: ``cluster``, or ``local`` for jobs on this machine. Default: ``cluster``.
        state: Folder of all jobs on this machine. Default: None, ``$SHOAL_STATE`` or the user's state folder.
    """

    def __init__(
        self,
        *,
        namespace: str | None = None,
        context: str | None = None,
        kubeconfig: str | Path | None = None,
        backend: Literal["cluster", "local"] = "cluster",
        state: str | Path | None = None,
    ) -> None:
        if backend == "local":
            if namespace or context or kubeconfig:
                raise ShoalError("namespace=, context= and kubeconfig= belong to a cluster; backend='local' has none")
            from shoal.sdk.local import LocalBackend  # noqa: PLC0415 - the other place's imports are not needed

            self._backend: Backend = LocalBackend(state)
        elif backend == "cluster":
            if state is not None:
                raise ShoalError("state= belongs to backend='local'; a cluster keeps the state of its jobs itself")
            from shoal.sdk.cluster import ClusterBackend  # noqa: PLC0415 - the other place's imports are not needed

            self._backend = ClusterBackend(namespace=namespace, context=context, kubeconfig=kubeconfig)
        else:
            raise ShoalError(f"backend={backend!r} is not known; write 'cluster' or 'local'")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._backend.close()

    async def submit(
        self,
        job: TrainingJob | None = None,
        *,
        manifest: str | Path | Mapping[str, Any] | None = None,
        script: str | Path | None = None,
        function: Callable[..., Any] | None = None,
        command: Sequence[str] | None = None,
        files: Sequence[str | Path] = (),
        arguments: Sequence[str] | Mapping[str, Any] | None = None,
        name: str | None = None,
        image: str | None = None,
        trainers: Trainers | int | str | None = None,
        parameter_servers: ParameterServers | int | None = None,
        epochs: int | None = None,
        seed: int | None = None,
        env: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        output: str | None = None,
        output_claim: str | None = None,
        priority: str | None = None,
        dry_run: bool = False,
    ) -> Any:
        """Create a job.

        What runs is one of `job`, `manifest`, `script`, `function` and `command`; everything else is an option of it.
        (One function, as its arguments are the interface.)

        Args:
            job: A TrainingJob.
            manifest: Path of a manifest in YAML or JSON, or its mapping.
            script: Path of a Python script, which is shipped with the job.
            function: Function that the job runs. Its source is shipped; it imports in its body what it needs.
            command: Command that the image contains, as a list of strings.
            files: Files and folders that are shipped with `script` or `function`; 900 KiB in all.
            arguments: Arguments of the script or command (list), or of the function (mapping).
            name: Name of the job. Default: derived from the script or function.
            image: Image of every role. Default: that of the manifest; for a script or function the trainer image of the
                installed version of Shoal.
            trainers: Number of trainers: `Trainers(min=2, max=8)`, ``"2:8"`` or 3. Default: 1, or the manifest's.
            parameter_servers: Number of parameter servers, or `ParameterServers`. Default: 1, or the manifest's.
            epochs: Number of epochs. Default: the script's.
            seed: Seed of the samples' order and of the initial model. Default: the script's.
            env: Environment variables of the trainers. Default: none.
            labels: Labels of the job. Default: none.
            annotations: Annotations of the job. Default: none.
            output: Path of the file that ``job.save`` writes. Default: none.
            output_claim: PersistentVolumeClaim for that file. Default: none.
            priority: Priority of the AutoscalerConfig. Default: none.
            dry_run: Validate only. Default: false.

        Returns:
            The job; with `dry_run` the manifest as a mapping.

        Raises:
            InvalidJobError: The job is invalid; its `problems` name the fields.
            AlreadyExistsError: There is a job of this name.
            ForbiddenError: The caller may not create jobs here.
            NotInstalledError: Shoal is not installed in the cluster.
            ClusterUnreachableError: The API server does not answer.
        """
        found = submission(
            job,
            manifest=manifest,
            script=script,
            function=function,
            command=command,
            files=files,
            arguments=arguments,
            name=name,
            image=image,
            trainers=trainers,
            parameter_servers=parameter_servers,
            epochs=epochs,
            seed=seed,
            env=env,
            labels=labels,
            annotations=annotations,
            output=output,
            output_claim=output_claim,
            priority=priority,
        )
        if dry_run:
            return await self._backend.dry_run(found)
        return AsyncJob(self._backend, await self._backend.submit(found))

    async def get(self, name: str) -> AsyncJob:
        """Return a job by its name.

        Raises:
            NotFoundError: There is no job of this name.
        """
        status = await self._backend.status(self._backend.key(name))
        return AsyncJob(self._backend, JobKey(status.name, status.namespace, status.uid))

    async def list(
        self,
        *,
        state: State | str | Iterable[State | str] | None = None,
        labels: Mapping[str, str] | None = None,
        all_namespaces: bool = False,
    ) -> list[JobStatus]:
        """Return the state of all jobs, by namespace and name.

        Args:
            state: Only jobs in this state, or in one of these. Default: all.
            labels: Only jobs with these labels. Default: all.
            all_namespaces: Whether jobs of all namespaces are returned. Default: false.
        """
        wanted = _states(state)
        found = await self._backend.list_jobs(labels=labels or {}, all_namespaces=all_namespaces)
        chosen = [each for each in found if wanted is None or each.state in wanted]
        return sorted(chosen, key=lambda each: (each.namespace, each.name))

    async def plan(self, *, namespace: str = "shoal-system") -> Plan:
        """Return the autoscaler's last plan.

        Args:
            namespace: Namespace of Shoal's operator. Default: ``shoal-system``.

        Raises:
            NotFoundError: There is no autoscaler.
        """
        found: Plan = await self._backend.plan(namespace)
        return found


class AsyncJob:
    """A job that was submitted or found.

    Attributes:
        name: Name of the job.
        namespace: Namespace of the job; empty on one machine.
    """

    def __init__(self, backend: Backend, key: JobKey) -> None:
        self._backend = backend
        self._key = key

    @property
    def name(self) -> str:
        """Name of the job."""
        return self._key.name

    @property
    def namespace(self) -> str:
        """Namespace of the job; empty on one machine."""
        return self._key.namespace

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._key)!r})"

    async def status(self) -> JobStatus:
        """Return the state of the job.

        Raises:
            NotFoundError: The job was deleted.
        """
        return await self._backend.status(self._key)

    async def watch(self) -> AsyncIterator[JobStatus]:
        """Yield the state of the job, and again after each change, until the job ends.

        Raises:
            JobDeletedError: The job was deleted, or made anew under the same name.
        """
        async with aclosing(self._backend.watch(self._key)) as states:  # type: ignore[type-var]
            async for status in states:
                yield status

    async def wait(
        self,
        state: State | str | Iterable[State | str] = State.COMPLETE,
        *,
        timeout: str | float | None = None,  # noqa: ASYNC109 - the caller writes a duration
    ) -> JobStatus:
        """Wait until the job is in a state, and return it.

        Args:
            state: The state, or several of them. Default: Complete.
            timeout: Longest time: seconds, or a duration such as "2h". Default: None, no limit.

        Raises:
            JobFailedError: The job failed; its text has the reason and the last lines of the process that failed.
            InvalidJobError: The operator refuses the job, so that it does not start.
            JobDeletedError: The job was deleted.
            WaitTimeoutError: The job did not reach the state in time; it continues.
        """
        wanted = _states(state) or frozenset((State.COMPLETE,))
        last: JobStatus | None = None
        try:
            async with asyncio.timeout(_seconds(timeout)):
                async for status in self.watch():
                    last = status
                    if status.state in wanted:
                        return status
                    if (problem := _cannot_start(status)) is not None:
                        raise problem
        except TimeoutError:
            names = " or ".join(sorted(wanted))
            was = f"; it is {_described(last)}" if last is not None else ""
            raise WaitTimeoutError(f"job {self._key} is not {names} after {timeout}{was}") from None
        assert last is not None  # a watch yields at least one state
        if last.state is State.FAILED:
            raise await self._failed(last)
        raise ShoalError(f"job {self._key} is {_described(last)}, and will not be {' or '.join(sorted(wanted))}")

    async def _failed(self, status: JobStatus) -> JobFailedError:
        process, lines = "", tuple[str, ...]()
        with suppress(ShoalError):
            failure = await self._backend.failure(self._key)
            process, lines = failure.process, failure.last_lines
        text = f"job {self._key} failed: {status.reason}: {status.message}"
        return JobFailedError(text, reason=status.reason, process=process, last_lines=lines)

    async def logs(
        self,
        process: str | None = None,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: str | float | None = None,
        previous: bool = False,
    ) -> AsyncIterator[LogLine]:
        """Yield lines of the logs of one process or of all.

        Args:
            process: Name of a process, such as ``trainer-0``. Default: None, all.
            follow: Whether to continue until the job ends, also with processes that join or are replaced. Default: false.
            tail: Number of last lines of each log to begin with. Default: None, all.
            since: Only lines of this time: seconds, or a duration such as "5m". Default: None, all.
            previous: Whether to read the logs of the containers' last run. Default: false.

        Raises:
            NotFoundError: The job has no such process.
        """
        options = LogOptions(
            process=process, follow=follow, tail=tail, since_seconds=_seconds(since), previous=previous
        )
        async with aclosing(self._backend.logs(self._key, options)) as lines:  # type: ignore[type-var]
            async for line in lines:
                yield line

    async def members(self) -> list[Member]:
        """Return the processes of the job."""
        return await self._backend.members(self._key)

    async def events(self) -> list[Event]:
        """Return what was recorded of the job, the oldest first."""
        return await self._backend.events(self._key)

    async def history(self) -> list[SizeChange]:
        """Return the last 100 changes of the number of trainers, the oldest first."""
        return await self._backend.history(self._key)

    async def metrics(self) -> list[dict[str, Any]]:
        """Return the values that the script logged over time, the oldest first: a list for ``pandas.DataFrame``."""
        return await self._backend.metrics(self._key)

    async def scale(
        self,
        trainers: int | None = None,
        *,
        min: int | None = None,  # noqa: A002 - the word of `Trainers`
        max: int | None = None,  # noqa: A002 - the word of `Trainers`
    ) -> None:
        """Pin the number of trainers, or change its bounds.

        Args:
            trainers: Number of trainers. Default: None, the number varies between the bounds.
            min: Fewest trainers that the job can use. Default: None, unchanged.
            max: Most trainers that the job can use. Default: None, unchanged.

        Raises:
            InvalidJobError: The number is outside of the bounds.
        """
        if trainers is not None and (min is not None or max is not None):
            raise InvalidJobError("scale has a number and bounds; the number pins the job, the bounds let it vary")
        await self._backend.scale(self._key, replicas=trainers, low=min, high=max)

    async def suspend(self) -> None:
        """Suspend the job: snapshots are written, and its processes end."""
        await self._backend.suspend(self._key, suspend=True)

    async def resume(self) -> None:
        """Resume the job from its snapshots."""
        await self._backend.suspend(self._key, suspend=False)

    async def delete(self) -> None:
        """Delete the job and what belongs to it; the claim of its model stays.

        Raises:
            NotFoundError: The job does not exist.
        """
        await self._backend.delete(self._key)

    async def fetch_model(
        self,
        name: str | None = None,
        target: str | Path | None = None,
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Path:
        """Copy the model that the job wrote, and return its path here.

        Args:
            name: Path of the file, as in ``spec.output.path``. Default: that path.
            target: Path of the copy: a file or an existing folder. Default: the current folder.
            on_progress: Called with the number of bytes that are copied, and of all. Default: None.

        Raises:
            FetchError: The file does not exist or cannot be read; the text says how to fetch it by hand.
        """
        path = name or await self._backend.output(self._key)
        copy = Path(target) if target is not None else Path(Path(path).name)
        if copy.is_dir():
            copy /= Path(path).name
        if not copy.parent.is_dir():
            raise FetchError(f"the folder {copy.parent} does not exist")
        # Under another name until it is whole, so that an interrupted copy leaves nothing under its own.
        part = copy.with_name(f".{copy.name}.{secrets.token_hex(4)}.part")
        try:
            await self._backend.fetch(self._key, path, part, on_progress or _ignore)
            part.replace(copy)
        finally:
            part.unlink(missing_ok=True)
        return copy


def _ignore(_done: int, _whole: int) -> None:
    pass


def _states(given: State | str | Iterable[State | str] | None) -> frozenset[State] | None:
    if given is None:
        return None
    names = [given] if isinstance(given, str) else list(given)
    known = {each.value.lower(): each for each in State}
    for name in names:
        if str(name).lower() not in known:
            raise ShoalError(f"{str(name)!r} is no state; known: {', '.join(State)}")
    return frozenset(known[str(name).lower()] for name in names)


def _seconds(given: str | float | None) -> float | None:
    if given is None or isinstance(given, int | float):
        return given
    try:
        return Duration(given).seconds
    except ValueError as error:
        raise ShoalError(str(error)) from None


def _described(status: JobStatus) -> str:
    details = ": ".join(filter(None, (status.reason, status.message or status.progress.message)))
    return f"{status.state.value} ({details})" if details else status.state.value


def _cannot_start(status: JobStatus) -> InvalidJobError | None:
    if not status.refusal:
        return None
    return InvalidJobError(f"job {status.name} is refused: {status.refusal}")
