"""The API server over plain HTTP, with one connection per thread: a kubectl per request costs a hundred times as much.

The tests run a user's commands through the real kubectl; this client is for observing, and for acting as a kubelet.
"""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec
import yaml

from shoal.kube.kinds import KINDS

__all__ = ["Api", "ApiAwayError", "ApiError"]

APPLY, JSON_PATCH = "application/apply-patch+yaml", "application/json-patch+json"
MERGE, STRATEGIC = "application/merge-patch+json", "application/strategic-merge-patch+json"
"""The latter knows that conditions and containers are lists by name; custom resources have no such knowledge."""


class ApiError(Exception):
    """The API server refused the request; the message is its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ApiAwayError(Exception):
    """The API server did not answer, or could not."""


class Api:
    """A client with the certificates of a kubeconfig's user."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._context = ssl.create_default_context(cafile=cluster["certificate-authority"])
        self._context.load_cert_chain(user["client-certificate"], user["client-key"])
        self._address = urllib.parse.urlsplit(cluster["server"]).netloc
        self._here = threading.local()
        self._connections: set[http.client.HTTPSConnection] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; the next request opens a new one."""
        while self._connections:
            self._connections.pop().close()

    def list(
        self, kind: str, namespace: str = "", *, labels: str = "", fields: str = "", most: int | None = None
    ) -> list[Any]:
        """List the objects of a kind, with these labels and fields, at most so many."""
        chosen = {"labelSelector": labels, "fieldSelector": fields, "limit": most}
        query = urllib.parse.urlencode({key: value for key, value in chosen.items() if value})
        found = self._ask("GET", f"{KINDS[kind].path(namespace)}?{query}")
        return list(found["items"])

    def get(self, kind: str, name: str, namespace: str = "") -> Any:
        """Return one object, or None if it does not exist."""
        try:
            return self._ask("GET", KINDS[kind].path(namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def patch(self, kind: str, name: str, namespace: str, change: Mapping[str, Any], *, status: bool = False) -> None:
        """Patch an object or its status; an object that does not exist is ignored."""
        path = KINDS[kind].path(namespace, name, subresource="status" if status else "")
        try:
            self._ask("PATCH", path, change, MERGE if kind == "TrainingJob" else STRATEGIC)
        except ApiError as error:
            if error.status != 404:
                raise

    def applied(self, manifest: Mapping[str, Any], manager: str) -> Any:
        """Return the object after a server-side apply."""
        path = KINDS[manifest["kind"]].path(manifest["metadata"]["namespace"], manifest["metadata"]["name"])
        return self._ask("PATCH", f"{path}?fieldManager={manager}&force=true", manifest, APPLY)

    def as_if(self, manifest: Mapping[str, Any], path: Sequence[object], value: object, manager: str) -> Any:
        """Return the object as if another client had changed one value, or None if the API server refuses the change."""
        at = "".join(f"/{str(each).replace('~', '~0').replace('/', '~1')}" for each in path)
        change = [{"op": "replace", "path": at, "value": value}]
        where = KINDS[manifest["kind"]].path(manifest["metadata"]["namespace"], manifest["metadata"]["name"])
        try:
            return self._ask("PATCH", f"{where}?fieldManager={manager}&dryRun=All", change, JSON_PATCH)
        except ApiError:
            return None

    def evicts(self, namespace: str, pod: str, eviction: Mapping[str, Any]) -> bool:
        """Return whether the API server evicts a pod; it does not where a budget forbids it."""
        path = KINDS["Pod"].path(namespace, pod, subresource="eviction")
        status, _ = self._once("POST", path, json.dumps(eviction), "application/json")
        return status < 300

    def create(self, kind: str, namespace: str, manifest: Mapping[str, Any]) -> Any:
        """Create an object."""
        made = {"apiVersion": KINDS[kind].version, "kind": kind, **manifest}
        return self._ask("POST", KINDS[kind].path(namespace), made)

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | list[Any] | None = None, kind: str = "application/json"
    ) -> Any:
        text = json.dumps(body) if body is not None else None
        try:
            try:
                status, said = self._once(method, path, text, kind)
            except (OSError, http.client.HTTPException):
                # The server closes a connection that was idle too long.
                status, said = self._once(method, path, text, kind)
        except (OSError, http.client.HTTPException) as error:
            raise ApiAwayError(str(error)) from error
        if status == 429 or status >= 500:
            raise ApiAwayError(said)
        if status >= 300:
            raise ApiError(status, msgspec.json.decode(said).get("message", said))
        # Lists of a thousand pods are long, and decoding them should not dominate the test's time.
        return msgspec.json.decode(said)

    def _once(self, method: str, path: str, body: str | None, kind: str) -> tuple[int, str]:
        connection = getattr(self._here, "connection", None)
        if connection is None:
            connection = http.client.HTTPSConnection(self._address, context=self._context, timeout=30)
            self._here.connection = connection
        self._connections.add(connection)
        try:
            connection.request(method, path, body, {"Content-Type": kind, "Accept": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except BaseException:
            # It reconnects on the next request.
            connection.close()
            raise
