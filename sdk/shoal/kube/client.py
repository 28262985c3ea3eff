"""Client that reads and writes objects as plain mappings: server-side apply and exact patches, no read-modify-write.

Requests are retried until the timeout while the API server restarts, is busy, or the connection breaks. All requests
are idempotent except ``create`` and ``replace``, whose retries report a conflict.
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
from shoal.retry import BackOff

__all__ = ["Kube", "Listed"]

Manifest = dict[str, Any]

_APPLY: Final = "application/apply-patch+yaml"
_UNPROCESSABLE: Final = 422
_INTERNAL: Final = 500
_INTERNAL_SECONDS: Final = 1.0
"""Seconds during which a request that fails with status 500 is retried; the caller reports a permanent error, such as a
webhook that cannot be called."""
_JSON_PATCH: Final = "application/json-patch+json"
_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 2.0
_TRY_SECONDS: Final = 10.0
"""Timeout of one attempt, in seconds, so that one broken connection does not use up the caller's whole timeout."""
_MOST_REQUESTS: Final = 64
"""Most concurrent requests of one client. More would wait in the library for a connection, which counts to the attempt's
timeout. The operator's `controller/executor.py` has lower limits for the pods and for the other objects of jobs."""
_PAGE: Final = 500
_EXPIRED: Final = 410
_READ_TIMEOUT_SECONDS: Final = 75.0
"""Read timeout of a watch stream, in seconds: the API server sends a bookmark every 60 s."""
_YIELD_EVERY: Final = 32
"""Number of changes after which a watch yields to the other tasks of the event loop."""
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
"""HTTP method of each verb (``apply`` is a server-side apply patch)."""


def _ignore(_verb: str, _kind: str, _code: int) -> None:
    pass


def _nothing() -> None:
    pass


def _no_limit() -> float:
    return math.inf


class Listed(NamedTuple):
    """All objects of a kind, and the resource version of the listing."""

    items: list[Manifest]
    revision: int


