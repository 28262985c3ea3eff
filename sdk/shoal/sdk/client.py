"""The synchronous client: the methods of `AsyncClient` and `AsyncJob`, driven by an event loop in a thread of its own.

So it works in scripts and in notebooks, where a loop is running already.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from shoal.api import TrainingJob
from shoal.sdk.aio import AsyncClient, AsyncJob
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

__all__ = ["Client", "Job"]

T = TypeVar("T")


class _Loop:
    """An event loop in a daemon thread; it starts with the first call."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._thread = 0
        self._closing: set[asyncio.Future[None]] = set()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end; an interrupt of the calling thread cancels it."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._started())
        try:
            return future.result()
        except (KeyboardInterrupt, SystemExit):
            future.cancel()
            raise
        except CancelledError:
            raise RuntimeError("the client is closed") from None

    def iterate(self, values: AsyncIterator[T]) -> Iterator[T]:
        """Yield what an asynchronous iterator yields, and close it at the end, also at an early one."""
        try:
            while True:
                try:
                    value = self.run(_next(values))
                except StopAsyncIteration:
                    return
                yield value
        finally:
            # The thread does not run any more when the interpreter ends, or after `stop`, which has closed the iterator.
            self.finish(_close(values))

    def finish(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine that closes something, if the thread runs.

        The garbage collector may call this in the loop's own thread, which cannot wait for itself.
        """
        loop = self._loop
        if loop is None or sys.is_finalizing():
            coroutine.close()
        elif threading.get_ident() == self._thread:
            task = asyncio.ensure_future(coroutine, loop=loop)
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        else:
            self.run(coroutine)

    async def end(self, client: AsyncClient) -> None:
        """Close a client, and end the thread."""
        try:
            await client.close()
        finally:
            loop, self._loop = asyncio.get_running_loop(), None
            loop.call_soon(loop.stop)

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=_serve, args=(loop,), name="shoal-client", daemon=True)
                thread.start()
                self._thread = thread.ident or 0
                self._loop = loop
            return self._loop


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        waiting = asyncio.all_tasks(loop)
        for task in waiting:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*waiting, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


async def _next(values: AsyncIterator[T]) -> T:
    return await anext(values)


async def _close(values: AsyncIterator[Any]) -> None:
    await values.aclose()  # type: ignore[attr-defined]


def _end(loop: _Loop, client: AsyncClient) -> None:
    loop.finish(loop.end(client))


class Client:
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
        self._client = AsyncClient(
            namespace=namespace, context=context, kubeconfig=kubeconfig, backend=backend, state=state
        )
        self._loop = _Loop()
        # Also at the end of the process, and when the client and its jobs are not used any more.
        self._finalizer = weakref.finalize(self, _end, self._loop, self._client)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections, and end the client's thread."""
        self._finalizer()

    def submit(
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
        """Create a job; the arguments are those of `AsyncClient.submit`."""
        found = self._loop.run(
            self._client.submit(
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
                dry_run=dry_run,
            )
        )
        return Job(found, self) if isinstance(found, AsyncJob) else found

    def get(self, name: str) -> Job:
        """Return a job by its name.

        Raises:
            NotFoundError: There is no job of this name.
        """
        return Job(self._loop.run(self._client.get(name)), self)

    def list(
        self,
        *,
        state: State | str | Iterable[State | str] | None = None,
        labels: Mapping[str, str] | None = None,
        all_namespaces: bool = False,
    ) -> list[JobStatus]:
        """Return the state of all jobs, by namespace and name; the arguments are those of `AsyncClient.list`."""
        return self._loop.run(self._client.list(state=state, labels=labels, all_namespaces=all_namespaces))

    def plan(self, *, namespace: str = "shoal-system") -> Plan:
        """Return the autoscaler's last plan.

        Args:
            namespace: Namespace of Shoal's operator. Default: ``shoal-system``.

        Raises:
            NotFoundError: There is no autoscaler.
        """
        return self._loop.run(self._client.plan(namespace=namespace))


class Job:
    """A job that was submitted or found. In a notebook it displays its state.

    Attributes:
        name: Name of the job.
        namespace: Namespace of the job; empty on one machine.
    """

    def __init__(self, job: AsyncJob, client: Client) -> None:
        self._job = job
        self._client = client
        self._loop = client._loop  # noqa: SLF001 - the job is part of its client

    @property
    def name(self) -> str:
        """Name of the job."""
        return self._job.name

    @property
    def namespace(self) -> str:
        """Namespace of the job; empty on one machine."""
        return self._job.namespace

    def __repr__(self) -> str:
        return repr(self._job).removeprefix("Async")

    def _repr_html_(self) -> str:
        from shoal.sdk.display import html  # noqa: PLC0415 - only notebooks need it

        return html(self.status(), self.members())

    def status(self) -> JobStatus:
        """Return the state of the job.

        Raises:
            NotFoundError: The job was deleted.
        """
        return self._loop.run(self._job.status())

    def watch(self, *, bar: bool | None = None) -> Iterator[JobStatus]:
        """Yield the state of the job, and again after each change, until the job ends.

        Args:
            bar: Whether one live bar is shown. Default: None, in notebooks and on terminals.

        Raises:
            JobDeletedError: The job was deleted, or made anew under the same name.
        """
        from shoal.sdk.display import shown  # noqa: PLC0415 - only a watch needs it

        return shown(self._loop.iterate(self._job.watch()), bar=bar)

    def wait(
        self, state: State | str | Iterable[State | str] = State.COMPLETE, *, timeout: str | float | None = None
    ) -> JobStatus:
        """Wait until the job is in a state; arguments and errors are those of `AsyncJob.wait`."""
        return self._loop.run(self._job.wait(state, timeout=timeout))

    def logs(
        self,
        process: str | None = None,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: str | float | None = None,
        previous: bool = False,
    ) -> Iterator[LogLine]:
        """Yield lines of the logs; arguments and errors are those of `AsyncJob.logs`."""
        return self._loop.iterate(self._job.logs(process, follow=follow, tail=tail, since=since, previous=previous))

    def members(self) -> list[Member]:
        """Return the processes of the job."""
        return self._loop.run(self._job.members())

    def events(self) -> list[Event]:
        """Return what was recorded of the job, the oldest first."""
        return self._loop.run(self._job.events())

    def history(self) -> list[SizeChange]:
        """Return the last 100 changes of the number of trainers, the oldest first."""
        return self._loop.run(self._job.history())

    def metrics(self) -> list[dict[str, Any]]:
        """Return the values that the script logged over time, the oldest first: a list for ``pandas.DataFrame``."""
        return self._loop.run(self._job.metrics())

    def scale(
        self,
        trainers: int | None = None,
        *,
        min: int | None = None,  # noqa: A002 - the word of `Trainers`
        max: int | None = None,  # noqa: A002 - the word of `Trainers`
    ) -> None:
        """Pin the number of trainers (None: un-pin), or change its bounds; as `AsyncJob.scale`."""
        self._loop.run(self._job.scale(trainers, min=min, max=max))

    def suspend(self) -> None:
        """Suspend the job: snapshots are written, and its processes end."""
        self._loop.run(self._job.suspend())

    def resume(self) -> None:
        """Resume the job from its snapshots."""
        self._loop.run(self._job.resume())

    def delete(self) -> None:
        """Delete the job and what belongs to it; the claim of its model stays.

        Raises:
            NotFoundError: The job does not exist.
        """
        self._loop.run(self._job.delete())

    def fetch_model(
        self,
        name: str | None = None,
        target: str | Path | None = None,
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Path:
        """Copy the model that the job wrote, and return its path here; as `AsyncJob.fetch_model`."""
        return self._loop.run(self._job.fetch_model(name, target, on_progress=on_progress))
