"""Requests to the API server: address and credentials, retries with back-off, timeouts, and fencing of writes.

A request is retried until the timeout while the API server restarts, is busy, or the connection breaks.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlencode
from urllib.request import getproxies_environment

import aiohttp
import msgspec
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.client.rest import RESTResponse
from kubernetes.aio.config import KUBE_CONFIG_DEFAULT_LOCATION, list_kube_config_contexts, load_config

from shoal.kube.errors import KubeError, KubeFencedError, KubeUnconfiguredError, KubeUnreachableError, error_of
from shoal.retry import BackOff

__all__ = ["TRY_SECONDS", "Manifest", "Wire", "abandon", "decode"]

Manifest = dict[str, Any]

_INTERNAL: Final = 500
_INTERNAL_SECONDS: Final = 1.0
"""Seconds during which a request that fails with status 500 is retried; the caller reports a permanent error, such as a
webhook that cannot be called."""
_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 2.0
TRY_SECONDS: Final = 10.0
"""Timeout of one attempt, in seconds, so that one broken connection does not use up the caller's whole timeout."""
_MOST_REQUESTS: Final = 64
"""Most concurrent requests of one client. More would wait in the library for a connection, which counts to the attempt's
timeout. The operator's `controller/executor.py` has lower limits for the pods and for the other objects of jobs."""
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
_POD_NAMESPACE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def _ignore(_verb: str, _kind: str, _code: int) -> None:
    pass


def _no_limit() -> float:
    return math.inf


class Wire:
    """A connection to one cluster.

    Args:
        client: The client library's object, with address and credentials.
        namespace: Namespace of the kubeconfig's context, or of the pod of this process. Default: ``default``.
        timeout_seconds: Timeout of a call, including its retries. Seconds. Default: 30.
        on_answer: Called after every attempt with verb, kind and HTTP status (0: no response).
        may_write: Called before every attempt of a write; returns for how many seconds it may run. At 0 or less the
            write is not sent. Default: no limit.
    """

    def __init__(
        self,
        client: ApiClient,
        *,
        namespace: str = "default",
        timeout_seconds: float = 30.0,
        on_answer: Callable[[str, str, int], None] = _ignore,
        may_write: Callable[[], float] = _no_limit,
    ) -> None:
        self.client = client
        self.namespace = namespace
        self.timeout = timeout_seconds
        self._on_answer = on_answer
        self._may_write = may_write
        self._concurrency = asyncio.Semaphore(_MOST_REQUESTS)

    @classmethod
    async def connect(
        cls,
        *,
        kubeconfig: str | None,
        context: str | None,
        timeout_seconds: float,
        on_answer: Callable[[str, str, int], None],
        may_write: Callable[[], float],
    ) -> Self:
        """Connect with the kubeconfig, or without one with the service account of the pod of this process; as `Kube.connect`.

        Raises:
            KubeUnconfiguredError: There is neither a kubeconfig nor a service account.
        """
        configuration = Configuration()
        # The library reads the environment when it is imported; it may have changed since.
        named = {"config_file": kubeconfig or os.environ.get("KUBECONFIG") or None, "context": context}
        given = {key: value for key, value in named.items() if value is not None}
        try:
            with warnings.catch_warnings():
                # In a pod the library warns that there is no kubeconfig, which is expected there.
                warnings.filterwarnings("ignore", "kube_config_path not provided", UserWarning)
                await load_config(client_configuration=configuration, **given)
            namespace = _namespace(given)
        except Exception as error:
            # The library raises errors of many types here; their texts name what the user can fix.
            raise KubeUnconfiguredError(
                f"no cluster can be reached: {error}; name a kubeconfig, or set KUBECONFIG"
            ) from error
        configuration.retries = None
        # The library looks up a proxy (and reads ~/.netrc) for each request, in a thread of the event loop's pool. That
        # takes longer than the rest of the request, and waits while the pool is busy.
        configuration.client_session_kwargs = {"trust_env": not _PROXIES.isdisjoint(getproxies_environment())}
        return cls(
            ApiClient(configuration),
            namespace=namespace,
            timeout_seconds=timeout_seconds,
            on_answer=on_answer,
            may_write=may_write,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self.client.close()

    async def ask(
        self,
        verb: str,
        kind: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        content: str = "application/json",
    ) -> Manifest:
        """Send a request and return its decoded answer; attempts are repeated until the timeout.

        Raises:
            KubeError: The API server refuses the request, or does not answer before the timeout.
        """
        started = time.monotonic()
        end = started + self.timeout
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
        longest = min(TRY_SECONDS, self.timeout)
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
            response = await self.send(method, path, query, body, content=content)
            text = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise KubeUnreachableError(f"the API server does not answer: {error or type(error).__name__}") from error
        answer = decode(text)
        if response.status >= 300:
            found = error_of(response.status, answer)
            found.retry_after_seconds = _seconds(response.headers.get("Retry-After"))
            raise found
        if not isinstance(answer, dict):
            raise KubeUnreachableError("the API server's response is not a JSON object", status=response.status)
        return response.status, answer

    async def send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None,
        *,
        content: str = "application/json",
        limit: aiohttp.ClientTimeout | None = None,
    ) -> RESTResponse:
        """Send a request once; return the response before its body is read."""
        # The library's own `param_serialize` is not used: it walks through every value of a body.
        headers = {"Accept": "application/json", "Content-Type": content, **self.client.default_headers}
        url = f"{self.client.configuration.host}{path}{'?' if query else ''}{urlencode(query)}"
        await self.client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        return await self.client.call_api(
            method, url, headers, body, _request_timeout=limit or self._seconds_for(method)
        )


def abandon(answer: aiohttp.ClientResponse) -> None:
    """Close the connection of a stream that may not have ended, at once.

    Closing alone would begin TLS's closing handshake, for which nothing waits: the socket would stay open after the client.
    """
    transport = answer.connection.transport if answer.connection is not None else None
    answer.close()
    if transport is not None:
        transport.abort()


def decode(text: bytes) -> Any:
    """Decode a JSON body; None if it is not JSON."""
    try:
        return msgspec.json.decode(text) if text else {}
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _namespace(given: Mapping[str, Any]) -> str:
    """Return the namespace of the kubeconfig's context, or of the pod of this process."""
    if "config_file" in given or Path(KUBE_CONFIG_DEFAULT_LOCATION).expanduser().exists():
        contexts, active = list_kube_config_contexts(config_file=given.get("config_file"))
        named = given.get("context") or active["name"]
        found = next((each for each in contexts if each["name"] == named), active)
        return str(found["context"].get("namespace") or "default")
    return _POD_NAMESPACE.read_text().strip() if _POD_NAMESPACE.is_file() else "default"


def _seconds(header: str | None) -> float:
    return float(header) if header is not None and header.isdigit() else 0.0
