"""A faulty network between the processes of a job: a proxy delays, throttles, cuts, half-closes and swallows bytes.

    with Proxy() as proxy:
        link = proxy.route(lambda: "tcp://127.0.0.1:4000")     # or a file:// that contains the address
        ... a process calls link.address ...
        link.swallow(); link.heal()

The proxy accepts as a middlebox does: bytes that it swallowed were acknowledged to their sender, so that no time-out of TCP
detects a half-open connection. It runs on its own thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from shoal.transport.address import resolve

__all__ = ["WAYS", "Proxy", "Route"]

CHUNK = 64 << 10
WAYS = ("there", "back")
"""From the caller to the process that listens, and from it to the caller."""
RESET = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class _Pair:
    """One connection: the caller's end and the end at the process that listens."""

    ends: dict[str, asyncio.StreamWriter]
    """Where the bytes of each way go."""
    swallowed: set[str] = field(default_factory=set)
    """Ways whose bytes vanish."""


class Route:
    """One address of the proxy, and the state of the network behind it. Every method may be called from any thread.

    Args:
        proxy: The proxy that serves the route.
        target: Returns the address of the process that listens; called for each connection.
    """

    def __init__(self, proxy: Proxy, target: Callable[[], str]) -> None:
        self._proxy, self._target = proxy, target
        self._pairs: set[_Pair] = set()
        self._seconds = 0.0
        self._rate = 0.0
        self._swallowing: set[str] = set()
        self.stream = socket.create_server(("127.0.0.1", 0))
        self.address = "tcp://{}:{}".format(*self.stream.getsockname())

    @property
    def connections(self) -> int:
        """Number of open connections."""
        return len(self._pairs)

    def delay(self, seconds: float) -> None:
        """Delay each chunk of bytes by ``seconds``; 0 ends the delay."""
        self._seconds = seconds

    def throttle(self, rate: float) -> None:
        """Limit each way of each connection to ``rate`` bytes a second; 0 ends the limit."""
        self._rate = rate

    def swallow(self, ways: tuple[str, ...] = WAYS, *, newcomers: bool = True) -> None:
        """Discard every byte of these ways. Open connections discard them until they are closed, also after `heal`.

        Args:
            ways: Some of `WAYS`.
            newcomers: Whether connections that are made before `heal` discard them too.
        """

        def now() -> None:
            for pair in self._pairs:
                pair.swallowed.update(ways)

        self._swallowing = set(ways) if newcomers else set()
        self._proxy.call(now)

    def cut(self) -> None:
        """Reset every connection (RST), at both ends."""
        self._proxy.call(lambda: [_reset(pair) for pair in self._pairs])

    def half_close(self, way: str) -> None:
        """End one way of every connection (FIN), and discard what arrives on it. The other way continues."""

        def now() -> None:
            for pair in self._pairs:
                pair.swallowed.add(way)
                with contextlib.suppress(OSError, RuntimeError):
                    pair.ends[way].write_eof()

        self._proxy.call(now)

    def heal(self) -> None:
        """Forward what is sent from now on without faults, also on new connections."""
        self._seconds = self._rate = 0.0
        self._swallowing = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, until both of its ways have ended."""
        try:
            other_reader, other = await _open(resolve(self._target()))
        except (OSError, ValueError):
            writer.transport.abort()
            return
        pair = _Pair({"there": other, "back": writer}, set(self._swallowing))
        self._pairs.add(pair)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(pair, "there", reader))
                group.create_task(self._pump(pair, "back", other_reader))
        finally:
            self._pairs.discard(pair)
            for end in (writer, other):
                end.transport.abort()

    async def _pump(self, pair: _Pair, way: str, reader: asyncio.StreamReader) -> None:
        end = pair.ends[way]
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                if self._seconds:
                    await asyncio.sleep(self._seconds)
                if self._rate:
                    await asyncio.sleep(len(data) / self._rate)
                if way not in pair.swallowed:
                    end.write(data)
                    await end.drain()
        if way not in pair.swallowed and not end.is_closing():
            with contextlib.suppress(OSError, RuntimeError):
                end.write_eof()


async def _open(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address.startswith("unix://"):
        return await asyncio.open_unix_connection(address.removeprefix("unix://"), limit=CHUNK)
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return await asyncio.open_connection(host, int(port), limit=CHUNK)


def _reset(pair: _Pair) -> None:
    for end in pair.ends.values():
        stream = end.get_extra_info("socket")
        with contextlib.suppress(OSError):
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        end.transport.abort()


class Proxy:
    """A proxy of any number of routes, on one thread."""

    def __init__(self) -> None:
        self.routes: list[Route] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._servers: list[asyncio.Server] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        async def end() -> None:
            for server in self._servers:
                server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def call(self, action: Callable[[], Any]) -> None:
        """Run an action on the proxy's thread, and wait for it."""

        async def act() -> None:
            action()

        asyncio.run_coroutine_threadsafe(act(), self._loop).result(10)

    def route(self, target: Callable[[], str]) -> Route:
        """Add an address, behind which a process listens."""
        made = Route(self, target)

        async def listen() -> None:
            self._servers.append(await asyncio.start_server(made.serve, sock=made.stream, limit=CHUNK))

        asyncio.run_coroutine_threadsafe(listen(), self._loop).result(10)
        self.routes.append(made)
        return made

    def any_route(self, chance: random.Random) -> Route:
        """Return a random route, one with open connections if there is one."""
        return chance.choice([route for route in self.routes if route.connections] or self.routes)