class Kube:
    """A connection to one cluster.

    Args:
        client: The client library's object, with address and credentials.
        manager: Field manager for server-side apply. Default: ``shoal``.
        timeout_seconds: Timeout of a call, including its retries. Seconds. Default: 30.
        on_answer: Called after every attempt with verb, kind and HTTP status (0: no response).
        may_write: Called before every attempt of a write; returns for how many seconds it may run. At 0 or less the
            write is not sent. Default: no limit.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        manager: str = "shoal",
        timeout_seconds: float = 30.0,
        on_answer: Callable[[str, str, int], None] = _ignore,
        may_write: Callable[[], float] = _no_limit,
    ) -> None:
        self._client = client
        self._manager = manager
        self._timeout = timeout_seconds
        self._on_answer = on_answer
        self._may_write = may_write
        self._concurrency = asyncio.Semaphore(_MOST_REQUESTS)

    @classmethod
    async def connect(
        cls,
        *,
        kubeconfig: str | None = None,
        context: str | None = None,
        timeout_seconds: float = 30.0,
        on_answer: Callable[[str, str, int], None] = _ignore,
        may_write: Callable[[], float] = _no_limit,
    ) -> Self:
        """Connect with the kubeconfig, or without one with the service account of the pod of this process.

        Args:
            kubeconfig: Path of the kubeconfig. Default: None, the path that kubectl uses.
            context: Context of the kubeconfig. Default: None, the current context.
            timeout_seconds: Timeout of a call, including its retries. Seconds. Default: 30.
            on_answer: Called after every attempt with verb, kind and HTTP status (0: no response).
            may_write: Called before every attempt of a write; returns for how many seconds it may run.

        Raises:
            KubeError: There is neither a kubeconfig nor a service account.
        """
        configuration = Configuration()
        # The library reads the environment when it is imported; it may have changed since.
        named = {"config_file": kubeconfig or os.environ.get("KUBECONFIG") or None, "context": context}
        try:
            with warnings.catch_warnings():
                # In a pod the library warns that there is no kubeconfig, which is expected there.
                warnings.filterwarnings("ignore", "kube_config_path not provided", UserWarning)
                await load_config(
                    client_configuration=configuration, **{k: v for k, v in named.items() if v is not None}
                )
        except Exception as error:
            # The library raises errors of many types here; their texts name what the user can fix.
            raise KubeError(f"no cluster can be reached: {error}; name a kubeconfig, or set KUBECONFIG") from error
        configuration.retries = None
        # The library looks up a proxy (and reads ~/.netrc) for each request, in a thread of the event loop's pool. That
        # takes longer than the rest of the request, and waits while the pool is busy.
        configuration.client_session_kwargs = {"trust_env": not _PROXIES.isdisjoint(getproxies_environment())}
        return cls(ApiClient(configuration), timeout_seconds=timeout_seconds, on_answer=on_answer, may_write=may_write)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- Reading ---

    async def has_kind(self, kind: str) -> bool:
        """Return whether the cluster has this kind; every account has the permission for this request.

        Raises:
            KubeError: The API server did not answer before the timeout.
        """
        try:
            found = await self._ask("get", kind, f"/apis/{KINDS[kind].version}")
        except KubeGoneError:
            return False
        return any(each.get("name") == KINDS[kind].plural for each in found.get("resources") or [])

    async def get(self, kind: str, name: str, *, namespace: str = "") -> Manifest | None:
        """Return an object; None if it does not exist."""
        try:
            return await self._ask("get", kind, KINDS[kind].path(namespace, name))
        except KubeGoneError:
            return None

    async def list(
        self, kind: str, *, namespace: str = "", selector: str = "", name: str = "", fields: str = ""
    ) -> list[Manifest]:
        """Return the items of a `listing`."""
        return (await self.listing(kind, namespace=namespace, selector=selector, name=name, fields=fields)).items

    async def listing(
        self, kind: str, *, namespace: str = "", selector: str = "", name: str = "", fields: str = ""
    ) -> Listed:
        """Return all objects of a kind, in pages of 500.

        Args:
            kind: Kind of the objects.
            namespace: Namespace of the objects. Default: empty, all namespaces.
            selector: Label selector. Default: empty, all objects.
            name: Name of the only object to return (requires the permission to list, not to get). Default: empty.
            fields: Field selector. Default: empty.

        Raises:
            KubeGoneError: The cluster does not have the kind.
            KubeForbiddenError: The permission is missing.
            KubeUnreachableError: The API server did not answer before the timeout.
        """
        fields = ",".join(filter(None, (f"metadata.name={name}" if name else "", fields)))
        first = {"limit": str(_PAGE)}
        first |= {"labelSelector": selector} if selector else {}
        first |= {"fieldSelector": fields} if fields else {}
        found: list[Manifest] = []
        query = dict(first)
        end = time.monotonic() + self._timeout
        while True:
            try:
                page = await self._ask("list", kind, KINDS[kind].path(namespace), query=query)
            except KubeGoneError as error:
                # The revision was compacted between two pages: start again.
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
        """Yield each change since a revision: ``ADDED``, ``MODIFIED``, ``DELETED`` or ``BOOKMARK``, and the object.

        Args:
            kind: Kind of the objects.
            namespace: Namespace of the objects. Default: empty, all namespaces.
            selector: Label selector. Default: empty, all objects.
            revision: Resource version of a listing or of an earlier change.
            seconds: Time after which the API server ends the stream regularly. Seconds.
            opened: Called when the API server has accepted the request; the first change may follow minutes later.

        Raises:
            KubeGoneError: The revision is no longer available (status 410), or the cluster does not have the kind.
            KubeForbiddenError: The permission is missing.
            KubeUnreachableError: The API server does not answer, or the stream was interrupted.
        """
        query = {"watch": "1", "allowWatchBookmarks": "true", "resourceVersion": str(revision)}
        query |= {"timeoutSeconds": str(seconds)} | ({"labelSelector": selector} if selector else {})
        limit = aiohttp.ClientTimeout(total=None, sock_connect=_TRY_SECONDS, sock_read=_READ_TIMEOUT_SECONDS)
        try:
            answer = (await self._send("GET", KINDS[kind].path(namespace), query, None, limit=limit)).response
            try:
                if answer.status >= 300:
                    raise error_of(answer.status, _read(await answer.read()))
                opened()
                count = 0
                async for line in answer.content:
                    event = msgspec.json.decode(line)
                    if event["type"] == "ERROR":
                        raise error_of(event["object"].get("code", 0), event["object"])
                    yield event["type"], event["object"]
                    count += 1
                    if count % _YIELD_EVERY == 0:
                        await asyncio.sleep(0)
            finally:
                answer.close()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise KubeUnreachableError(f"the watch stream was interrupted: {error or type(error).__name__}") from error

    # --- Writing ---

    async def apply(self, manifest: Mapping[str, Any], *, dry_run: bool = False) -> Manifest:
        """Apply a manifest by server-side apply, with force: this client becomes the owner of its fields.

        Raises:
            KubeInvalidError: The API server rejects the manifest.
            KubeForbiddenError: The permission is missing.
            KubeUnreachableError: The API server did not answer before the timeout.
        """
        kind, namespace, name = _of(manifest)
        query = {"fieldManager": self._manager, "force": "true"} | ({"dryRun": "All"} if dry_run else {})
        path = KINDS[kind].path(namespace, name)
        return await self._ask("apply", kind, path, query=query, body=manifest, content=_APPLY)

    async def create(self, manifest: Mapping[str, Any], *, dry_run: bool = False) -> Manifest:
        """Create an object.

        Raises:
            KubeConflictError: An object of this name exists, possibly from an earlier attempt whose response was lost.
            KubeInvalidError: The API server rejects the manifest.
            KubeForbiddenError: The permission is missing, or a quota is exceeded.
            KubeUnreachableError: The API server did not answer before the timeout.
        """
        kind, namespace, _ = _of(manifest)
        query = {"fieldManager": self._manager} | ({"dryRun": "All"} if dry_run else {})
        return await self._ask("create", kind, KINDS[kind].path(namespace), query=query, body=manifest)

    async def replace(self, manifest: Mapping[str, Any]) -> Manifest:
        """Replace an object if its resource version is still that of the manifest.

        Raises:
            KubeConflictError: The object has changed, possibly by an earlier attempt whose response was lost.
            KubeGoneError: The object does not exist.
            KubeInvalidError: The API server rejects the manifest.
            KubeForbiddenError: The permission is missing.
            KubeUnreachableError: The API server did not answer before the timeout.
        """
        kind, namespace, name = _of(manifest)
        query = {"fieldManager": self._manager}
        return await self._ask("update", kind, KINDS[kind].path(namespace, name), query=query, body=manifest)

    async def delete(
        self, kind: str, name: str, *, namespace: str = "", uid: str = "", grace_seconds: int | None = None
    ) -> bool:
        """Delete an object; False if it does not exist or has another uid.

        Args:
            kind: Kind of the object.
            name: Name of the object.
            namespace: Namespace of the object. Default: empty, for kinds without namespaces.
            uid: Required uid of the object. Default: empty, any.
            grace_seconds: Grace period; 0 is for pods on lost nodes. Seconds. Default: None, that of the pod.
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
        """Write an object's status and return the object; None if it does not exist or has another uid."""
        path = KINDS[kind].path(namespace, name, subresource="status")
        return await self._put(kind, path, "/status", status, uid=uid)

    async def stop_pod(self, name: str, *, namespace: str, uid: str) -> bool:
        """Have the kubelet terminate a pod's containers; False if the pod does not exist or has another uid.

        The pod gets an ``activeDeadlineSeconds`` that has expired. The pod itself and its logs remain.
        """
        path = KINDS["Pod"].path(namespace, name)
        return await self._put("Pod", path, "/spec/activeDeadlineSeconds", 1, uid=uid) is not None

    async def _put(self, kind: str, path: str, field: str, value: object, *, uid: str) -> Manifest | None:
        """Set one field of the object with this uid; None if it does not exist."""
        # The API server ignores metadata that is sent to a subresource, but it executes a test operation in the patch.
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
            # An error of the schema has causes, field by field; a failed test of the patch has none.
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
        started = time.monotonic()
        end = started + self._timeout
        back_off = BackOff(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)
        while True:
            try:
                async with self._concurrency:
                    code, answer = await self._once(_METHODS[verb], path, query or {}, body, content)
            except KubeFencedError:
                raise
            except KubeError as error:
                self._on_answer(verb, kind, error.status)
                if not isinstance(error, KubeUnreachableError):
                    raise
                if error.status == _INTERNAL:
                    end = min(end, started + _INTERNAL_SECONDS)
                if time.monotonic() + back_off.pause > end:
                    raise
                await asyncio.sleep(max(back_off.next(), min(error.retry_after_seconds, end - time.monotonic())))
            else:
                self._on_answer(verb, kind, code)
                return answer

    def _seconds_for(self, method: str) -> float:
        """Return the timeout of one attempt, in seconds.

        Raises:
            KubeFencedError: This process may not write any more.
        """
        longest = min(_TRY_SECONDS, self._timeout)
        if method == "GET":
            return longest
        left = self._may_write()
        if left <= 0:
            raise KubeFencedError("this process may not write any more: another one may be active")
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
            raise KubeUnreachableError("the API server's response is not a JSON object", status=response.status)
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
        """Send a request; return the response before its body is read."""
        # The library's own `param_serialize` is not used: it walks through every value of a body.
        headers = {"Accept": "application/json", "Content-Type": content, **self._client.default_headers}
        url = f"{self._client.configuration.host}{path}{'?' if query else ''}{urlencode(query)}"
        await self._client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        return await self._client.call_api(
            method, url, headers, body, _request_timeout=limit or self._seconds_for(method)
        )


def _read(text: bytes) -> Any:
    """Decode a JSON body; None if it is not JSON."""
    try:
        return msgspec.json.decode(text) if text else {}
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _of(manifest: Mapping[str, Any]) -> tuple[str, str, str]:
    metadata = manifest["metadata"]
    return manifest["kind"], metadata.get("namespace", ""), metadata.get("name", "")


def _seconds(header: str | None) -> float:
    return float(header) if header is not None and header.isdigit() else 0.0
