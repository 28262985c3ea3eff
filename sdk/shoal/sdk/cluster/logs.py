"""The logs of a job's pods, merged: also of pods that join, are replaced or restart while they are followed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, suppress
from datetime import datetime
from typing import Any, Final

from shoal.kube import (
    Kube,
    KubeError,
    KubeForbiddenError,
    KubeGoneError,
    KubeInvalidError,
    KubeUnreachableError,
    Listed,
    follow,
    log_lines,
)
from shoal.sdk.backend import JobKey, LogOptions
from shoal.sdk.cluster.conversion import process_name, waiting_reason
from shoal.sdk.errors import NotFoundError
from shoal.sdk.types import LogLine

__all__ = ["last_lines", "read_logs"]

_QUEUE: Final = 10_000
"""Most lines that wait to be read; the pods' streams wait then."""
_PAUSE_SECONDS: Final = 0.5
_STATE_SECONDS: Final = 1.0
_UNREACHABLE_SECONDS: Final = 300.0
_ENDED: Final = frozenset({"Succeeded", "Failed"})


async def last_lines(kube: Kube, pod: str, key: JobKey, process: str, count: int, *, previous: bool) -> tuple[str, ...]:
    """Return the last lines of the log of a process."""
    role = process.rpartition("-")[0]
    stream = log_lines(kube, pod, namespace=key.namespace, container=role, tail=count, previous=previous)
    async with aclosing(stream):
        return tuple([text.decode(errors="replace") async for _, text in stream])


async def read_logs(
    kube: Kube, key: JobKey, options: LogOptions, states: AsyncIterator[Mapping[str, Any] | None]
) -> AsyncIterator[LogLine]:
    """Yield the lines of the logs of a job.

    Args:
        kube: The client.
        key: The job.
        options: Which lines of which logs.
        states: The job's versions; followed logs end with the job.

    Raises:
        NotFoundError: The job has no such process.
        KubeError: The API server refuses a request, or does not answer.
    """
    listed = await kube.listing("Pod", namespace=key.namespace, selector=f"shoal.dev/uid={key.uid}")
    pods = sorted(listed.items, key=lambda pod: process_name(pod, key.name))
    names = {process_name(pod, key.name) for pod in pods}
    if options.process is not None and options.process not in names and not options.follow:
        known = ", ".join(sorted(names)) or "none yet"
        raise NotFoundError(f"job {key} has no process {options.process!r}; there are: {known}")
    if not options.follow:
        for pod in pods:
            if options.process in {None, process_name(pod, key.name)}:
                async for line in _read_once(kube, pod, key, options):
                    yield line
        return
    reader = _Followed(kube, key, options)
    async with aclosing(reader.lines(listed, states)) as lines:  # type: ignore[type-var]
        async for line in lines:
            yield line


async def _read_once(kube: Kube, pod: Mapping[str, Any], key: JobKey, options: LogOptions) -> AsyncIterator[LogLine]:
    process = process_name(pod, key.name)
    stream = log_lines(
        kube,
        pod["metadata"]["name"],
        namespace=key.namespace,
        container=process.rpartition("-")[0],
        tail=options.tail,
        since_seconds=options.since_seconds,
        previous=options.previous,
    )
    try:
        async with aclosing(stream):
            async for _, text in stream:
                yield LogLine(process, text.decode(errors="replace"))
    except KubeGoneError:
        return
    except KubeInvalidError as error:
        # The container has not started, or has no earlier run.
        reason, message = waiting_reason(pod)
        why = ": ".join(filter(None, (reason, message))) or str(error)
        yield LogLine(process, f"[no log: {why}]")


