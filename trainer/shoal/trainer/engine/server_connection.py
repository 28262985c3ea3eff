"""A trainer's connection to one parameter server, and the memory that dense gradients and values lie in."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from shoal.protocol import messages as m
from shoal.protocol.slot_layout import Area
from shoal.tensors.views import DenseViews
from shoal.transport import shared_memory, sync

__all__ = ["ANSWERS", "Peer"]

ANSWERS: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(m.ToTrainer)
"""What a server may answer a trainer."""


class Peer:
    """One connection that asks to be attached.

    Args:
        holder: The server.
        slots: Those that the map puts there.
        connection: To the server; the peer closes it.
        area: Where the slots' dense bytes lie.

    Raises:
        OSError: The server cannot be asked to attach; whether it did is its answer.
    """

    def __init__(
        self,
        holder: m.Holder,
        slots: list[int],
        connection: sync.BlockingConnection,
        area: Area,
    ) -> None:
        self.holder = holder
        self.slots = slots
        self.connection = connection
        self.area = area
        self.shared = connection.local and area.size > 0
        if self.shared:
            descriptor, mapping = shared_memory.create(2 * area.size)
            memory: Any = mapping
        else:
            descriptor, memory = -1, bytearray(2 * area.size)
        whole = memoryview(memory)
        self.outgoing = whole[: area.size]
        self.incoming = whole[area.size :]
        self.gradients = DenseViews(area, self.outgoing)
        self.values = DenseViews(area, self.incoming)
        try:
            connection.send(m.Attach(slots=slots, shared=2 * area.size if self.shared else 0))
            if descriptor >= 0:
                connection.send_descriptor(descriptor)
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()
