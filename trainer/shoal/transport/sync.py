"""Blocking connections between trainers and parameter servers, which also transfer tensor bytes.

A blocking socket lets ``recv_into`` fill tensor memory. Sending and receiving wait in slices, so that the caller can run
checks (``idle``) and give the connection up; the slices lose no bytes of a frame. A connection whose peer sends or accepts
no byte for `STALL_SECONDS` within a message is given up; between messages there is no limit.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from shoal.protocol.decoding import UNDECODABLE
from shoal.transport import auth
from shoal.transport.address import connect as open_socket
from shoal.transport.address import watch_over
from shoal.transport.frames import HEADER, FrameError, encode, parse_header

__all__ = ["BlockingConnection", "accept", "connect"]

T = TypeVar("T")

HANDSHAKE_SECONDS = 10.0
IDLE_SECONDS = 0.25
"""The interval of ``idle`` calls at the connecting end."""
LISTENER_IDLE_SECONDS = 5.0
"""The interval of ``idle`` calls at the listening end, which has nothing to check and may have hundreds of callers."""
STALL_SECONDS = 20.0
"""The time without a byte within a message after which a connection is given up."""
_PART_BYTES = 1 << 20
"""The size of the parts in which a large message is received."""

_handshake = msgspec.msgpack.Decoder(auth.Handshake)


class BlockingConnection:
    """One end of a connection whose peer has authenticated. One thread may read while another one writes.

    Args:
        stream: The socket.
        peer: The identity of the other end.
        slice_seconds: The time of one wait for the peer, after which ``idle`` is called. Default: 0.25.
    """

    def __init__(self, stream: socket.socket, peer: auth.Identity, *, slice_seconds: float = IDLE_SECONDS) -> None:
        self.peer = peer
        self.heard = time.monotonic()
        """The time at which the last byte was received, in seconds, monotonic."""
        self._stream = stream
        self._header = bytearray(HEADER.size)
        stream.settimeout(None)
        # The kernel ends a blocking call after this time; a timeout in Python would cost a poll before every call.
        slice_ = struct.pack("ll", int(slice_seconds), int(slice_seconds % 1 * 1_000_000))
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, slice_)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, slice_)

    @property
    def local(self) -> bool:
        """Whether the connection is a Unix socket, so that memory can be shared with the peer."""
        return self._stream.family == socket.AF_UNIX

    def send(self, message: Any, payload: Sequence[memoryview] = (), *, idle: Callable[[], None] | None = None) -> None:
        """Send a message and its payload.

        Args:
            message: The message.
            payload: The payload. Default: none.
            idle: Called after each slice in which the peer accepts no byte; it may raise to give up. Default: none.

        Raises:
            OSError: The connection is closed, or the peer has accepted no byte for `STALL_SECONDS`.
        """
        size = sum(part.nbytes for part in payload)
        head = encode(message, payload=size)
        self._send_parts([memoryview(head), *(part.cast("B") for part in payload if part.nbytes)], idle)

    def _send_parts(self, parts: list[memoryview], idle: Callable[[], None] | None) -> None:
        last = time.monotonic()
        while parts:
            try:
                sent = self._stream.sendmsg(parts[:512])
            except BlockingIOError:
                _stalled(last, f"{self.peer} takes nothing of what is sent to it", STALL_SECONDS)
                if idle is not None:
                    idle()
                continue
            last = time.monotonic()
            while parts and sent >= parts[0].nbytes:
                sent -= parts[0].nbytes
                parts.pop(0)
            if parts and sent:
                parts[0] = parts[0][sent:]

    def receive(
        self,
        decoder: msgspec.msgpack.Decoder[T],
        *,
        idle: Callable[[], None] | None = None,
        seconds: float = math.inf,
    ) -> tuple[T, int]:
        """Return the next message and the length of its payload, which must be read by ``receive_into``.

        Args:
            decoder: The decoder of the messages that are allowed here.
            idle: Called after each slice until the message is complete; it may raise to give up. Default: none.
            seconds: The time within which the message must start. Default: no limit.

        Raises:
            TimeoutError: The message has not started within that time, or stalled for `STALL_SECONDS`.
            OSError: The connection is closed, or the received bytes are not a valid frame or message.
        """
        self._fill(memoryview(self._header), idle, seconds=seconds)
        length, payload = parse_header(self._header, authenticated=True)
        body = self._message(length, idle)
        try:
            return decoder.decode(body), payload
        except UNDECODABLE as error:
            raise FrameError(f"not a message that belongs here: {error}") from error

    def _message(self, length: int, idle: Callable[[], None] | None) -> bytes | bytearray:
        """Receive a message. Memory is allocated as its bytes arrive: a peer that only announces a large one occupies none."""
        parts = []
        for start in range(0, length, _PART_BYTES):
            part = bytearray(min(_PART_BYTES, length - start))
            self.receive_into(memoryview(part), idle=idle)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def receive_into(self, target: memoryview, *, idle: Callable[[], None] | None = None) -> None:
        """Fill the target with the next bytes of the payload.

        Raises:
            OSError: The connection is closed, or the peer has sent no byte for `STALL_SECONDS`.
        """
        self._fill(target, idle, seconds=STALL_SECONDS)

    def _fill(self, target: memoryview, idle: Callable[[], None] | None, *, seconds: float) -> None:
        filled, last = 0, time.monotonic()
        checked = last
        while filled < target.nbytes:
            try:
                received = self._stream.recv_into(target[filled:])
            except BlockingIOError:
                if filled:
                    _stalled(last, f"{self.peer} is silent in the middle of a message", STALL_SECONDS)
                else:
                    _stalled(last, f"{self.peer} is silent", seconds)
            else:
                if not received:
                    raise ConnectionResetError(f"{self.peer} closed the connection")
                filled += received
                last = self.heard = time.monotonic()
                if filled == target.nbytes or last - checked < IDLE_SECONDS:
                    continue
            # Also while bytes arrive slowly.
            checked = time.monotonic()
            if idle is not None:
                idle()

    def send_descriptor(self, descriptor: int) -> None:
        """Pass an open file to the peer, directly after the message that announces it."""
        socket.send_fds(self._stream, [b"\0"], [descriptor])

    def receive_descriptor(self) -> int:
        """Return the descriptor of the file that the peer has passed.

        Raises:
            OSError: The connection is closed, or no file was passed.
        """
        _, descriptors, _, _ = socket.recv_fds(self._stream, 1, 1)
        if len(descriptors) != 1:
            for descriptor in descriptors:
                os.close(descriptor)
            raise FrameError("an open file was announced and none came")
        return descriptors[0]

    def close(self) -> None:
        """Close the connection; a thread that waits for bytes is woken."""
        with contextlib.suppress(OSError):  # the peer has closed it
            self._stream.shutdown(socket.SHUT_RDWR)
        self._stream.close()


def _stalled(last: float, text: str, seconds: float) -> None:
    if time.monotonic() - last > seconds:
        raise TimeoutError(f"{text}; given up after {seconds:g} s")


class _Handshaker:
    """Transmits the handshake over a socket, with one timeout for the whole handshake."""

    def __init__(self, stream: socket.socket, seconds: float) -> None:
        self.stream = stream
        self._end = time.monotonic() + seconds

    def send(self, message: auth.Handshake) -> None:
        self.stream.settimeout(max(0.001, self._end - time.monotonic()))
        self.stream.sendall(encode(message))

    def receive(self, kind: type[T]) -> T:
        length, _ = parse_header(self._exactly(HEADER.size), authenticated=False)
        try:
            message = _handshake.decode(self._exactly(length))
        except UNDECODABLE as error:
            raise FrameError("not a handshake of Shoal's") from error
        if isinstance(message, auth.HandshakeRefused):
            raise auth.AuthenticationError(message.reason)
        if not isinstance(message, kind):
            raise FrameError("a handshake out of order")
        return message

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            self.stream.settimeout(max(0.001, self._end - time.monotonic()))
            part = self.stream.recv(count - len(data))
            if not part:
                raise ConnectionResetError("closed during the handshake")
            data += part
        return data


def connect(
    address: str, *, identity: auth.Identity, token: auth.Token, job: str, timeout: float = 5.0
) -> BlockingConnection:
    """Connect to a process of the job; ``timeout`` (seconds) applies to the connect, and again to the handshake.

    Raises:
        AuthenticationError: The listener refused, or does not have the token.
        AddressError: The address is invalid.
        OSError: No process listens there, or the handshake was not completed.
    """
    stream = open_socket(address, timeout=timeout)
    try:
        handshaker = _Handshaker(stream, timeout)
        sent = handshaker.receive(auth.Challenge)
        greeting = auth.greet(sent, token=token, job=job, identity=identity)
        handshaker.send(greeting)
        received = handshaker.receive(auth.Welcome)
        auth.verify_welcome(received, greeting, sent, token=token)
        return BlockingConnection(stream, received.identity)
    except BaseException:
        stream.close()
        raise


def accept(stream: socket.socket, *, identity: auth.Identity, token: auth.Token, job: str) -> BlockingConnection:
    """Authenticate the caller of an accepted socket; close the socket if the caller is refused.

    Raises:
        AuthenticationError: The caller is refused; ``HandshakeRefused`` was sent to it.
        OSError: The handshake was not completed, or the received bytes are not a frame of Shoal.
    """
    try:
        watch_over(stream)
        handshaker = _Handshaker(stream, HANDSHAKE_SECONDS)
        sent = auth.challenge()
        handshaker.send(sent)
        greeting = handshaker.receive(auth.Greeting)
        try:
            auth.verify(greeting, sent, token=token, job=job)
        except auth.AuthenticationError as error:
            handshaker.send(auth.HandshakeRefused(reason=str(error)))
            raise
        handshaker.send(auth.welcome(greeting, sent, token=token, identity=identity))
        return BlockingConnection(stream, greeting.identity, slice_seconds=LISTENER_IDLE_SECONDS)
    except BaseException:
        stream.close()
        raise