class _Followed:
    """The logs of all pods of a job, until it ends.

    Args:
        kube: The client.
        key: The job.
        options: Which lines of which logs.
    """

    def __init__(self, kube: Kube, key: JobKey, options: LogOptions) -> None:
        self._kube = kube
        self._key = key
        self._options = options
        self._queue: asyncio.Queue[LogLine] = asyncio.Queue(_QUEUE)
        self._pods: dict[str, Mapping[str, Any]] = {}
        self._streams: dict[str, asyncio.Task[None]] = {}
        self._waiting: dict[str, str] = {}

    async def lines(self, listed: Listed, states: AsyncIterator[Mapping[str, Any] | None]) -> AsyncIterator[LogLine]:
        """Yield the lines as they arrive; at the job's end those that remain."""
        for pod in listed.items:
            self._seen(pod)
        watch = asyncio.ensure_future(self._watch(listed.revision))
        end = asyncio.ensure_future(self._until_end(states))
        try:
            while True:
                line = asyncio.ensure_future(self._queue.get())
                done, _ = await asyncio.wait({line, watch, end}, return_when=asyncio.FIRST_COMPLETED)
                if line in done:
                    yield line.result()
                    continue
                line.cancel()
                if watch in done:
                    watch.result()
                    return
                break
            async for rest in self._rest():
                yield rest
        finally:
            for task in (watch, end, *self._streams.values()):
                task.cancel()
            await asyncio.gather(watch, end, *self._streams.values(), return_exceptions=True)

    async def _rest(self) -> AsyncIterator[LogLine]:
        """Yield what the streams have left, once the job has ended: the containers end soon after it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_STATE_SECONDS + 2 * _PAUSE_SECONDS):
                while any(not task.done() for task in self._streams.values()) or not self._queue.empty():
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_PAUSE_SECONDS):
                            yield await self._queue.get()
        while not self._queue.empty():
            yield self._queue.get_nowait()

    async def _until_end(self, states: AsyncIterator[Mapping[str, Any] | None]) -> None:
        async with aclosing(states):  # type: ignore[type-var]
            async for manifest in states:
                if manifest is None or manifest["metadata"]["uid"] != self._key.uid:
                    return
                if ((manifest.get("status") or {}).get("state")) in {"Complete", "Failed"}:
                    return

    async def _watch(self, revision: int) -> None:
        selector = f"shoal.dev/uid={self._key.uid}"
        changes = follow(
            self._kube, "Pod", namespace=self._key.namespace, selector=selector, since=revision, ends=_ends
        )
        async with aclosing(changes):
            async for change in changes:
                if isinstance(change, Listed):
                    for pod in change.items:
                        self._seen(pod)
                elif change.deleted:
                    self._pods.pop(change.manifest["metadata"]["uid"], None)
                else:
                    self._seen(change.manifest)

    def _seen(self, pod: Mapping[str, Any]) -> None:
        process, uid = process_name(pod, self._key.name), pod["metadata"]["uid"]
        if self._options.process not in {None, process}:
            return
        self._pods[uid] = pod
        reason, message = waiting_reason(pod)
        text = ": ".join(filter(None, (reason, message)))
        if text and self._waiting.get(uid) != text and reason not in {"ContainerCreating", "PodInitializing"}:
            with suppress(asyncio.QueueFull):
                self._queue.put_nowait(LogLine(process, f"[waits: {text}]"))
        self._waiting[uid] = text
        if uid not in self._streams and _has_log(pod):
            self._streams[uid] = asyncio.ensure_future(self._read(process, uid))

    async def _read(self, process: str, uid: str) -> None:
        """Follow the log of one pod; after an interruption or a restart of its container from the last line on."""
        last = ""
        tail, since = self._options.tail, self._options.since_seconds
        while uid in self._pods:
            pod = self._pods[uid]
            stream = log_lines(
                self._kube,
                pod["metadata"]["name"],
                namespace=self._key.namespace,
                container=process.rpartition("-")[0],
                follow=True,
                tail=tail if not last else None,
                since_seconds=since if not last else None,
                since=_parsed(last) if last else None,
            )
            try:
                async with aclosing(stream):
                    async for time, text in stream:
                        # The API server counts in whole seconds, so the first lines may be known already.
                        if time > last:
                            last = time
                            await self._queue.put(LogLine(process, text.decode(errors="replace")))
            except KubeForbiddenError:
                raise
            except KubeError as error:
                if isinstance(error, KubeGoneError):
                    return
            else:
                if ((self._pods.get(uid) or {}).get("status") or {}).get("phase") in _ENDED:
                    return
            await asyncio.sleep(_PAUSE_SECONDS)


def _has_log(pod: Mapping[str, Any]) -> bool:
    """Return whether a pod's own container has started at least once."""
    role = (pod["metadata"].get("labels") or {}).get("shoal.dev/role")
    for each in (pod.get("status") or {}).get("containerStatuses") or []:
        if each.get("name") == role:
            state = each.get("state") or {}
            return "waiting" not in state or bool(each.get("restartCount"))
    return False


def _parsed(time: str) -> datetime:
    # The kubelet writes nanoseconds, and Python reads microseconds.
    return datetime.fromisoformat(f"{time[:19]}+00:00")


def _ends(error: KubeError, seconds: float) -> bool:
    return not isinstance(error, KubeUnreachableError) or seconds > _UNREACHABLE_SECONDS
