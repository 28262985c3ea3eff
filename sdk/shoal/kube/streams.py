"""Streams of a pod: the lines of a container's log, and the output of a command that is run in a container."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.stream import WsApiClient

from shoal.kube.client import Kube
from shoal.kube.errors import KubeError, KubeUnreachableError, error_of
from shoal.kube.kinds import KINDS
from shoal.kube.wire import TRY_SECONDS, abandon, decode

__all__ = ["CommandError", "command_output", "log_lines"]

_LONGEST_LINE: Final = 64 << 10
"""Longest line of a log, in bytes; the rest of a longer one is dropped."""
_CHUNK: Final = 64 << 10
_CUT: Final = b" ... (line cut)"
_STDOUT: Final = 1
_STDERR: Final = 2
_ERROR: Final = 3
_LONGEST_ERROR: Final = 4 << 10
_HEARTBEAT_SECONDS: Final = 20.0


class CommandError(KubeError):
    """A command in a container failed; the text has the end of its standard error."""


async def log_lines(
    kube: Kube,
    pod: str,
    *,
    namespace: str,
    container: str,
    follow: bool = False,
    tail: int | None = None,
    since: datetime | None = None,
    since_seconds: float | None = None,
    previous: bool = False,
) -> AsyncGenerator[tuple[str, bytes]]:
    """Yield the time, as the kubelet wrote it, and the text of each line of a container's log.

    Args:
        kube: The client.
        pod: Name of the pod.
        namespace: Namespace of the pod.
        container: Name of the container.
        follow: Whether to continue until the container ends. Default: false.
        tail: Number of last lines to begin with. Default: None, all.
        since: Time of the first line; the API server counts in whole seconds. Default: None, all lines.
        since_seconds: Age of the first line. Seconds. Default: None, all lines.
        previous: Whether to read the container's last run. Default: false.

    Raises:
        KubeGoneError: The pod does not exist.
        KubeInvalidError: The container has no log (yet).
        KubeForbiddenError: The permission is missing.
        KubeUnreachableError: The API server or the kubelet does not answer, or the stream was interrupted.
    """
    query: dict[str, str] = {"container": container, "timestamps": "true"}
    query |= {"follow": "true"} if follow else {}
    query |= {"previous": "true"} if previous else {}
    query |= {"tailLines": str(tail)} if tail is not None else {}
    query |= {"sinceTime": since.strftime("%Y-%m-%dT%H:%M:%SZ")} if since is not None else {}
    query |= {"sinceSeconds": str(max(1, round(since_seconds)))} if since_seconds is not None else {}
    path = f"{KINDS['Pod'].path(namespace, pod)}/log"
    # A container may write nothing for hours, so a followed log has no read timeout; TCP keepalive finds a lost peer.
    limit = aiohttp.ClientTimeout(total=None, sock_connect=TRY_SECONDS, sock_read=None if follow else TRY_SECONDS)
    try:
        answer = (await kube.wire.send("GET", path, query, None, limit=limit)).response
        try:
            if answer.status >= 300:
                raise error_of(answer.status, decode(await answer.read()))
            async for line in _lines(answer.content):
                time, _, text = line.partition(b" ")
                yield time.decode("ascii", "replace"), text
        finally:
            abandon(answer)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise KubeUnreachableError(f"the log of {pod} was interrupted: {error or type(error).__name__}") from error


async def _lines(content: aiohttp.StreamReader) -> AsyncGenerator[bytes]:
    """Yield lines of bounded length."""
    rest, dropping = b"", False
    async for chunk in content.iter_chunked(_CHUNK):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if not dropping:
                yield line[:_LONGEST_LINE] + (_CUT if len(line) > _LONGEST_LINE else b"")
            dropping = False
        if len(rest) > _LONGEST_LINE:
            if not dropping:
                yield rest[:_LONGEST_LINE] + _CUT
            rest, dropping = b"", True
    if rest and not dropping:
        yield rest


async def command_output(
    kube: Kube, pod: str, command: Sequence[str], *, namespace: str, container: str
) -> AsyncGenerator[bytes]:
    """Run a command in a container, without a shell, and yield its standard output in parts.

    Raises:
        CommandError: The command failed; the text is the end of its standard error.
        KubeForbiddenError: The permission is missing.
        KubeUnreachableError: The API server or the kubelet does not answer, or the stream was interrupted.
    """
    query = [("container", container), ("stdout", "true"), ("stderr", "true"), *(("command", word) for word in command)]
    path = f"{KINDS['Pod'].path(namespace, pod)}/exec"
    headers: dict[str, str] = {}
    await kube.wire.client.update_params_for_auth(headers, [], ["BearerToken"], path, "GET", None)
    errors = b""
    async with WsApiClient(kube.wire.client.configuration, heartbeat=_HEARTBEAT_SECONDS) as client:
        url = f"{kube.wire.client.configuration.host}{path}?{urlencode(query)}"
        try:
            response = await client.request("GET", url, headers=headers, _preload_content=False)
            async with response as socket:
                async for message in socket:
                    if message.type is not aiohttp.WSMsgType.BINARY or not message.data:
                        continue
                    channel, content = message.data[0], message.data[1:]
                    if channel == _STDOUT and content:
                        yield content
                    elif channel == _STDERR:
                        errors = (errors + content)[-_LONGEST_ERROR:]
                    elif channel == _ERROR:
                        _check(content, errors)
                        return
        except aiohttp.WSServerHandshakeError as error:
            raise error_of(error.status, {"message": f"a command cannot be run in {pod}: {error.message}"}) from error
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise KubeUnreachableError(f"the stream from {pod} was interrupted: {error}") from error
    raise KubeUnreachableError(f"the stream from {pod} ended early")


def _check(content: bytes, errors: bytes) -> None:
    """Raise the error of a command's end, if it is one."""
    try:
        status: Any = json.loads(content)
    except ValueError:
        status = {}
    if status.get("status") != "Success":
        text = errors.decode(errors="replace").strip() or str(status.get("message", "it failed without a message"))
        raise CommandError(text)
