"""Client that reads and writes objects as plain mappings: server-side apply and exact patches, no read-modify-write.

Requests are retried until the timeout while the API server restarts, is busy, or the connection breaks. All requests
are idempotent except ``create`` and ``replace``, whose retries report a conflict.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Final, NamedTuple, Self

import aiohttp
import msgspec

from shoal.kube.errors import (
    KubeConflictError,
    KubeGoneError,
    KubeInvalidError,
    KubeUnreachableError,
    error_of,
)
from shoal.kube.kinds import KINDS
from shoal.kube.wire import TRY_SECONDS, Manifest, Wire, abandon, decode

__all__ = ["Kube", "Listed"]

_APPLY: Final = "application/apply-patch+yaml"
_UNPROCESSABLE: Final = 422
_JSON_PATCH: Final = "application/json-patch+json"
_MERGE_PATCH: Final = "application/merge-patch+json"
_PAGE: Final = 500
_EXPIRED: Final = 410
_READ_TIMEOUT_SECONDS: Final = 75.0
"""Read timeout of a watch stream, in seconds: the API server sends a bookmark every 60 s."""
_YIELD_EVERY: Final = 32
"""Number of changes after which a watch yields to the other tasks of the event loop."""


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
        wire: Sends the requests.
        manager: Field manager for server-side apply and other writes. Default: ``shoal``.
    """

    def __init__(self, wire: Wire, *, manager: str = "shoal") -> None:
        self.wire = wire
        self._manager = manager
        self._ask = wire.ask

    @classmethod
    async def connect(
        cls,
        *,
        kubeconfig: str | None = None,
        context: str | None = None,
        manager: str = "shoal",
        timeout_seconds: float = 30.0,
        on_answer: Callable[[str, str, int], None] = _ignore,
        may_write: Callable[[], float] = _no_limit,
    ) -> Self:
        """Connect with the kubeconfig, or without one with the service account of the pod of this process.

        Args:
            kubeconfig: Path of the kubeconfig. Default: None, the path that kubectl uses.
            context: Context of the kubeconfig. Default: None, the current context.
            manager: Field manager for server-side apply and other writes. Default: ``shoal``.
            timeout_seconds: Timeout of a call, including its retries. Seconds. Default: 30.
            on_answer: Called after every attempt with verb, kind and HTTP status (0: no response).
            may_write: Called before every attempt of a write; returns for how many seconds it may run. At 0 or less the
                write is not sent. Default: no limit.

        Raises:
            KubeError: There is neither a kubeconfig nor a service account.
        """
        wire = await Wire.connect(
            kubeconfig=kubeconfig,
            context=context,
            timeout_seconds=timeout_seconds,
            on_answer=on_answer,
            may_write=may_write,
        )
        return cls(wire, manager=manager)

    @property
    def namespace(self) -> str:
        """Namespace of the kubeconfig's context, or of the pod of this process."""
        return self.wire.namespace

    async def close(self) -> None:
        """Close all connections."""
        await self.wire.close()

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

    async def version(self) -> str:
        """Return the version of the API server, such as ``v1.34.2``."""
        return str((await self._ask("get", "Version", "/version")).get("gitVersion", ""))

    async def allowed(self, verb: str, kind: str, *, namespace: str = "", subresource: str = "") -> bool:
        """Return whether the caller has a permission."""
        group = KINDS[kind].version.rpartition("/")[0]
        attributes = {"verb": verb, "group": group, "resource": KINDS[kind].plural, "namespace": namespace}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes | ({"subresource": subresource} if subresource else {})},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        answer = await self._ask("create", "SelfSubjectAccessReview", path, body=review)
        return bool((answer.get("status") or {}).get("allowed"))

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
        end = time.monotonic() + self.wire.timeout
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
        name: str = "",
        revision: int,
        seconds: int,
        opened: Callable[[], object] = _nothing,
    ) -> AsyncGenerator[tuple[str, Manifest]]:
        """Yield each change since a revision: ``ADDED``, ``MODIFIED``, ``DELETED`` or ``BOOKMARK``, and the object.

        Args:
            kind: Kind of the objects.
            namespace: Namespace of the objects. Default: empty, all namespaces.
            selector: Label selector. Default: empty, all objects.
            name: Name of the only object to follow. Default: empty.
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
        query |= {"fieldSelector": f"metadata.name={name}"} if name else {}
        limit = aiohttp.ClientTimeout(total=None, sock_connect=TRY_SECONDS, sock_read=_READ_TIMEOUT_SECONDS)
        try:
            answer = (await self.wire.send("GET", KINDS[kind].path(namespace), query, None, limit=limit)).response
            try:
                if answer.status >= 300:
                    raise error_of(answer.status, decode(await answer.read()))
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
                abandon(answer)
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

    async def change(
        self,
        kind: str,
        name: str,
        change: Mapping[str, Any],
        *,
        uid: str = "",
        namespace: str = "",
        dry_run: bool = False,
    ) -> Manifest:
        """Change fields of an object by a merge patch: a mapping of the fields; null removes one.

        Args:
            kind: Kind of the object.
            name: Name of the object.
            change: The fields.
            uid: Required uid of the object. Default: empty, any.
            namespace: Namespace of the object. Default: empty, for kinds without namespaces.
            dry_run: Whether the change is only validated. Default: false.

        Raises:
            KubeGoneError: The object does not exist.
            KubeConflictError: The object has another uid.
            KubeInvalidError: The API server rejects the change.
            KubeForbiddenError: The permission is missing.
            KubeUnreachableError: The API server did not answer before the timeout.
        """
        # The API server takes a uid in a patch as a precondition.
        body = {**change, "metadata": {**change.get("metadata", {}), "uid": uid}} if uid else change
        query = {"fieldManager": self._manager} | ({"dryRun": "All"} if dry_run else {})
        path = KINDS[kind].path(namespace, name)
        return await self._ask("patch", kind, path, query=query, body=body, content=_MERGE_PATCH)

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


def _of(manifest: Mapping[str, Any]) -> tuple[str, str, str]:
    metadata = manifest["metadata"]
    return manifest["kind"], metadata.get("namespace", ""), metadata.get("name", "")
