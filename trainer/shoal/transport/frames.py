"""The one framing of every connection: a fixed header, a msgpack message, and raw bytes that belong to it.

    magic (2) | reserved (2) | length of the message (4) | length of the payload (8) | message | payload

Tensor bytes stay outside the message, so that they go from tensor memory to tensor memory without a copy in between.
Before a peer has proved that it knows the job's token, it may send small messages only and no payload.
"""

from __future__ import annotations

import struct
from typing import Any, Final

import msgspec

__all__ = ["HEADER", "MAX_GREETING", "MAX_MESSAGE", "FrameError", "encode", "parse_header"]

HEADER: Final = struct.Struct("!2sHIQ")
MAGIC: Final = b"SL"
MAX_MESSAGE: Final = 64 << 20
"""Bytes in one message: snapshots' lists and reports of large jobs stay far below."""
MAX_GREETING: Final = 4096
"""Bytes in a message of a peer that has not proved itself."""
MAX_PAYLOAD: Final = 1 << 40

_encoder = msgspec.msgpack.Encoder()


class FrameError(ConnectionError):
    """Bytes that are no frame of ours, or a frame larger than allowed here."""


def encode(message: Any, *, payload: int = 0) -> bytes:
    """Header and message as bytes; the caller sends ``payload`` bytes behind them."""
    body = _encoder.encode(message)
    return HEADER.pack(MAGIC, 0, len(body), payload) + body


def parse_header(header: bytes | bytearray | memoryview, *, proved: bool) -> tuple[int, int]:
    """Lengths of the message and the payload that follow a header.

    Raises:
        FrameError: It is no header of ours, or announces more than the peer may send.
    """
    magic, _, length, payload = HEADER.unpack(header)
    if magic != MAGIC:
        raise FrameError("not a frame of Shoal's")
    if length > (MAX_MESSAGE if proved else MAX_GREETING):
        raise FrameError(f"a message of {length} bytes is too large here")
    if payload > (MAX_PAYLOAD if proved else 0):
        raise FrameError(f"a payload of {payload} bytes is too large here")
    return int(length), int(payload)
