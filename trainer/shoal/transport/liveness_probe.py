"""The liveness probe of a process: an HTTP GET on a separate port, with the reply `ok` or a reason (503).

The probe needs no token, as a kubelet has none, and discloses nothing else. Any process can connect: each caller has 5 s
and 4 KiB at most, and the oldest is closed if there are too many, so that the kubelet, which sends its request with its
connection, always gets a reply. The reply is made on the loop that serves the probe. A master uses its own loop, which is
what the probe checks; a parameter server, whose threads wait for sockets and disks, has a thread and a loop for the probe.
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
"""The limits of concurrent callers, in total and from one address."""

RestartReason = Callable[[], str]
"""Returns why the process must be restarted; empty if it works. Must not block."""


async def serve(stream: socket.socket, restart_reason: RestartReason) -> asyncio.AbstractServer:
    """Serve the probe on a listening socket until the returned server is closed."""
    callers: Unauthenticated[asyncio.Transport] = Unauthenticated(MOST, MOST_OF_ONE)
    loop = asyncio.get_running_loop()
    if stream.family == socket.AF_UNIX:
        return await loop.create_unix_server(lambda: _Call(callers, restart_reason), sock=stream, backlog=MOST)
    return await loop.create_server(lambda: _Call(callers, restart_reason), sock=stream, backlog=MOST)


class _Call(asyncio.Protocol):
    """The connection of one caller: one request, one reply."""

    def __init__(self, callers: Unauthenticated[asyncio.Transport], restart_reason: RestartReason) -> None:
        self._callers, self._restart_reason = callers, restart_reason
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
            self._transport.write(_answer(self._restart_reason()))
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
    """Serves the probe on its own loop and thread.

    Args:
        stream: The listening socket; it is closed when the thread ends.
        restart_reason: Returns why the process must be restarted; see `RestartReason`.
    """

    def __init__(self, stream: socket.socket, restart_reason: RestartReason) -> None:
        self._stream, self._restart_reason = stream, restart_reason
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="shoal-probe", daemon=True)

    def start(self) -> None:
        """Start to serve the probe."""
        self._thread.start()

    def close(self) -> None:
        """Stop serving the probe; wait up to 2 s for the thread to end."""
        with contextlib.suppress(RuntimeError):  # its loop has ended
            self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        self._loop.set_exception_handler(_accept_failed)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        server = await serve(self._stream, self._restart_reason)
        await self._stopped.wait()
        server.close()


def _accept_failed(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Ignore a lack of descriptors: asyncio retries after 1 s, and the acceptor of the other port logs it."""
    if not isinstance(context.get("exception"), OSError):
        loop.default_exception_handler(context)
