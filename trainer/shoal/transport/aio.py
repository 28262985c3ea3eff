"""Connections on an asyncio loop, for the master and its observers; they carry messages without payloads.

A ``Protocol`` parses all complete frames of a read at once and sends all messages of one iteration of the loop in one
write, which is several times faster than streams for many small messages.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import msgspec

from shoal.protocol.decoding import UNDECODABLE
from shoal.transport import auth
from shoal.transport.address import connect as open_socket
from shoal.transport.address import watch_over
from shoal.transport.frames import HEADER, FrameError, encode, parse_header
from shoal.transport.unauthenticated import Unauthenticated

__all__ = ["AsyncConnection", "Caller", "Listener", "connect"]

HANDSHAKE_SECONDS = 10.0
CLOSE_SECONDS = 10.0
"""The time that a peer has to read the remaining data when a connection is closed."""
HIGH_WATER = 16 << 20
"""The limit of unsent bytes above which a connection is aborted; a peer that reads has some kilobytes."""

_handshake = msgspec.msgpack.Decoder(auth.Handshake)


class AsyncConnection(asyncio.Protocol):
    """One end of a connection. Subclasses implement the handshake; ``peer`` is None until it is complete."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[Any]) -> None:
        self.peer: auth.Identity | None = None
        self.last_heard = 0.0
        self.closed = False
        self.close_reason = ""
        self._decoder = decoder
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._outgoing: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._deadline: asyncio.TimerHandle | None = None

    def on_ready(self) -> None:
        """Called when the peer has authenticated."""

    def on_message(self, message: Any) -> None:
        """Called with each message."""

    def on_closed(self) -> None:
        """Called once when the connection is closed, also if the handshake failed."""

    def on_handshake(self, message: auth.Handshake) -> None:
        """Called with each message of the handshake; sets ``peer`` when the handshake is complete."""
        raise NotImplementedError

    def send(self, message: Any) -> None:
        """Send a message with the others of this iteration of the loop. A closed connection ignores it."""
        if self.closed:
            return
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(encode(message))

    def close(self, reason: str = "") -> None:
        """Send the remaining messages, then close; aborted after `CLOSE_SECONDS`."""
        self._flush()
        self.close_reason = self.close_reason or reason
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()
            self._loop.call_later(CLOSE_SECONDS, lambda: None if self.closed else self.abort())

    def abort(self, reason: str = "") -> None:
        """Close at once and discard unsent messages."""
        self.close_reason = self.close_reason or reason
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if not outgoing or self._transport is None or self.closed:
            return
        if self._transport.get_write_buffer_size() > HIGH_WATER:
            self.abort("it does not read what it is sent")
        else:
            self._transport.write(b"".join(outgoing))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the timeout of the handshake."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.last_heard = self._loop.time()
        stream = transport.get_extra_info("socket")
        if stream is not None:
            watch_over(stream)
        self._deadline = self._loop.call_later(HANDSHAKE_SECONDS, self._handshake_timed_out)

    def _handshake_timed_out(self) -> None:
        self.abort("no handshake")

    def connection_lost(self, _: Exception | None) -> None:
        """Mark the connection as closed and call ``on_closed``."""
        self.closed = True
        # A reset too: the TCP probe of a kubelet closes its connections without a request, every second.
        self.close_reason = self.close_reason or "closed by the peer"
        if self._deadline is not None:
            self._deadline.cancel()
        self.on_closed()

    def data_received(self, data: bytes) -> None:
        """Handle every complete frame."""
        self.last_heard = self._loop.time()
        self._buffer += data
        try:
            self._parse()
        except (FrameError, auth.AuthenticationError) as error:
            self.close(str(error))

    def _parse(self) -> None:
        buffer, start = self._buffer, 0
        while len(buffer) - start >= HEADER.size and not self.close_reason:
            length, payload = parse_header(
                memoryview(buffer)[start : start + HEADER.size], authenticated=self.peer is not None
            )
            if payload:
                raise FrameError("a payload where none belongs")
            end = start + HEADER.size + length
            if len(buffer) < end:
                break
            self._handle(bytes(memoryview(buffer)[start + HEADER.size : end]))
            start = end
        del buffer[:start]

    def _authenticated(self) -> bool:
        return self.peer is not None

    def _handle(self, body: bytes) -> None:
        if self.peer is not None:
            try:
                message = self._decoder.decode(body)
            except UNDECODABLE as error:
                raise FrameError(f"not a message that belongs here: {error}") from error
            self.on_message(message)
            return
        try:
            handshake = _handshake.decode(body)
        except UNDECODABLE as error:
            raise FrameError("not a handshake of Shoal's") from error
        self.on_handshake(handshake)
        if self._authenticated():
            if self._deadline is not None:
                self._deadline.cancel()
            self.on_ready()


