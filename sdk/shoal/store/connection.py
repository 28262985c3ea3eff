"""One gRPC channel to one member of etcd, and the factory of channels.

gRPC's channels reconnect by themselves, but with a growing back-off (up to two minutes), they keep a token that a
restarted etcd does not know, and they hide the interruption. A channel is therefore closed at its first failure, and
the next one connects to the next endpoint. Errors are of three kinds: ``RetryReason`` (retry on a new connection),
``Lapsed`` (the revision is not available, or not any more) and ``StoreRefusedError`` (a retry is useless).
"""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from shoal.store._stubs import grpc, rpc
from shoal.store.errors import StoreRefusedError
from shoal.store.history import Header

__all__ = ["Connector", "EtcdConnection", "Lapsed", "Oversized", "RetryReason", "Tls", "header_of", "prefix_end"]

_TRY_SECONDS: Final = 5.0
"""Timeout of one request, in seconds, before it is repeated on a new connection."""

_OPTIONS: Final = (
    # Each channel has its own socket and back-off; by default gRPC shares both between channels.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Detects a machine that disappeared while a watch is idle. Etcd rejects intervals below 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Far above the value of one key (1.5 MiB), far below the memory that a page of 1000 such values takes.
    ("grpc.max_receive_message_length", 32 << 20),
    ("grpc.max_send_message_length", -1),
    # HTTP proxies set in the environment are not used for etcd.
    ("grpc.enable_http_proxy", 0),
)

_PERMANENT: Final = frozenset({"INVALID_ARGUMENT", "PERMISSION_DENIED", "FAILED_PRECONDITION", "NOT_FOUND"})


class RetryReason(Exception):  # noqa: N818  (a state of the connection, for the retry loop; not visible to users)
    """Etcd is unreachable or busy; the call must be retried."""


class Lapsed(Exception):  # noqa: N818  (an answer, not an error)
    """The requested revision is compacted or in the future."""


class Oversized(RetryReason):
    """The response exceeds the message limit of the connection; the caller must request less."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificates for an etcd with TLS, as PEM files.

    Args:
        certificate_authority: Authority that signed etcd's certificate. Default: None, the system's authorities.
        certificate: The client's certificate; requires ``key``. Default: None.
        key: The client's private key. Default: None.
    """

    certificate_authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def credentials(self) -> Any:
        """Return gRPC's channel credentials.

        Raises:
            StoreRefusedError: A file cannot be read.
        """
        try:
            files = [
                path.read_bytes() if path else None for path in (self.certificate_authority, self.key, self.certificate)
            ]
        except OSError as error:
            raise StoreRefusedError(f"a certificate for etcd cannot be read: {error}") from error
        return grpc.ssl_channel_credentials(*files)


def header_of(answer: Any) -> Header:
    """Return the header of a response, which identifies cluster and revision."""
    header = answer.header
    return Header(header.cluster_id, header.revision, header.raft_term)


def prefix_end(prefix: bytes) -> bytes:
    r"""Return the first key after all keys with a prefix (``\0``: no key follows them)."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"


def _target(endpoint: str) -> tuple[str, bool]:
    """Return gRPC's target for an endpoint, and whether the endpoint uses TLS."""
    if endpoint.startswith("unix://"):
        return "unix:" + endpoint.removeprefix("unix://"), False
    address = endpoint.removeprefix("http://").removeprefix("https://").rstrip("/")
    if "/" in address or not re.fullmatch(r".+:\d{1,5}", address):
        raise StoreRefusedError(
            f"etcd endpoint {endpoint!r} is not understood: write HOST:PORT, https://HOST:PORT or unix:///PATH"
        )
    return address, endpoint.startswith("https://")


@contextmanager
def _converted_errors(endpoint: str) -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        raise _error_of(error, endpoint) from None
    except ValueError as error:
        # gRPC raises ValueError if another thread has closed the channel.
        raise RetryReason(f"connection to etcd at {endpoint} was closed") from error


def _error_of(error: Any, endpoint: str) -> Exception:
    code, details = error.code().name, error.details() or ""
    text = f"etcd at {endpoint}: {details} ({code})"
    if code == "OUT_OF_RANGE":
        return Lapsed(details)
    if "invalid auth token" in details or "revision of auth store is old" in details:
        return RetryReason(text)
    if code == "RESOURCE_EXHAUSTED" and "space" in details:
        return RetryReason(f"{text}: compact and defragment it, or start it with a larger --quota-backend-bytes")
    if code == "RESOURCE_EXHAUSTED" and "larger than max" in details:
        # gRPC's text for a response begins with "Received"; the text for a request does not contain it.
        fix = f"{text}: the request is too large, cut it with shoal.store.in_batches"
        return Oversized(text) if "Received" in details else StoreRefusedError(fix)
    if code == "UNIMPLEMENTED":
        return StoreRefusedError(f"{text}: it does not speak etcd's v3 protocol")
    return StoreRefusedError(text) if code in _PERMANENT else RetryReason(text)


