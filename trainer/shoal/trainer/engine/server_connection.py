"""A trainer's connection to one parameter server, with the memory for dense gradients and values."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from shoal.protocol import messages as m
from shoal.protocol.slot_layout import Area
from shoal.tensors.views import DenseViews
from shoal.transport import shared_memory, sync

__all__ = ["ANSWERS", "ServerConnection"]

ANSWERS: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(m.ToTrainer)
"""Decodes the replies of a server to a trainer."""


class ServerConnection:
    """One connection to a server; the constructor sends the request to attach, but does not read the reply.

    Args:
        holder: The server.
        slots: The slots that the slot map assigns to it.
        connection: Connection to the server; ``close`` closes it.
        area: Layout of the slots' dense bytes.

    Raises:
        OSError: The request could not be sent.
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
