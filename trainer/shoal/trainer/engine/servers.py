"""A trainer's connections to the parameter servers, and the transfer of tensors.

Each server has one connection, attached to the slots that the slot map assigns to it. Over a Unix socket the dense gradients
and values are in memory that both ends map; over TCP they follow the messages as raw bytes. Requests are sent to all servers
before the first reply is read, so that the servers work in parallel; and replies are read from all servers, even when one of
them failed, so that no connection is left in the middle of an exchange.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch
from torch import Tensor

from shoal.protocol import messages as m
from shoal.protocol.slot_layout import Area, TensorArea
from shoal.tensors.table_rows import slot_of
from shoal.tensors.views import DenseViews, bytes_of
from shoal.trainer.engine.answer_timeout import AnswerTimeout
from shoal.trainer.engine.areas import packed, read_pieces, unpack, write_pieces
from shoal.trainer.engine.initial_values import Initial
from shoal.trainer.engine.server_connection import ANSWERS, ServerConnection
from shoal.transport import auth, sync

__all__ = ["Answer", "Gradients", "ServerLost", "Servers"]

CONNECT_SECONDS = 2.0

Answer = tuple[list[int], list[int], int]
"""Slots, the grants they are served under, and the number of batches of the task that they have applied."""


class ServerLost(Exception):  # noqa: N818 - an expected event: a server was lost
    """Servers did not reply, or no longer serve what was requested; ``slots`` are their slots."""

    def __init__(self, slots: Sequence[int]) -> None:
        super().__init__(f"slots {list(slots)} are not served by the servers of the slot map")
        self.slots = list(slots)


@dataclass
class Gradients:
    """The gradients of a batch."""

    dense: list[Tensor | None] = field(default_factory=list)
    """One flat gradient, or None, per dense parameter, in the order of the model spec."""
    tables: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    """Table index, row numbers (int64 [n], distinct), gradients [n, dim]; a table without gradient is left out."""


class Servers:
    """A trainer's client for all parameter servers of the job.

    Args:
        shape: The model spec of the job.
        slots: Number of slots of the job.
        identity: Identity of this trainer.
        token: Token of the job.
        uid: UID of the job.
    """

    def __init__(self, shape: m.ModelSpec, *, slots: int, identity: auth.Identity, token: auth.Token, uid: str) -> None:
        self.parameters: list[Tensor] = []
        """The dense parameters, in the order of the model spec; pulled values are written into them."""
        self._shape, self._slots = shape, slots
        self._identity, self._token, self._uid = identity, token, uid
        self.answer_timeout = AnswerTimeout()
        self._peers: dict[int, ServerConnection] = {}
        self._map = m.SlotMap(holders=[], owner=[-1] * slots, grants=[m.NO_GRANT] * slots)
        self._buffers = TensorArea(shape.buffers)
        self._fixed = TensorArea(shape.fixed)

    def close(self) -> None:
        """Close every connection."""
        for peer in self._peers.values():
            peer.close()
        self._peers.clear()

    # --- The map ---

    def follow(self, new: m.SlotMap) -> None:
        """Use a new slot map; close the connections to servers whose slots changed."""
        self._map = new
        slots_by_life = {holder.life: self._slots_of(number) for number, holder in enumerate(new.holders)}
        self.answer_timeout.retain(set(slots_by_life))
        for life in [life for life, peer in self._peers.items() if slots_by_life.get(life) != peer.slots]:
            self._peers.pop(life).close()

    def _slots_of(self, number: int) -> list[int]:
        return [slot for slot, owner in enumerate(self._map.owner) if owner == number]

    def _grants(self, slots: Sequence[int]) -> list[int]:
        return [self._map.grants[slot] for slot in slots]

    def _call(self, holder: m.Holder) -> sync.BlockingConnection:
        error: OSError = ConnectionRefusedError("no address")
        for address in holder.addresses:
            try:
                return sync.connect(
                    address, identity=self._identity, token=self._token, job=self._uid, timeout=CONNECT_SECONDS
                )
            except OSError as failed:
                error = failed
        raise error

    def _peer(self, number: int, idle: Callable[[], None] | None) -> ServerConnection:
        """Return the connection to a holder; connect if there is none.

        Raises:
            OSError: The holder is not reachable, or its slots moved meanwhile.
        """
        holder = self._map.holders[number]
        peer = self._peers.get(holder.life)
        if peer is None:
            slots = self._slots_of(number)

            def check() -> None:
                if idle is not None:
                    idle()
                    if not self._holds(holder.life, slots):
                        raise ConnectionResetError("its slots are elsewhere now")

            connection = self._call(holder)
            try:
                peer = ServerConnection(holder, slots, connection, Area(self._shape, self._slots, slots))
                self._answer(connection, holder.life, check)
            except BaseException:
                connection.close()
                raise
            self._peers[holder.life] = peer
        return peer

    def _holds(self, life: int, slots: list[int]) -> bool:
        holders = enumerate(self._map.holders)
        return any(holder.life == life and self._slots_of(number) == slots for number, holder in holders)

    def _drop(self, peer: ServerConnection) -> None:
        peer.close()
        self._peers.pop(peer.holder.life, None)

    def _exchange(
        self,
        send: Callable[[int, ServerConnection, Callable[[], None] | None], None],
        receive: Callable[[ServerConnection, Any, int], Any],
        *,
        idle: Callable[[], None] | None,
    ) -> Iterator[tuple[ServerConnection, Any]]:
        """Send a request to each holder, then yield each reply.

        Raises:
            ServerLost: At the end, if any holder failed.
        """
        requested: list[ServerConnection] = []
        lost: list[int] = []
        begun = self._map
        for number, holder in enumerate(begun.holders):
            slots = [slot for slot, owner in enumerate(begun.owner) if owner == number]
            try:
                if self._map != begun:  # changed during the wait for another server
                    raise ConnectionResetError("the slots are elsewhere now")
                peer = self._peer(number, idle)
                send(number, peer, self._watch(peer, idle))
                requested.append(peer)
            except OSError:
                lost += slots
                unreachable = self._peers.get(holder.life)
                if unreachable is not None:
                    self._drop(unreachable)
        for peer in requested:
            try:
                message, size = self._answer(peer.connection, peer.holder.life, self._watch(peer, idle))
                if isinstance(message, m.Fatal):
                    raise ConnectionResetError(message.reason)
                answer = receive(peer, message, size)
            except OSError:
                lost += peer.slots
                self._drop(peer)
            else:
                yield peer, answer
        lost += [slot for slot, owner in enumerate(self._map.owner) if owner < 0]
        if lost:
            raise ServerLost(lost)

    def _answer(
        self, connection: sync.BlockingConnection, life: int, idle: Callable[[], None] | None
    ) -> tuple[Any, int]:
        """Return a server's reply and the number of bytes that follow it; raises TimeoutError without a reply in time."""
        try:
            answer = connection.receive(ANSWERS, idle=idle, seconds=self.answer_timeout.seconds(life))
        except TimeoutError:
            self.answer_timeout.timed_out(life)
            raise
        self.answer_timeout.answered(life)
        return answer

    def _watch(self, peer: ServerConnection, idle: Callable[[], None] | None) -> Callable[[], None] | None:
        """Return a check for the wait on a server; it raises when the master has moved the server's slots."""
        if idle is None:
            return None
        check_idle = idle

        def check() -> None:
            check_idle()
            if self._peers.get(peer.holder.life) is not peer:
                raise ConnectionResetError("its slots are elsewhere now")

        return check

    # --- Dense values ---

    def pull(self, epoch: int, task: int, *, idle: Callable[[], None]) -> list[Answer]:
        """Pull all dense values into the parameters; return the progress of every slot in a task.

        Raises:
            ServerLost: A server did not reply.
        """
        answers: list[Answer] = []

        def send(_: int, peer: ServerConnection, idle: Callable[[], None] | None) -> None:
            message = m.Pull(grants=self._grants(peer.slots), epoch=epoch, task=task, values=True)
            peer.connection.send(message, idle=idle)

        def receive(peer: ServerConnection, message: m.PullReply, size: int) -> list[Answer]:
            self._take_values(peer, size, idle)
            return _answers_of(message.applied)

        for peer, found in self._exchange(send, receive, idle=idle):
            answers += found
            read_pieces(peer.values, self.parameters)
        return answers

    def pull_average(self, *, idle: Callable[[], None]) -> list[Tensor]:
        """Return the moving averages of the dense parameters, flat, on the CPU, in the order of the model spec.

        The parameters themselves are not changed.

        Raises:
            ValueError: The job keeps no moving averages.
            ServerLost: A server did not reply, or no longer serves its slots.
        """
        if not self._shape.ema > 0:
            raise ValueError("the job keeps no moving average of its parameters")
        found = [torch.empty(math.prod(p.shape), dtype=getattr(torch, p.dtype)) for p in self._shape.dense]

        def send(_: int, peer: ServerConnection, idle: Callable[[], None] | None) -> None:
            message = m.Pull(grants=self._grants(peer.slots), epoch=0, task=0, values=True, average=True)
            peer.connection.send(message, idle=idle)

        def receive(peer: ServerConnection, message: m.PullReply, size: int) -> None:
            if size != peer.area.size:
                raise ConnectionResetError("averages of an unexpected size")
            memory = bytearray(size)
            peer.connection.receive_into(memoryview(memory), idle=self._watch(peer, idle))
            if any(m.NO_GRANT in part.grants for part in message.applied):
                raise ConnectionResetError("its slots are served under other grants now")
            read_pieces(DenseViews(peer.area, memory), found)

        for _ in self._exchange(send, receive, idle=idle):
            pass
        return found

    def push(
        self, push: m.Push, gradients: Gradients, *, idle: Callable[[], None]
    ) -> Iterator[tuple[list[Answer], list[Answer]]]:
        """Push a batch to every server and pull; yield, per server, the progress in the pushed task and in the next one.

        Raises:
            ServerLost: At the end, if a server did not reply.
        """
        absent = [index for index, gradient in enumerate(gradients.dense) if gradient is None]
        whole = not push.skipped and len(absent) < len(gradients.dense)
        owners = torch.tensor(self._map.owner)
        tables = [(table, ids, values, owners[slot_of(ids, self._slots)]) for table, ids, values in gradients.tables]

        def send(number: int, peer: ServerConnection, idle: Callable[[], None] | None) -> None:
            payload: list[memoryview] = []
            if whole:
                write_pieces(peer.gradients, gradients.dense)
                if not peer.shared:
                    payload.append(peer.outgoing)
            parts = []
            for table, ids, values, owner in () if push.skipped else tables:
                selected = owner == number
                chosen = ids[selected]
                parts.append(m.RowPart(table=table, count=len(chosen)))
                payload += [bytes_of(chosen), bytes_of(values[selected])]
            message = msgspec.structs.replace(push, grants=self._grants(peer.slots), absent=absent, parts=parts)
            peer.connection.send(message, payload, idle=idle)

        def receive(peer: ServerConnection, message: m.PushReply, size: int) -> tuple[list[Answer], list[Answer]]:
            self._take_values(peer, size, idle)
            return _answers_of(message.pushed), _answers_of(message.next)

        for peer, answer in self._exchange(send, receive, idle=idle):
            read_pieces(peer.values, self.parameters)
            yield answer

    def _take_values(self, peer: ServerConnection, size: int, idle: Callable[[], None]) -> None:
        """Read the dense values that follow a message; with shared memory there is nothing to read."""
        if size not in {0, len(peer.incoming)}:
            raise ConnectionResetError("dense values of an unexpected size")
        if size:
            peer.connection.receive_into(peer.incoming, idle=self._watch(peer, idle))

    # --- Rows of tables ---

    def rows(self, slots_by_life: Sequence[tuple[int, Tensor]], *, idle: Callable[[], None]) -> list[Tensor]:
        """Return the values of rows: for each (table, row numbers int64 [n]) a tensor [n, dim].

        Raises:
            ServerLost: A server did not reply, or no longer serves those rows.
        """
        owners = torch.tensor(self._map.owner)
        places = [owners[slot_of(ids, self._slots)] for _, ids in slots_by_life]
        tables = [self._shape.tables[table] for table, _ in slots_by_life]
        found = [
            torch.empty(len(ids), table.dim, dtype=getattr(torch, table.dtype))
            for (_, ids), table in zip(slots_by_life, tables, strict=True)
        ]
        numbers: dict[int, int] = {}

        def send(number: int, peer: ServerConnection, idle: Callable[[], None] | None) -> None:
            numbers[peer.holder.life] = number
            chosen = [ids[place == number] for (_, ids), place in zip(slots_by_life, places, strict=True)]
            parts = [
                m.RowPart(table=table, count=len(ids)) for (table, _), ids in zip(slots_by_life, chosen, strict=True)
            ]
            message = m.PullRows(grants=self._grants(peer.slots), parts=parts)
            peer.connection.send(message, [bytes_of(ids) for ids in chosen], idle=idle)

        def receive(peer: ServerConnection, message: m.RowsReply, size: int) -> None:
            if message.stale:
                raise ConnectionResetError("its slots are served under other grants now")
            number = numbers[peer.holder.life]
            del size
            for target, place in zip(found, places, strict=True):
                selected = (place == number).nonzero(as_tuple=True)[0]
                part = torch.empty(len(selected), target.shape[1], dtype=target.dtype)
                peer.connection.receive_into(bytes_of(part), idle=self._watch(peer, idle))
                target[selected] = part

        for _ in self._exchange(send, receive, idle=idle):
            pass
        return found

    # --- Initial values, buffers, export ---

    def provide(
        self,
        message: m.ProvideInitialValues,
        values: Sequence[Tensor],
        *,
        tables: Sequence[Tensor] = (),
        buffers: Sequence[Tensor] = (),
        fixed: Sequence[Tensor] = (),
    ) -> bool:
        """Send slots their initial values.

        Args:
            message: The slots and their holders.
            values: One flat tensor per dense parameter, on the CPU.
            tables: One weight [rows, dim] per table; only those of given tables are read.
            buffers: One tensor per buffer of the model spec.
            fixed: One tensor per fixed tensor of the model spec.

        Returns:
            Whether all slots have received them.

        Raises:
            ValueError: The number of buffers or fixed tensors differs from the model spec's.
        """
        initial = Initial(self._shape, self._slots, values, tables, buffers, fixed)
        grants = dict(zip(message.slots, message.grants, strict=True))
        done = True
        for number, holder in enumerate(message.holders):
            slots = [slot for slot, owner in zip(message.slots, message.owner, strict=True) if owner == number]
            if not slots:
                continue
            try:
                with contextlib.closing(self._call(holder)) as connection:
                    for portion in initial.portions(slots):
                        parts, payload = initial.payload(portion)
                        connection.send(
                            m.InitialValues(slots=portion, grants=[grants[slot] for slot in portion], parts=parts),
                            payload,
                        )
                        answer, _ = self._answer(connection, holder.life, None)
                        done = done and isinstance(answer, m.InitialValuesGiven)
            except OSError:
                done = False
        return done

    def merge_buffers(
        self,
        buffers: Sequence[Tensor],
        bases: Sequence[Tensor] = (),
        *,
        trainers: int,
        idle: Callable[[], None],
    ) -> None:
        """Merge the module's buffers with the job's, and write the result into the module's.

        Args:
            buffers: The module's current tensors, in the order of the model spec.
            bases: Per buffer a copy of what this wrote last; read only for buffers with merge ``sum``.
            trainers: Number of trainers of the job; 0: the job's buffers are only copied, nothing is merged.
            idle: Called while the server does not reply.

        Raises:
            ServerLost: The server of slot 0 did not reply.
        """
        if not buffers:
            return
        given = list(buffers)
        if trainers:
            merged = zip(buffers, bases, self._shape.buffers, strict=True)
            given = [now - base if spec.merge == "sum" else now for now, base, spec in merged]
        memory = packed(self._buffers, given)
        self._exchange_whole(m.MergeBuffers(grant=self._map.grants[0], trainers=trainers, fixed=False), memory, idle)
        unpack(self._buffers, memory, buffers)

    def take_fixed(self, tensors: Sequence[Tensor], *, idle: Callable[[], None]) -> None:
        """Write the first trainer's fixed tensors into these, which are in the order of the model spec.

        Raises:
            ServerLost: The server of slot 0 did not reply.
        """
        if not tensors:
            return
        memory = memoryview(bytearray(self._fixed.size))
        self._exchange_whole(m.MergeBuffers(grant=self._map.grants[0], trainers=0, fixed=True), memory, idle)
        unpack(self._fixed, memory, tensors)

    def _exchange_whole(self, message: m.MergeBuffers, memory: memoryview, idle: Callable[[], None]) -> None:
        """Send the memory to the server of slot 0 (not for fixed tensors), and read the reply into it."""
        number = self._map.owner[0]
        if number < 0:
            raise ServerLost([0])
        peer: ServerConnection | None = None
        try:
            peer = self._peer(number, idle)
            peer.connection.send(message, [] if message.fixed else [memory], idle=self._watch(peer, idle))
            answer, size = self._answer(peer.connection, peer.holder.life, self._watch(peer, idle))
            if not isinstance(answer, m.BuffersMerged) or answer.stale:
                raise ConnectionResetError("slot 0 is served under another grant now")
            if size != len(memory):
                raise ConnectionResetError("tensors of an unexpected size")
            peer.connection.receive_into(memory, idle=self._watch(peer, idle))
        except OSError as error:
            if peer is not None:
                self._drop(peer)
            raise ServerLost([0]) from error

    def export_rows(self, *, idle: Callable[[], None]) -> list[list[tuple[Tensor, Tensor]]]:
        """Return all rows that the servers hold: per table a list of (row numbers int64 [n], values [n, dim]).

        Raises:
            ServerLost: A server did not reply, or no longer serves its slots.
        """
        tables: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self._shape.tables]
        begun = self._map
        for slot, number in enumerate(begun.owner):
            if number < 0 or self._map != begun:  # the slot moved during the wait for another slot
                raise ServerLost([slot])
            peer: ServerConnection | None = None
            try:
                peer = self._peer(number, idle)
                self._export_slot(peer, slot, tables, idle)
            except OSError as error:
                if peer is not None:
                    self._drop(peer)
                raise ServerLost([slot]) from error
        return tables

    def _export_slot(
        self, peer: ServerConnection, slot: int, tables: list[list[tuple[Tensor, Tensor]]], idle: Callable[[], None]
    ) -> None:
        message = m.ExportTables(slot=slot, grant=self._map.grants[slot])
        peer.connection.send(message, idle=self._watch(peer, idle))
        answer, _ = self._answer(peer.connection, peer.holder.life, self._watch(peer, idle))
        if not isinstance(answer, m.ExportReply) or answer.stale:
            raise ConnectionResetError("the slot is served under another grant now")
        for part in answer.tables:
            table = self._shape.tables[part.table]
            ids = torch.empty(part.count, dtype=torch.int64)
            values = torch.empty(part.count, table.dim, dtype=getattr(torch, table.dtype))
            peer.connection.receive_into(bytes_of(ids), idle=self._watch(peer, idle))
            peer.connection.receive_into(bytes_of(values), idle=self._watch(peer, idle))
            tables[part.table].append((ids, values))


def _answers_of(applied: Sequence[m.Applied | m.SlotBatch]) -> list[Answer]:
    return [(part.slots, part.grants, part.batches) for part in applied]
