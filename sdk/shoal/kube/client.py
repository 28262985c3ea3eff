"""Reads and writes objects as plain mappings: by server-side apply, by exact patches, never by read-modify-write.

An API server that is restarted, busy or behind a connection that broke is asked again until the caller's patience ends,
where asking twice is the same as once: everything here but ``create``, and that one says what it found.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
import warnings
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Self
from urllib.parse import urlencode
from urllib.request import getproxies_environment

import aiohttp
import msgspec
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.client.rest import RESTResponse
from kubernetes.aio.config import load_config

from shoal.kube.errors import (
    KubeConflictError,
    KubeError,
    KubeFencedError,
    KubeGoneError,
    KubeInvalidError,
    KubeUnreachableError,
    error_of,
)
from shoal.kube.kinds import KINDS

__all__ = ["Kube", "Listed"]

Manifest = dict[str, Any]

_APPLY: Final = "application/apply-patch+yaml"
_UNPROCESSABLE: Final = 422
_INTERNAL: Final = 500
_INTERNAL_SECONDS: Final = 1.0
"""For so long a request is sent again that the API server answers with an error of its own: one that lasts, such as a
webhook that cannot be called, is the caller's to report."""
_JSON_PATCH: Final = "application/json-patch+json"
_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 2.0
_TRY_SECONDS: Final = 10.0
"""The longest wait for one answer: a connection that has died without a word takes no caller's whole patience."""
_AT_ONCE: Final = 64
"""Requests under way at a time. More would wait in the library for a connection, within the time that a try may take."""
_PAGE: Final = 500
_EXPIRED: Final = 410
_SILENCE_SECONDS: Final = 75.0
"""A stream on which nothing is heard for so long is dead: the API server sends a bookmark every 60 s."""
_BREATH: Final = 32
"""Changes that are told in one go, before others have their turn."""
_PROXIES: Final = frozenset({"http", "https", "all"})
_METHODS: Final = {
    "get": "GET",
    "list": "GET",
    "create": "POST",
    "apply": "PATCH",
    "patch": "PATCH",
    "update": "PUT",
    "delete": "DELETE",
}
"""What is asked for, by the API's own verbs (``apply`` is a patch, too)."""


def _ignore(_verb: str, _kind: str, _code: int) -> None:
    pass


def _nothing() -> None:
    pass


def _for_ever() -> float:
    return math.inf


class Listed(NamedTuple):
    """All objects of a kind, and the resource version up to which that is true."""

    items: list[Manifest]
    revision: int