class Listener(AsyncConnection):
    """The listener's end; ``unauthenticated`` has all unauthenticated callers of the process."""

    def __init__(
        self,
        decoder: msgspec.msgpack.Decoder[Any],
        *,
        identity: auth.Identity,
        token: auth.Token,
        job: str,
        unauthenticated: Unauthenticated[Listener],
    ) -> None:
        super().__init__(decoder)
        self._identity, self._token, self._job = identity, token, job
        self._unauthenticated = unauthenticated
        self._sent = auth.challenge()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Challenge the caller."""
        super().connection_made(transport)
        name = transport.get_extra_info("peername")
        oldest = self._unauthenticated.admit(self, str(name[0]) if isinstance(name, tuple) else "")
        if oldest is not None:
            oldest.abort("too many callers that have not authenticated")
        self.send(self._sent)

    def connection_lost(self, error: Exception | None) -> None:
        """Remove the caller from the unauthenticated ones."""
        self._unauthenticated.remove(self)
        super().connection_lost(error)

    def on_handshake(self, message: auth.Handshake) -> None:
        """Verify the caller's greeting; reply with ``Welcome`` or ``HandshakeRefused``."""
        if not isinstance(message, auth.Greeting):
            raise FrameError("a handshake out of order")
        try:
            auth.verify(message, self._sent, token=self._token, job=self._job)
        except auth.AuthenticationError as error:
            self.send(auth.HandshakeRefused(reason=str(error)))
            raise
        self.send(auth.welcome(message, self._sent, token=self._token, identity=self._identity))
        self.peer = message.identity
        self._unauthenticated.remove(self)


class Caller(AsyncConnection):
    """The caller's end; incoming messages are queued for ``receive``."""

    def __init__(
        self, decoder: msgspec.msgpack.Decoder[Any], *, identity: auth.Identity, token: auth.Token, job: str
    ) -> None:
        super().__init__(decoder)
        self._identity, self._token, self._job = identity, token, job
        self._sent: auth.Challenge | None = None
        self._greeting: auth.Greeting | None = None
        self._incoming: asyncio.Queue[Any] = asyncio.Queue()
        self.ready: asyncio.Future[None] = self._loop.create_future()

    def on_handshake(self, message: auth.Handshake) -> None:
        """Reply to the challenge; verify the welcome."""
        if isinstance(message, auth.HandshakeRefused):
            raise auth.AuthenticationError(message.reason)
        if isinstance(message, auth.Challenge) and self._greeting is None:
            self._sent = message
            self._greeting = auth.greet(message, token=self._token, job=self._job, identity=self._identity)
            self.send(self._greeting)
        elif isinstance(message, auth.Welcome) and self._greeting is not None and self._sent is not None:
            auth.verify_welcome(message, self._greeting, self._sent, token=self._token)
            self.peer = message.identity
        else:
            raise FrameError("a handshake out of order")

    def on_ready(self) -> None:
        """Let ``connect`` return."""
        if not self.ready.done():
            self.ready.set_result(None)

    def on_message(self, message: Any) -> None:
        """Queue the message for ``receive``."""
        self._incoming.put_nowait(message)

    def on_closed(self) -> None:
        """Wake pending calls of ``receive`` and ``connect``."""
        self._incoming.put_nowait(None)
        if not self.ready.done():
            self.ready.set_exception(auth.AuthenticationError(self.close_reason))

    async def receive(self) -> Any:
        """Return the next message.

        Raises:
            ConnectionResetError: The connection is closed; the text has the reason.
        """
        message = await self._incoming.get()
        if message is None:
            self._incoming.put_nowait(None)
            raise ConnectionResetError(self.close_reason)
        return message


async def connect(
    address: str,
    *,
    identity: auth.Identity,
    token: auth.Token,
    job: str,
    decoder: msgspec.msgpack.Decoder[Any],
    timeout: float = 5.0,  # noqa: ASYNC109 - of the connect, which runs in a thread
    make: Callable[..., Caller] = Caller,
) -> Caller:
    """Connect to a process of the job; ``receive`` of the result returns its messages.

    Raises:
        AuthenticationError: The listener refused, or does not have the token.
        OSError: No process listens there.
    """
    stream = await asyncio.to_thread(open_socket, address, timeout=timeout)
    stream.setblocking(False)
    loop = asyncio.get_running_loop()
    _, caller = await loop.create_connection(
        lambda: make(decoder, identity=identity, token=token, job=job), sock=stream
    )
    try:
        await caller.ready
    except BaseException:
        caller.abort()
        with contextlib.suppress(BaseException):
            caller.ready.exception()
        raise
    return caller
