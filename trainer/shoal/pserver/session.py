"""One trainer's connection to a parameter server: a thread that reads requests, executes them and sends the replies.

All bytes that a request announces are read before the request is checked, so that the connection stays usable after a
refused push. No I/O happens while the server's lock is held.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import msgspec
import torch
from torch import Tensor

from shoal.protocol import messages as m
from shoal.protocol.slot_layout import WHOLE_SLOT, Area, TensorArea
from shoal.pserver.state.parameters import Parameters, TableRows
from shoal.pserver.state.server_state import ServerState
from shoal.tensors.views import DenseViews, TensorViews, bytes_of
from shoal.transport import shared_memory, sync

__all__ = ["Server", "TrainerConnection"]

log = logging.getLogger("shoal.pserver")

_requests: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(m.ToServer)


class Server(Protocol):
    """The part of the server that a session uses."""

    @property
    def lock(self) -> Any:
        """The lock that guards ``state`` and ``parameters``."""
        ...

    @property
    def state(self) -> ServerState | None:
        """The protocol state; None until the model spec is known."""
        ...

    @property
    def parameters(self) -> Parameters | None:
        """The tensors; None until the model spec is known."""
        ...

    def initialised(self) -> None:
        """Start the first snapshot of slots that received their initial values."""
        ...

    def attached(self, connection: sync.BlockingConnection) -> None:
        """Note that the trainer uses this connection from now on."""
        ...


class RequestRefused(Exception):  # noqa: N818 - a reply to the peer, not an error of the server
    """An invalid request; the server sends the reason to the peer and closes the connection."""


class _Attachment:
    """The slots that a trainer attached to, and the memory for their dense gradients and values."""

    def __init__(self, message: m.Attach, parameters: Parameters, connection: sync.BlockingConnection) -> None:
        self.slots = message.slots
        self.area = Area(parameters.shape, parameters.slots_total, message.slots)
        self.shared = message.shared > 0
        if self.shared:
            if message.shared != 2 * self.area.size or not connection.local:
                raise RequestRefused("shared memory of another size than these slots need, or between hosts")
            memory: Any = shared_memory.open_shared(connection.receive_descriptor(), message.shared)
        else:
            memory = bytearray(2 * self.area.size)
        whole = memoryview(memory)
        self.incoming = whole[: self.area.size]
        self.outgoing = whole[self.area.size :]
        self.gradients = DenseViews(self.area, self.incoming)
        self.values = DenseViews(self.area, self.outgoing)

    @property
    def payload(self) -> list[memoryview]:
        """The bytes that follow a reply with values; none where the memory is shared."""
        return [] if self.shared else [self.outgoing]


class TrainerConnection:
    """Serves one trainer until its connection closes.

    Args:
        connection: The connection, whose peer is authenticated.
        server: The server.
    """

    def __init__(self, connection: sync.BlockingConnection, server: Server) -> None:
        self._connection = connection
        self._server = server
        self._attached: _Attachment | None = None

    def run(self) -> str:
        """Serve requests until the connection closes; return the reason for the end."""
        try:
            while True:
                request, size = self._connection.receive(_requests)
                self._HANDLERS[type(request)](self, request, size)
        except (RequestRefused, ValueError) as error:
            self._send_fatal(str(error))
            return f"refused: {error}"
        except OSError as error:
            return str(error)
        except Exception as error:
            # A failed request ends this peer's session only; other peers are still served.
            log.exception("a request of %s could not be carried out", self._connection.peer)
            self._send_fatal(f"{type(error).__name__}: {error}")
            return f"failed: {error}"
        finally:
            self._connection.close()
            self._attached = None

    def _send_fatal(self, reason: str) -> None:
        try:
            self._connection.send(m.Fatal(reason=reason))
        except OSError:
            return

    @property
    def _parts(self) -> tuple[ServerState, Parameters]:
        state, parameters = self._server.state, self._server.parameters
        if state is None or parameters is None:
            raise RequestRefused("the model spec of the job has not reached this server yet")
        return state, parameters

    def _need(self) -> _Attachment:
        if self._attached is None:
            raise RequestRefused("no slots are attached yet")
        return self._attached

    def _bytes(self, size: int) -> bytearray:
        memory = bytearray(size)
        self._connection.receive_into(memoryview(memory))
        return memory

    def _attach(self, message: m.Attach, _: int) -> None:
        state, parameters = self._parts
        self._attached = _Attachment(message, parameters, self._connection)
        self._server.attached(self._connection)
        with self._server.lock:
            grants = state.grants_of(message.slots)
        self._connection.send(m.Attached(grants=grants))

    def _pull(self, message: m.Pull, _: int) -> None:
        state, parameters = self._parts
        attached = self._need()
        values, payload = attached.values, attached.payload
        if message.average:
            # Averages need separate memory: the values area is sent again unchanged for a slot that is no longer held.
            memory = bytearray(attached.area.size)
            values, payload = DenseViews(attached.area, memory), [memoryview(memory)]
        with self._server.lock:
            applied = state.granted.applied(attached.slots, message.grants, epoch=message.epoch, task=message.task)
            if message.values:
                parameters.read(values, average=message.average)
        self._connection.send(m.PullReply(applied=applied, values=message.values), payload if message.values else [])

    def _push(self, message: m.Push, size: int) -> None:
        state, parameters = self._parts
        attached = self._need()
        rows = self._receive_push(message, size, parameters, attached)
        granted, slots = state.granted, attached.slots
        with self._server.lock:
            new = granted.new_slots(slots, message)
            if new:
                if not message.skipped:
                    parameters.apply(new, attached.gradients, absent=message.absent, options=message.options, rows=rows)
                granted.advance(new, message)
            pushed = granted.answer(slots, message)
            ahead = granted.applied(slots, message.grants, epoch=message.next_epoch, task=message.next_task)
            if message.values:
                parameters.read(attached.values)
        self._connection.send(
            m.PushReply(pushed=pushed, next=ahead, values=message.values), attached.payload if message.values else []
        )

    def _receive_push(
        self, message: m.Push, size: int, parameters: Parameters, attached: _Attachment
    ) -> list[TableRows]:
        """Read the payload of a push: dense gradients into the attached memory, rows into new tensors."""
        sparse = sum(self._row_bytes(part, parameters, values=True) for part in message.parts)
        if size == sparse + attached.area.size and not attached.shared:
            self._connection.receive_into(attached.incoming)
        elif size != sparse:
            raise RequestRefused(
                f"a push with a payload of {size} bytes, where {sparse} are expected, or these and the dense gradients"
            )
        return [(part.table, *self._receive_rows(part, parameters)) for part in message.parts]

    def _row_bytes(self, part: m.RowPart, parameters: Parameters, *, values: bool) -> int:
        if not 0 <= part.table < len(parameters.shape.tables) or part.count < 0:
            raise RequestRefused(f"there is no table {part.table}")
        if values and part.count > parameters.shape.tables[part.table].rows:
            raise RequestRefused(f"{part.count} rows of table {part.table}, which has fewer rows")
        table = parameters.shape.tables[part.table]
        width = getattr(torch, table.dtype).itemsize * table.dim
        return int(part.count * (8 + (width if values else 0)))

    def _receive_rows(self, part: m.RowPart, parameters: Parameters) -> tuple[Tensor, Tensor]:
        table = parameters.shape.tables[part.table]
        ids = torch.empty(part.count, dtype=torch.int64)
        values = torch.empty(part.count, table.dim, dtype=getattr(torch, table.dtype))
        self._connection.receive_into(bytes_of(ids))
        self._connection.receive_into(bytes_of(values))
        return ids, values

    def _rows(self, message: m.PullRows, size: int) -> None:
        state, parameters = self._parts
        attached = self._need()
        if size != sum(self._row_bytes(part, parameters, values=False) for part in message.parts):
            raise RequestRefused("row numbers of a length other than announced")
        row_numbers = []
        for part in message.parts:
            ids = torch.empty(part.count, dtype=torch.int64)
            self._connection.receive_into(bytes_of(ids))
            row_numbers.append(ids)
        with self._server.lock:
            stale = state.granted.stale(attached.slots, message.grants)
            values = (
                []
                if stale
                else [parameters.rows(part.table, ids) for part, ids in zip(message.parts, row_numbers, strict=True)]
            )
        self._connection.send(m.RowsReply(stale=stale), [bytes_of(part) for part in values])

    def _init(self, message: m.InitialValues, size: int) -> None:
        state, parameters = self._parts
        area = Area(parameters.shape, parameters.slots_total, message.slots)
        whole = [TensorArea(parameters.shape.buffers), TensorArea(parameters.shape.fixed)]
        if WHOLE_SLOT not in message.slots:
            whole = []
        self._check_given(message, parameters)
        rows = sum(self._row_bytes(part, parameters, values=True) for part in message.parts)
        if size != area.size + rows + sum(part.size for part in whole):
            raise RequestRefused("initial values of another size than these slots have")
        views = DenseViews(area, self._bytes(area.size))
        given = [(part.table, *self._receive_rows(part, parameters)) for part in message.parts]
        buffers, fixed = [TensorViews(part, self._bytes(part.size)).tensors for part in whole] or [[], []]
        width = len(parameters.given)
        with self._server.lock:
            pairs = zip(message.slots, message.grants, strict=True)
            awaiting = [place for place, pair in enumerate(pairs) if state.awaits_values(*pair)]
            for place in awaiting:
                slot_rows = given[place * width : (place + 1) * width]
                parameters.initialise(message.slots[place], views, rows=slot_rows, buffers=buffers, fixed=fixed)
            state.initialised(message.slots[place] for place in awaiting)
        self._server.initialised()
        self._connection.send(m.InitialValuesGiven(slots=message.slots, grants=message.grants))

    def _check_given(self, message: m.InitialValues, parameters: Parameters) -> None:
        """Check that the announced rows are exactly those of the slots, before memory is allocated for them.

        Raises:
            RequestRefused: They are not.
        """
        row_numbers = [
            m.RowPart(table=table, count=parameters.rows_in(table, slot))
            for slot in message.slots
            for table in parameters.given
        ]
        if message.parts != row_numbers:
            raise RequestRefused("other rows than those of the given tables in these slots")

    def _buffers(self, message: m.MergeBuffers, size: int) -> None:
        state, parameters = self._parts
        area = TensorArea(parameters.shape.fixed if message.fixed else parameters.shape.buffers)
        if size != (0 if message.fixed else area.size):
            raise RequestRefused("buffers of another size than the job's")
        memory = bytearray(area.size) if message.fixed else self._bytes(size)
        views = TensorViews(area, memory)
        with self._server.lock:
            stale = state.granted.stale([WHOLE_SLOT], [message.grant])
            if message.fixed and not stale:
                parameters.read_fixed(views)
            elif not stale:
                parameters.merge_buffers(views, message.trainers)
        self._connection.send(m.BuffersMerged(stale=stale), [] if stale else [memoryview(memory)])

    def _export(self, message: m.ExportTables, _: int) -> None:
        state, parameters = self._parts
        with self._server.lock:
            stale = state.granted.stale([message.slot], [message.grant])
            tables = [] if stale else parameters.export(message.slot).tables
        parts = [m.TableValues(table=index, count=len(ids)) for index, (ids, _) in enumerate(tables)]
        payload = [part for ids, values in tables for part in (bytes_of(ids), bytes_of(values))]
        self._connection.send(m.ExportReply(stale=stale, tables=parts), payload)

    # A class attribute: a table of bound methods would be a reference cycle, and would keep a trainer's memory until the
    # garbage collector runs.
    _HANDLERS: ClassVar[dict[type, Callable[[TrainerConnection, Any, int], None]]] = {
        m.Attach: _attach,
        m.Pull: _pull,
        m.Push: _push,
        m.PullRows: _rows,
        m.InitialValues: _init,
        m.MergeBuffers: _buffers,
        m.ExportTables: _export,
    }