class Kube:
    """A connection to one cluster.

    Args:
        client: The library's, with address and credentials.
        manager: Who owns the fields that are applied.
        patience_seconds: How long a call waits for an API server that does not answer.
        on_answer: Told of every try: verb, kind, HTTP status (0: there was no answer).
        may_write: Asked right before every try of a write for how many seconds more it may be under way; 0 and less: it
            is not sent.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        manager: str = "shoal",
        patience_seconds: float = 30.0,
        on_answer: Callable[[str, str, int], None] = _ignore,
        may_write: Callable[[], float] = _for_ever,
    ) -> None:
        self._client = client
        self._manager = manager
        self._patience = patience_seconds
        self._on_answer = on_answer
        self._may_write = may_write
        self._room = asyncio.Semaphore(_AT_ONCE)

    @classmethod
    async def connect(
        cls,
        *,
        kubeconfig: str | None = None,
        context: str | None = None,
        patience_seconds: float = 30.0,
        on_answer: Callable[[str, str, int], None] = _ignore,
        may_write: Callable[[], float] = _for_ever,
    ) -> Self:
        """Connect as the kubeconfig says, or (without one) as the pod that this process runs in.

        Args:
            kubeconfig: Its path; None: as kubectl finds it.
            context: Of the kubeconfig; None: its current one.
            patience_seconds: As with the class.
            on_answer: Likewise.
            may_write: Likewise.

        Raises:
            KubeError: There is neither.
        """
        configuration = Configuration()
        # The library asks the environment when it is imported, which may be long before.
        named = {"config_file": kubeconfig or os.environ.get("KUBECONFIG") or None, "context": context}
        try:
            with warnings.catch_warnings():
                # In a pod it warns that there is no kubeconfig, which is as it should be.
                warnings.filterwarnings("ignore", "kube_config_path not provided", UserWarning)
                await load_config(
                    client_configuration=configuration, **{k: v for k, v in named.items() if v is not None}
                )
        except Exception as error:
            # The library raises errors of many kinds here, and what it names is what a person can mend.
            raise KubeError(f"no cluster can be reached: {error}; name a kubeconfig, or set KUBECONFIG") from error
        configuration.retries = None
        # The library looks for a proxy (and into ~/.netrc) at each request, in a thread of the loop's pool: that takes
        # longer than all the rest, and waits where the pool is busy.
        configuration.client_session_kwargs = {"trust_env": not _PROXIES.isdisjoint(getproxies_environment())}
        return cls(
            ApiClient(configuration), patience_seconds=patience_seconds, on_answer=on_answer, may_write=may_write
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- Reading ---

    async def knows(self, kind: str) -> bool:
        """Whether the cluster has this kind: every account may ask.

        Raises:
            KubeError: The API server was away for too long.
        """
        try:
            found = await self._ask("get", kind, f"/apis/{KINDS[kind].version}")
        except KubeGoneError:
            return False
        return any(each.get("name") == KINDS[kind].plural for each in found.get("resources") or [])

    async def get(self, kind: str, name: str, *, namespace: str = "") -> Manifest | None:
        """An object; None if it is not there."""
        try:
            return await self._ask("get", kind, KINDS[kind].path(namespace, name))
        except KubeGoneError:
            return None

    async def list(
        self, kind: str, *, namespace: str = "", selector: str = "", name: str = "", fields: str = ""
    ) -> list[Manifest]:
        """The items of a `listing`."""
        return (await self.listing(kind, namespace=namespace, selector=selector, name=name, fields=fields)).items

    async def listing(
        self, kind: str, *, namespace: str = "", selector: str = "", name: str = "", fields: str = ""
    ) -> Listed:
        """All objects of a kind, in a namespace or everywhere, with these labels.

        Args:
            kind: Of the objects.
            namespace: Where; empty: everywhere.
            selector: Labels.
            name: Only the object of this name, for which the right to list is enough.
            fields: A field selector.

        Raises:
            KubeGoneError: The cluster does not know the kind.
            KubeForbiddenError: It is not allowed.
            KubeUnreachableError: Patience ended.
        """
        fields = ",".join(filter(None, (f"metadata.name={name}" if name else "", fields)))
        first = {"limit": str(_PAGE)}
        first |= {"labelSelector": selector} if selector else {}
        first |= {"fieldSelector": fields} if fields else {}
        found: list[Manifest] = []
        query = dict(first)
        end = time.monotonic() + self._patience
        while True:
            try:
                page = await self._ask("list", kind, KINDS[kind].path(namespace), query=query)
            except KubeGoneError as error:
                # A page that was asked for too late, when its revision was compacted away: begin anew.
                if "continue" not in query or error.status != _EXPIRED or time.monotonic() > end:
                    raise
                found, query = [], dict(first)
                continue
            found += page.get("items") or []
            metadata = page.get("metadata") or {}
            following = metadata.get("continue")
            if not following:
                return Listed(found, int(metadata.get("resourceVersion") or 0))
            query["continue"] = following

    async def watch(
        self,
        kind: str,
        *,
        namespace: str = "",
        selector: str = "",
        revision: int,
        seconds: int,
        opened: Callable[[], object] = _nothing,
    ) -> AsyncGenerator[tuple[str, Manifest]]:
        """Each change since a revision: ``ADDED``, ``MODIFIED``, ``DELETED`` or ``BOOKMARK``, and the object.

        Args:
            kind: Of the objects.
            namespace: Where; empty: everywhere.
            selector: Labels.
            revision: Resource version of a listing or of an earlier change.
            seconds: After how long the API server shall end the stream, in good order.
            opened: Called when the API server has accepted the request; the first change may be minutes away.

        Raises:
            KubeGoneError: The changes since then are forgotten (status 410), or the cluster does not know the kind.
            KubeForbiddenError: It is not allowed.
            KubeUnreachableError: There is no answer, or the stream was cut off.
        """
        query = {"watch": "1", "allowWatchBookmarks": "true", "resourceVersion": str(revision)}
        query |= {"timeoutSeconds": str(seconds)} | ({"labelSelector": selector} if selector else {})
        limit = aiohttp.ClientTimeout(total=None, sock_connect=_TRY_SECONDS, sock_read=_SILENCE_SECONDS)
        try:
            answer = (await self._send("GET", KINDS[kind].path(namespace), query, None, limit=limit)).response
            try:
                if answer.status >= 300:
                    raise error_of(answer.status, _read(await answer.read()))
                opened()
                told = 0
                async for line in answer.content:
                    event = msgspec.json.decode(line)
                    if event["type"] == "ERROR":
                        raise error_of(event["object"].get("code", 0), event["object"])
                    yield event["type"], event["object"]
                    told += 1
                    if told % _BREATH == 0:
                        await asyncio.sleep(0)
            finally:
                answer.close()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise KubeUnreachableError(f"the stream was cut off: {error or type(error).__name__}") from error

    # --- Writing ---

    async def apply(self, manifest: Mapping[str, Any], *, dry_run: bool = False) -> Manifest:
        """Server-side apply: the fields of the manifest become as it says, and ours.

        Raises:
            KubeInvalidError: The API server has words about the manifest.
            KubeForbiddenError: It is not allowed.
            KubeUnreachableError: Patience ended.
        """
        kind, namespace, name = _of(manifest)
        query = {"fieldManager": self._manager, "force": "true"} | ({"dryRun": "All"} if dry_run else {})
        path = KINDS[kind].path(namespace, name)
        return await self._ask("apply", kind, path, query=query, body=manifest, content=_APPLY)

    async def create(self, manifest: Mapping[str, Any], *, dry_run: bool = False) -> Manifest:
        """Create an object.

        Raises:
            KubeConflictError: One of its name exists; perhaps by an earlier try of ours whose answer was lost.
            KubeInvalidError: The API server has words about the manifest.
            KubeForbiddenError: It is not allowed, or a quota is full.
            KubeUnreachableError: Patience ended.
        """
        kind, namespace, _ = _of(manifest)
        query = {"fieldManager": self._manager} | ({"dryRun": "All"} if dry_run else {})
        return await self._ask("create", kind, KINDS[kind].path(namespace), query=query, body=manifest)

    async def replace(self, manifest: Mapping[str, Any]) -> Manifest:
        """Put this in an object's place, if it is still the one that was read (``metadata.resourceVersion``).

        Raises:
            KubeConflictError: It has changed since; perhaps by an earlier try of ours whose answer was lost.
            KubeGoneError: There is none.
            KubeInvalidError: The API server has words about the manifest.
            KubeForbiddenError: It is not allowed.
            KubeUnreachableError: Patience ended.
        """
        kind, namespace, name = _of(manifest)
        query = {"fieldManager": self._manager}
        return await self._ask("update", kind, KINDS[kind].path(namespace, name), query=query, body=manifest)

    async def delete(
        self, kind: str, name: str, *, namespace: str = "", uid: str = "", grace_seconds: int | None = None
    ) -> bool:
        """Delete an object; False if it (or the one of this uid) is gone already.

        Args:
            kind: Its kind.
            name: Its name.
            namespace: Its namespace.
            uid: Only this very one; empty: whichever has the name.
            grace_seconds: 0 is for pods of nodes that are gone. None: as the pod says.
        """
        body: Manifest = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid:
            body["preconditions"] = {"uid": uid}
        if grace_seconds is not None:
            body["gracePeriodSeconds"] = grace_seconds
        try:
            await self._ask("delete", kind, KINDS[kind].path(namespace, name), body=body)
        except (KubeGoneError, KubeConflictError):
            return False
        return True

    async def set_status(
        self, kind: str, name: str, status: Mapping[str, Any], *, uid: str, namespace: str = ""
    ) -> Manifest | None:
        """Give an object this status, and return it; None if it is gone, also where another one has its name by now."""
        path = KINDS[kind].path(namespace, name, subresource="status")
        return await self._put(kind, path, "/status", status, uid=uid)

    async def stop_pod(self, name: str, *, namespace: str, uid: str) -> bool:
        """Have the kubelet end a pod's containers, by a deadline that has passed; False if this pod is gone.

        The pod itself stays, and its logs with it.
        """
        path = KINDS["Pod"].path(namespace, name)
        return await self._put("Pod", path, "/spec/activeDeadlineSeconds", 1, uid=uid) is not None

    async def _put(self, kind: str, path: str, field: str, value: object, *, uid: str) -> Manifest | None:
        """Set one field of the object that has this uid; None if it is gone."""
        # The API server ignores metadata that is sent to a subresource, but not a test within the patch.
        body: list[Mapping[str, Any]] = [
            {"op": "test", "path": "/metadata/uid", "value": uid},
            {"op": "add", "path": field, "value": value},
        ]
        query = {"fieldManager": self._manager}
        try:
            return await self._ask("patch", kind, path, query=query, body=body, content=_JSON_PATCH)
        except KubeGoneError:
            return None
        except KubeInvalidError as error:
            # A value that the schema refuses has causes, field by field; the test of the patch has none.
            if error.causes or error.status != _UNPROCESSABLE:
                raise
            return None

    # --- The wire ---

    async def _ask(
        self,
        verb: str,
        kind: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        content: str = "application/json",
    ) -> Manifest:
        begun = time.monotonic()
        end = begun + self._patience
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                async with self._room:
                    code, answer = await self._once(_METHODS[verb], path, query or {}, body, content)
            except KubeFencedError:
                raise
            except KubeError as error:
                self._on_answer(verb, kind, error.status)
                if not isinstance(error, KubeUnreachableError):
                    raise
                if error.status == _INTERNAL:
                    end = min(end, begun + _INTERNAL_SECONDS)
                if time.monotonic() + pause > end:
                    raise
                await asyncio.sleep(max(pause, min(error.retry_after_seconds, end - time.monotonic())))
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                self._on_answer(verb, kind, code)
                return answer

    def _seconds_for(self, method: str) -> float:
        """How long one try may take.

        Raises:
            KubeFencedError: It must not be made.
        """
        longest = min(_TRY_SECONDS, self._patience)
        if method == "GET":
            return longest
        left = self._may_write()
        if left <= 0:
            raise KubeFencedError("nothing may be written any more: another process may be at it")
        return min(longest, left)

    async def _once(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
        content: str,
    ) -> tuple[int, Manifest]:
        try:
            response = await self._send(method, path, query, body, content=content)
            text = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise KubeUnreachableError(f"the API server does not answer: {error or type(error).__name__}") from error
        answer = _read(text)
        if response.status >= 300:
            found = error_of(response.status, answer)
            found.retry_after_seconds = _seconds(response.headers.get("Retry-After"))
            raise found
        if not isinstance(answer, dict):
            raise KubeUnreachableError("the API server's answer is no object", status=response.status)
        return response.status, answer

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
        *,
        content: str = "application/json",
        limit: aiohttp.ClientTimeout | None = None,
    ) -> RESTResponse:
        """The answer's beginning; what it says is not read yet."""
        # The library's own `param_serialize` walks through every value of a body for what is not plain.
        headers = {"Accept": "application/json", "Content-Type": content, **self._client.default_headers}
        url = f"{self._client.configuration.host}{path}{'?' if query else ''}{urlencode(query)}"
        await self._client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        return await self._client.call_api(
            method, url, headers, body, _request_timeout=limit or self._seconds_for(method)
        )


def _read(text: bytes) -> Any:
    """An answer; None: it is none."""
    try:
        return msgspec.json.decode(text) if text else {}
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _of(manifest: Mapping[str, Any]) -> tuple[str, str, str]:
    metadata = manifest["metadata"]
    return manifest["kind"], metadata.get("namespace", ""), metadata.get("name", "")


def _seconds(header: str | None) -> float:
    return float(header) if header is not None and header.isdigit() else 0.0
