"""The framing of all connections: a fixed header, a msgpack message, and its payload of raw bytes.

    magic (2) | reserved (2) | length of the message (4) | length of the payload (8) | message | payload

Tensor bytes are outside the message, so that they are transferred between tensor memories without a copy. A peer that
has not authenticated may send messages of `MAX_GREETING` bytes at most, and no payload.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgspec

__all__ = ["HEADER", "MAX_GREETING", "MAX_MESSAGE", "FrameError", "encode", "parse_header"]

HEADER: Final = struct.Struct("!2sHIQ")
MAGIC: Final = b"SL"
MAX_MESSAGE: Final = 64 << 20
"""The limit of one message, in bytes; the lists of snapshots and the reports of large jobs are far smaller."""
MAX_GREETING: Final = 4096
"""The limit of a message of an unauthenticated peer, in bytes."""
MAX_PAYLOAD: Final = 1 << 40
"""The limit of one payload, in bytes."""

_encoder = msgspec.msgpack.Encoder()


class FrameError(ConnectionError):
    """Bytes that are not a frame of Shoal, or a frame that is larger than allowed."""


def encode(message: Any, *, payload: int = 0) -> bytes:
    """Return header and message as bytes; the caller sends ``payload`` bytes after them."""
    body = _encoder.encode(message)
    return HEADER.pack(MAGIC, 0, len(body), payload) + body


def parse_header(header: bytes | bytearray | memoryview, *, authenticated: bool) -> tuple[int, int]:
    """Return the lengths, in bytes, of the message and the payload that follow a header.

    Raises:
        FrameError: This is not a header of Shoal, or a length is above the limit for the peer.
    """
    magic, _, length, payload = HEADER.unpack(header)
    if magic != MAGIC:
        raise FrameError("not a frame of Shoal's")
    if length > (MAX_MESSAGE if authenticated else MAX_GREETING):
        raise FrameError(f"a message of {length} bytes is too large here")
    if payload > (MAX_PAYLOAD if authenticated else 0):
        raise FrameError(f"a payload of {payload} bytes is too large here")
    return int(length), int(payload)
