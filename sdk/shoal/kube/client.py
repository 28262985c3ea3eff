"""Reads and writes objects as plain mappings: by server-side apply, by exact patches, never by read-modify-write.

An API server that is restarted, busy or behind a connection that broke is asked again until the caller's patience ends,
where asking twice is the same as once: everything here but ``create``, and that one says what it found.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any, Final, Self

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import load_config

from shoal.kube.errors import KubeConflictError, KubeError, KubeGoneError, KubeUnreachableError, error_of
from shoal.kube.kinds import KINDS, Kind

__all__ = ["Kube"]

Manifest = dict[str, Any]

_APPLY: Final = "application/apply-patch+yaml"
_MERGE: Final = "application/merge-patch+json"
_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 2.0
_PAGE: Final = 500


class Kube:
    """A connection to one cluster.

    Args:
        client: The library's, with address and credentials.
        manager: Who owns the fields that are applied.
        patience_seconds: How long a call waits for an API server that does not answer.
    """

    def __init__(self, client: ApiClient, *, manager: str = "shoal", patience_seconds: float = 30.0) -> None:
        self._client = client
        self._manager = manager
        self._patience = patience_seconds

    @classmethod
    async def connect(
        cls, *, kubeconfig: str | None = None, context: str | None = None, patience_seconds: float = 30.0
    ) -> Self:
        """Connect as the kubeconfig says, or (without one) as the pod that this process runs in.

        Raises:
            KubeError: There is neither.
        """
        configuration = Configuration()
        named = {"config_file": kubeconfig, "context": context}
        try:
            await load_config(client_configuration=configuration, **{k: v for k, v in named.items() if v is not None})
        except Exception as error:
            # The library raises errors of many kinds here, and what it names is what a person can mend.
            raise KubeError(f"no cluster can be reached: {error}; name a kubeconfig, or set KUBECONFIG") from error
        configuration.retries = None
        return cls(ApiClient(configuration), patience_seconds=patience_seconds)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- Reading ---

    async def get(self, kind: str, name: str, *, namespace: str = "") -> Manifest | None:
        """An object; None if it is not there."""
        try:
            return await self._ask("GET", KINDS[kind].path(namespace, name))
        except KubeGoneError:
            return None

    async def list(self, kind: str, *, namespace: str = "", selector: str = "") -> list[Manifest]:
        """All objects of a kind, in a namespace or everywhere, with these labels."""
        found: list[Manifest] = []
        query = {"limit": str(_PAGE)} | ({"labelSelector": selector} if selector else {})
        while True:
            page = await self._ask("GET", KINDS[kind].path(namespace), query=query)
            found += page.get("items") or []
            following = (page.get("metadata") or {}).get("continue")
            if not following:
                return found
            query["continue"] = following

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
        return await self._ask("PATCH", kind.path(namespace, name), query=query, body=manifest, content=_APPLY)

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
        return await self._ask("POST", kind.path(namespace), query=query, body=manifest)

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
            await self._ask("DELETE", KINDS[kind].path(namespace, name), body=body)
        except (KubeGoneError, KubeConflictError):
            return False
        return True

    async def set_status(self, kind: str, name: str, status: Mapping[str, Any], *, namespace: str = "") -> bool:
        """Change these fields of an object's status (null removes one); False if the object is gone."""
        path = KINDS[kind].path(namespace, name, subresource="status")
        try:
            await self._ask(
                "PATCH", path, query={"fieldManager": self._manager}, body={"status": status}, content=_MERGE
            )
        except KubeGoneError:
            return False
        return True

    # --- The wire ---

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content: str = "application/json",
    ) -> Manifest:
        end = time.monotonic() + self._patience
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return await self._once(method, path, query or {}, body, content)
            except KubeUnreachableError as error:
                if time.monotonic() + pause > end:
                    raise
                await asyncio.sleep(max(pause, min(error.retry_after_seconds, end - time.monotonic())))
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _once(
        self, method: str, path: str, query: Mapping[str, str], body: Mapping[str, Any] | None, content: str
    ) -> Manifest:
        headers = {"Accept": "application/json", "Content-Type": content}
        try:
            request = await self._client.param_serialize(
                method,
                path,
                query_params=list(query.items()),
                header_params=headers,
                body=dict(body) if body is not None else None,
                auth_settings=["BearerToken"],
            )
            response = await self._client.call_api(*request, _request_timeout=self._patience)
            text = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise KubeUnreachableError(f"the API server does not answer: {error or type(error).__name__}") from error
        try:
            answer = json.loads(text) if text else {}
        except ValueError:
            answer = None
        if response.status >= 300:
            found = error_of(response.status, answer)
            found.retry_after_seconds = _seconds(response.headers.get("Retry-After"))
            raise found
        if not isinstance(answer, dict):
            raise KubeUnreachableError("the API server's answer is no object", status=response.status)
        return answer


def _of(manifest: Mapping[str, Any]) -> tuple[Kind, str, str]:
    metadata = manifest["metadata"]
    return KINDS[manifest["kind"]], metadata.get("namespace", ""), metadata.get("name", "")


def _seconds(header: str | None) -> float:
    return float(header) if header is not None and header.isdigit() else 0.0
