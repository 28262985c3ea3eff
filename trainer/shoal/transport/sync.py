"""Blocking connections: what trainers and parameter servers speak, tensor bytes included.

A blocking socket is what lets ``recv_into`` fill tensor memory. It waits in slices, sending and receiving, so that a caller
can look around (``idle``) and give a dead silence up; within a frame nothing is ever lost by that. A peer that takes or brings
no byte in the middle of a message for `STALL_SECONDS` is given up; between messages it may be silent for as long as it likes.
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
"""Between two looks around of a caller that waits."""
PATIENT_SECONDS = 5.0
"""The same for who was called: it has nothing to look for, and may have hundreds of callers."""
STALL_SECONDS = 20.0
"""Without a byte, in the middle of a message."""

_handshake = msgspec.msgpack.Decoder(auth.Handshake)


class BlockingConnection:
    """One end of a connection whose peer has proved itself. Reading and writing may be done by two threads.

    Args:
        stream: The socket.
        peer: Who is at the other end.
        slice_seconds: How long one wait for the peer takes before the caller may look around.
    """

    def __init__(self, stream: socket.socket, peer: auth.Identity, *, slice_seconds: float = IDLE_SECONDS) -> None:
        self.peer = peer
        self.heard = time.monotonic()
        """When the last byte came."""
        self._stream = stream
        self._header = bytearray(HEADER.size)
        stream.settimeout(None)
        # The kernel ends a blocking call after this time; a time-out of Python's would cost a poll before every call.
        slice_ = struct.pack("ll", int(slice_seconds), int(slice_seconds % 1 * 1_000_000))
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, slice_)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, slice_)

    @property
    def local(self) -> bool:
        """Whether the peer is on this host, so that memory can be shared with it."""
        return self._stream.family == socket.AF_UNIX

    def send(self, message: Any, payload: Sequence[memoryview] = (), *, idle: Callable[[], None] | None = None) -> None:
        """Send a message and the bytes that belong to it.

        Args:
            message: The message.
            payload: The bytes.
            idle: Called every quarter of a second in which the peer takes nothing; it may raise to give up.

        Raises:
            OSError: The connection is gone, or the peer has taken nothing for `STALL_SECONDS`.
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
        """The next message and how many bytes of payload follow it; they must be read by ``receive_into``.

        Args:
            decoder: For the messages allowed here.
            idle: Called every quarter of a second until the message is there; it may raise to give up.
            seconds: How long the peer may take to begin.

        Raises:
            TimeoutError: The peer has not begun within that time, or stopped in the middle.
            OSError: The connection is gone, or what came is no frame or message of ours.
        """
        self._fill(memoryview(self._header), idle, seconds=seconds)
        length, payload = parse_header(self._header, proved=True)
        body = bytearray(length)
        self.receive_into(memoryview(body), idle=idle)
        try:
            return decoder.decode(body), payload
        except UNDECODABLE as error:
            raise FrameError(f"not a message that belongs here: {error}") from error

    def receive_into(self, target: memoryview, *, idle: Callable[[], None] | None = None) -> None:
        """Fill the target with the next bytes of the payload.

        Raises:
            OSError: The connection is gone, or the peer has brought nothing for `STALL_SECONDS`.
        """
        self._fill(target, idle, seconds=STALL_SECONDS)

    def _fill(self, target: memoryview, idle: Callable[[], None] | None, *, seconds: float) -> None:
        filled, last = 0, time.monotonic()
        looked = last
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
                if filled == target.nbytes or last - looked < IDLE_SECONDS:
                    continue
            # Also between the bytes of a slow network.
            looked = time.monotonic()
            if idle is not None:
                idle()

    def send_descriptor(self, descriptor: int) -> None:
        """Pass an open file to the peer, right behind the message that announces it."""
        socket.send_fds(self._stream, [b"\0"], [descriptor])

    def receive_descriptor(self) -> int:
        """Take the file that the peer passed.

        Raises:
            OSError: The connection is gone, or no file came.
        """
        _, descriptors, _, _ = socket.recv_fds(self._stream, 1, 1)
        if len(descriptors) != 1:
            for descriptor in descriptors:
                os.close(descriptor)
            raise FrameError("an open file was announced and none came")
        return descriptors[0]

    def close(self) -> None:
        """Close; a thread that waits for bytes here is woken."""
        with contextlib.suppress(OSError):  # the peer was faster
            self._stream.shutdown(socket.SHUT_RDWR)
        self._stream.close()


def _stalled(last: float, text: str, seconds: float) -> None:
    if time.monotonic() - last > seconds:
        raise TimeoutError(f"{text}; given up after {seconds:g} s")


class _Greeter:
    """Carries the handshake over a socket, within a limit of time for the whole of it."""

    def __init__(self, stream: socket.socket, seconds: float) -> None:
        self.stream = stream
        self._end = time.monotonic() + seconds

    def send(self, message: auth.Handshake) -> None:
        self.stream.settimeout(max(0.001, self._end - time.monotonic()))
        self.stream.sendall(encode(message))

    def receive(self, kind: type[T]) -> T:
        length, _ = parse_header(self._exactly(HEADER.size), proved=False)
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
    """Call a process of the job; ``timeout`` (seconds) is for the connect, and again for the handshake.

    Raises:
        AuthenticationError: The other end refused, or does not know the token.
        AddressError: The address cannot be read.
        OSError: Nobody listens there, or the handshake broke off.
    """
    stream = open_socket(address, timeout=timeout)
    try:
        greeter = _Greeter(stream, timeout)
        sent = greeter.receive(auth.Challenge)
        greeting = auth.greet(sent, token=token, job=job, identity=identity)
        greeter.send(greeting)
        received = greeter.receive(auth.Welcome)
        auth.verify_welcome(received, greeting, sent, token=token)
        return BlockingConnection(stream, received.identity)
    except BaseException:
        stream.close()
        raise


def accept(stream: socket.socket, *, identity: auth.Identity, token: auth.Token, job: str) -> BlockingConnection:
    """Answer a caller on an accepted socket; closes it when the caller is refused.

    Raises:
        AuthenticationError: The caller does not belong here; it was told so.
        OSError: The handshake broke off, or what came is no frame of ours.
    """
    try:
        watch_over(stream)
        greeter = _Greeter(stream, HANDSHAKE_SECONDS)
        sent = auth.challenge()
        greeter.send(sent)
        greeting = greeter.receive(auth.Greeting)
        try:
            auth.verify(greeting, sent, token=token, job=job)
        except auth.AuthenticationError as error:
            greeter.send(auth.HandshakeRefused(reason=str(error)))
            raise
        greeter.send(auth.welcome(greeting, sent, token=token, identity=identity))
        return BlockingConnection(stream, greeting.identity, slice_seconds=PATIENT_SECONDS)
    except BaseException:
        stream.close()
        raise
