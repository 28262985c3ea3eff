"""Tells a kubelet whether a process of a job does its work: an HTTP GET on a port of its own, answered `ok` or by a reason.

It needs no token, as a kubelet has none, and gives nothing away. Strangers may call as well: each has 5 s for at most 4 KiB,
and where too many are there the oldest makes room, so that the kubelet, whose request comes with its connection, is answered
whatever the others do. The answer is made on the loop that serves it: a master's own, whose life is in question; a parameter
server, whose threads wait for sockets and disks, has a loop for it on a thread that waits for nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any, Final

from shoal.transport.unauthenticated import Unauthenticated

__all__ = ["ProbeThread", "serve"]

CALL_SECONDS: Final = 5.0
REQUEST_BYTES: Final = 4096
MOST, MOST_OF_ONE = 64, 32
"""Callers at one time, in all and from one address."""

WhyNot = Callable[[], str]
"""Why the process is to be restarted; empty: it is not. Must not wait."""


async def serve(stream: socket.socket, why_not: WhyNot) -> asyncio.AbstractServer:
    """Answer on a socket that listens, until the server that is returned is closed."""
    callers: Unauthenticated[asyncio.Transport] = Unauthenticated(MOST, MOST_OF_ONE)
    loop = asyncio.get_running_loop()
    if stream.family == socket.AF_UNIX:
        return await loop.create_unix_server(lambda: _Call(callers, why_not), sock=stream, backlog=MOST)
    return await loop.create_server(lambda: _Call(callers, why_not), sock=stream, backlog=MOST)


class _Call(asyncio.Protocol):
    """One caller; one request, one answer."""

    def __init__(self, callers: Unauthenticated[asyncio.Transport], why_not: WhyNot) -> None:
        self._callers, self._why_not = callers, why_not
        self._request = bytearray()
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._deadline = asyncio.get_running_loop().call_later(CALL_SECONDS, transport.abort)
        name = transport.get_extra_info("peername")
        oldest = self._callers.admit(transport, str(name[0]) if isinstance(name, tuple) else "")
        if oldest is not None:
            oldest.abort()

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._request += data
        if len(self._request) > REQUEST_BYTES or not b"GET ".startswith(self._request[:4]):
            self._transport.abort()
        elif b"\r\n\r\n" in self._request:
            self._transport.write(_answer(self._why_not()))
            self._transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        if self._transport is not None:
            self._callers.remove(self._transport)
        if self._deadline is not None:
            self._deadline.cancel()


def _answer(reason: str) -> bytes:
    status = "503 Service Unavailable" if reason else "200 OK"
    body = f"{reason or 'ok'}\n".encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


class ProbeThread:
    """Answers on a loop and a thread of its own.

    Args:
        stream: A socket that listens; it is closed in the end.
        why_not: See `WhyNot`.
    """

    def __init__(self, stream: socket.socket, why_not: WhyNot) -> None:
        self._stream, self._why_not = stream, why_not
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="shoal-probe", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Answer no more."""
        with contextlib.suppress(RuntimeError):  # its loop has ended
            self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        self._loop.set_exception_handler(_accept_failed)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        server = await serve(self._stream, self._why_not)
        await self._over.wait()
        server.close()


def _accept_failed(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """No descriptor is free: asyncio tries again in a second, and the acceptor of the other port says so."""
    if not isinstance(context.get("exception"), OSError):
        loop.default_exception_handler(context)