class EtcdConnection:
    """A channel with the calls that this package needs. All calls block; `close` cancels them."""

    def __init__(self, endpoint: str, *, tls: Tls | None, username: str | None, password: str | None) -> None:
        target, secure = _target(endpoint)
        self.endpoint = endpoint
        self._login = (username, password) if username is not None and password is not None else None
        self._login_lock = threading.Lock()
        if secure or tls is not None:
            self._channel = grpc.secure_channel(target, (tls or Tls()).credentials(), options=_OPTIONS)
        else:
            self._channel = grpc.insecure_channel(target, options=_OPTIONS)
        self._metadata: tuple[tuple[str, str], ...] | None = None if self._login else ()
        self._kv = rpc.KVStub(self._channel)

    def transact(self, request: Any) -> Any:
        """Send a ``TxnRequest``."""
        return self._call(self._kv.Txn, request)

    def range(self, request: Any) -> Any:
        """Send a ``RangeRequest``."""
        return self._call(self._kv.Range, request)

    def status(self) -> Any:
        """Send a ``StatusRequest`` to this member."""
        return self._call(rpc.MaintenanceStub(self._channel).Status, rpc.StatusRequest())

    def administer(self, method: str, request: Any) -> Any:
        """Send a request of etcd's Auth service (users and roles)."""
        return self._call(getattr(rpc.AuthStub(self._channel), method), request)

    def log_in(self, request: Any) -> Any:
        """Send an ``AuthenticateRequest``; this connection does not use the token."""
        with _converted_errors(self.endpoint):
            return rpc.AuthStub(self._channel).Authenticate(request, timeout=_TRY_SECONDS)

    def watch(self, requests: Iterator[Any]) -> Any:
        """Open a watch stream; the returned call can be cancelled."""
        with _converted_errors(self.endpoint):
            return rpc.WatchStub(self._channel).Watch(requests, metadata=self._token())

    def next_of(self, call: Any) -> Any:
        """Return the next message of a stream; blocks without a timeout."""
        with _converted_errors(self.endpoint):
            try:
                return next(call)
            except StopIteration:
                raise RetryReason(f"etcd at {self.endpoint} ended a watch") from None

    def _call(self, method: Any, request: Any) -> Any:
        with _converted_errors(self.endpoint):
            return method(request, timeout=_TRY_SECONDS, metadata=self._token())

    def _token(self) -> tuple[tuple[str, str], ...]:
        """Log in before the first call. A token is valid for this channel: neither outlives a restart of etcd."""
        if self._metadata is None:
            with self._login_lock:
                if self._metadata is None:
                    assert self._login is not None
                    request = rpc.AuthenticateRequest(name=self._login[0], password=self._login[1])
                    answer = rpc.AuthStub(self._channel).Authenticate(request, timeout=_TRY_SECONDS)
                    self._metadata = (("token", answer.token),)
        return self._metadata

    def close(self) -> None:
        """Close the channel and cancel all calls. Thread-safe."""
        self._channel.close()


@dataclass(frozen=True, slots=True)
class Connector:
    """Factory of connections, round-robin over the endpoints, so that an unavailable member costs one attempt.

    Args:
        endpoints: ``HOST:PORT``, ``https://HOST:PORT`` or ``unix:///PATH``, of the members of one cluster.
        username: An etcd user; requires ``password``. Default: None.
        password: The user's password; not part of the repr. Default: None.
        tls: Certificates; enables TLS also for a plain ``HOST:PORT``. Default: None.
    """

    endpoints: tuple[str, ...]
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Tls | None = None
    _next_index: Iterator[int] = field(default_factory=itertools.count, repr=False)

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise StoreRefusedError("no etcd endpoint was given: write HOST:PORT, https://HOST:PORT or unix:///PATH")
        if (self.username is None) != (self.password is None):
            raise StoreRefusedError("an etcd username needs a password, and the other way round")
        for endpoint in self.endpoints:
            _target(endpoint)

    def make(self) -> EtcdConnection:
        """Return a new channel; nothing is sent yet."""
        endpoint = self.endpoints[next(self._next_index) % len(self.endpoints)]
        return EtcdConnection(endpoint, tls=self.tls, username=self.username, password=self.password)
