"""A trainer's connections to the parameter servers, and the tensors that go over them.

Each server has one connection, attached to the slots that the map puts there. On one host the dense gradients and
values lie in memory that both ends map; between hosts they follow the messages as raw bytes. Requests go out to all
servers before the first answer is awaited, so the servers work at the same time; and answers are taken from all, even
when one of them failed, so that a connection is never left in the middle of an exchange.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch
from torch import Tensor

from shoal.pserver.dense import DenseViews, view
from shoal.wire import auth, shared, sync
from shoal.wire import messages as m
from shoal.wire.layout import Area, BufferArea
from shoal.wire.rows import slot_of
from shoal.wire.tensors import bytes_of

__all__ = ["Answer", "Gradients", "ServerLost", "Servers"]

CONNECT_SECONDS = 2.0

Answer = tuple[list[int], list[int], int]
"""Slots, the grants they are served under, and how many batches of the task in question they have."""

_answers: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(m.ToTrainer)


class ServerLost(Exception):  # noqa: N818 - the usual case of a server that died
    """Some servers did not answer, or no longer serve what was asked for: ``slots`` are theirs."""

    def __init__(self, slots: Sequence[int]) -> None:
        super().__init__(f"slots {list(slots)} are not served where they were")
        self.slots = list(slots)


@dataclass
class Gradients:
    """What a batch gives: one gradient (or None) per dense parameter, and per table its rows' (or None)."""

    dense: list[Tensor | None] = field(default_factory=list)
    """Flat, in the shape's order."""
    tables: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    """Table, row numbers (int64 [n], unique), gradients [n, dim]."""


class _Peer:
    """One attached connection."""

    def __init__(self, holder: m.Holder, slots: list[int], connection: sync.Connection, area: Area) -> None:
        self.holder = holder
        self.slots = slots
        self.connection = connection
        self.area = area
        self.shared = connection.local and area.size > 0
        if self.shared:
            descriptor, mapping = shared.create(2 * area.size)
            memory: Any = mapping
        else:
            descriptor, memory = -1, bytearray(2 * area.size)
        whole = memoryview(memory)
        self.outgoing = whole[: area.size]
        self.incoming = whole[area.size :]
        self.gradients = DenseViews(area, self.outgoing)
        self.values = DenseViews(area, self.incoming)
        connection.send(m.Attach(slots=slots, shared=2 * area.size if self.shared else 0))
        if descriptor >= 0:
            connection.send_descriptor(descriptor)
            os.close(descriptor)
        self.connection.receive(_answers)

    def close(self) -> None:
        self.connection.close()


class Servers:
    """All parameter servers of the job, as one trainer sees them.

    Args:
        shape: What the job trains.
        slots: How many slots there are.
        identity: Of this trainer.
        token: The job's.
        uid: The job's.
    """

    def __init__(self, shape: m.Shape, *, slots: int, identity: auth.Identity, token: auth.Token, uid: str) -> None:
        self.parameters: list[Tensor] = []
        """The dense parameters, in the shape's order: pulled values are written into them."""
        self._shape, self._slots = shape, slots
        self._identity, self._token, self._uid = identity, token, uid
        self._peers: dict[int, _Peer] = {}
        self._map = m.Map(holders=[], owner=[-1] * slots, grants=[m.NO_GRANT] * slots)
        self._buffers = BufferArea(shape)

    def close(self) -> None:
        """Close every connection."""
        for peer in self._peers.values():
            peer.close()
        self._peers.clear()

    # --- The map ---

    def follow(self, new: m.Map) -> None:
        """Take the master's map; connections to servers that hold other slots now are closed."""
        self._map = new
        wanted = {holder.life: self._slots_of(number) for number, holder in enumerate(new.holders)}
        for life in [life for life, peer in self._peers.items() if wanted.get(life) != peer.slots]:
            self._peers.pop(life).close()

    def _slots_of(self, number: int) -> list[int]:
        return [slot for slot, owner in enumerate(self._map.owner) if owner == number]

    def _grants(self, slots: Sequence[int]) -> list[int]:
        return [self._map.grants[slot] for slot in slots]

    def _call(self, holder: m.Holder) -> sync.Connection:
        error: OSError = ConnectionRefusedError("no address")
        for address in holder.addresses:
            try:
                return sync.connect(
                    address, identity=self._identity, token=self._token, job=self._uid, timeout=CONNECT_SECONDS
                )
            except OSError as failed:
                error = failed
        raise error

    def _peer(self, number: int) -> _Peer:
        """The connection to a holder; made if need be.

        Raises:
            OSError: It cannot be reached.
        """
        holder = self._map.holders[number]
        peer = self._peers.get(holder.life)
        if peer is None:
            slots = self._slots_of(number)
            peer = _Peer(holder, slots, self._call(holder), Area(self._shape, self._slots, slots))
            self._peers[holder.life] = peer
        return peer

    def _drop(self, peer: _Peer) -> None:
        peer.close()
        self._peers.pop(peer.holder.life, None)

    def _exchange(
        self,
        send: Callable[[int, _Peer], None],
        receive: Callable[[_Peer, Any, int], Any],
        *,
        idle: Callable[[], None] | None,
    ) -> Iterator[tuple[_Peer, Any]]:
        """Send something to each holder, then take each one's answer.

        Raises:
            ServerLost: At the end, if some of them failed.
        """
        asked: list[_Peer] = []
        lost: list[int] = []
        for number in range(len(self._map.holders)):
            slots = self._slots_of(number)
            try:
                peer = self._peer(number)
                send(number, peer)
                asked.append(peer)
            except OSError:
                lost += slots
                gone = self._peers.get(self._map.holders[number].life)
                if gone is not None:
                    self._drop(gone)
        for peer in asked:
            try:
                message, size = peer.connection.receive(_answers, idle=self._watch(peer, idle))
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

    def _watch(self, peer: _Peer, idle: Callable[[], None] | None) -> Callable[[], None] | None:
        """While a server is silent, look whether the master has given its slots to another."""
        if idle is None:
            return None
        look = idle

        def check() -> None:
            look()
            if self._peers.get(peer.holder.life) is not peer:
                raise ConnectionResetError("its slots are elsewhere now")

        return check

    # --- Dense values ---

    def pull(self, epoch: int, task: int, *, idle: Callable[[], None]) -> list[Answer]:
        """How far every slot is in a task; their dense values are in the parameters then.

        Raises:
            ServerLost: Some servers did not answer.
        """
        answers: list[Answer] = []

        def send(_: int, peer: _Peer) -> None:
            peer.connection.send(m.Pull(grants=self._grants(peer.slots), epoch=epoch, task=task, values=True))

        def receive(peer: _Peer, message: m.At, size: int) -> list[Answer]:
            self._take_values(peer, size, idle)
            return _answers_of(message.applied)

        for peer, found in self._exchange(send, receive, idle=idle):
            answers += found
            self._install(peer)
        return answers

    def push(
        self, push: m.Push, gradients: Gradients, *, idle: Callable[[], None]
    ) -> Iterator[tuple[list[Answer], list[Answer]]]:
        """Push a batch to every server, and pull; per server: how far the pushed task is, and the next one.

        Raises:
            ServerLost: At the end, if some servers did not answer.
        """
        absent = [index for index, gradient in enumerate(gradients.dense) if gradient is None]
        whole = not push.skipped and len(absent) < len(gradients.dense)
        owners = torch.tensor(self._map.owner)
        tables = [(table, ids, values, owners[slot_of(ids, self._slots)]) for table, ids, values in gradients.tables]

        def send(number: int, peer: _Peer) -> None:
            payload: list[memoryview] = []
            if whole:
                self._write(peer.gradients, gradients.dense)
                if not peer.shared:
                    payload.append(peer.outgoing)
            parts = []
            for table, ids, values, owner in () if push.skipped else tables:
                mine = owner == number
                chosen = ids[mine]
                parts.append(m.RowPart(table=table, count=len(chosen)))
                payload += [bytes_of(chosen), bytes_of(values[mine])]
            message = msgspec.structs.replace(push, grants=self._grants(peer.slots), absent=absent, parts=parts)
            peer.connection.send(message, payload)

        def receive(peer: _Peer, message: m.Pushed, size: int) -> tuple[list[Answer], list[Answer]]:
            self._take_values(peer, size, idle)
            return _answers_of(message.pushed), _answers_of(message.next)

        for peer, answer in self._exchange(send, receive, idle=idle):
            self._install(peer)
            yield answer

    def _write(self, views: DenseViews, dense: Sequence[Tensor | None]) -> None:
        targets, sources = [], []
        for slot, entries in views.area.by_slot().items():
            for entry, target in zip(entries, views.by_slot[slot], strict=True):
                gradient = dense[entry.piece.parameter]
                if gradient is not None:
                    targets.append(target)
                    sources.append(gradient[entry.piece.start : entry.piece.stop])
        if targets:
            torch._foreach_copy_(targets, sources)

    def _take_values(self, peer: _Peer, size: int, idle: Callable[[], None]) -> None:
        """Read the dense values that follow a message; with shared memory they are there already."""
        if size not in {0, len(peer.incoming)}:
            raise ConnectionResetError("dense values of another size than ours")
        if size:
            peer.connection.receive_into(peer.incoming, idle=self._watch(peer, idle))

    def _install(self, peer: _Peer) -> None:
        """Write a server's dense values into the parameters."""
        targets, sources = [], []
        scattered: dict[int, Tensor] = {}
        with torch.no_grad():
            for slot, entries in peer.area.by_slot().items():
                for entry, value in zip(entries, peer.values.by_slot[slot], strict=True):
                    index = entry.piece.parameter
                    parameter = self.parameters[index].detach()
                    if parameter.is_contiguous():
                        flat = parameter.view(-1)
                    else:
                        flat = scattered.setdefault(index, parameter.reshape(-1))
                    targets.append(flat[entry.piece.start : entry.piece.stop])
                    sources.append(value)
            if targets:
                torch._foreach_copy_(targets, sources)
            for index, flat in scattered.items():
                parameter = self.parameters[index].detach()
                parameter.copy_(flat.view(parameter.shape))

    # --- Rows of tables ---

    def rows(self, wanted: Sequence[tuple[int, Tensor]], *, idle: Callable[[], None]) -> list[Tensor]:
        """The values of rows: per (table, row numbers int64 [n]) a tensor [n, dim].

        Raises:
            ServerLost: Some servers did not answer, or no longer serve those rows.
        """
        owners = torch.tensor(self._map.owner)
        places = [owners[slot_of(ids, self._slots)] for _, ids in wanted]
        tables = [self._shape.tables[table] for table, _ in wanted]
        found = [
            torch.empty(len(ids), table.dim, dtype=getattr(torch, table.dtype))
            for (_, ids), table in zip(wanted, tables, strict=True)
        ]
        numbers: dict[int, int] = {}

        def send(number: int, peer: _Peer) -> None:
            numbers[peer.holder.life] = number
            chosen = [ids[place == number] for (_, ids), place in zip(wanted, places, strict=True)]
            parts = [m.RowPart(table=table, count=len(ids)) for (table, _), ids in zip(wanted, chosen, strict=True)]
            message = m.Rows(grants=self._grants(peer.slots), parts=parts)
            peer.connection.send(message, [bytes_of(ids) for ids in chosen])

        def receive(peer: _Peer, message: m.RowsAt, size: int) -> None:
            if message.stale:
                raise ConnectionResetError("its slots are served under other grants now")
            number = numbers[peer.holder.life]
            del size
            for target, place in zip(found, places, strict=True):
                mine = (place == number).nonzero(as_tuple=True)[0]
                part = torch.empty(len(mine), target.shape[1], dtype=target.dtype)
                peer.connection.receive_into(bytes_of(part), idle=self._watch(peer, idle))
                target[mine] = part

        for _ in self._exchange(send, receive, idle=idle):
            pass
        return found

    # --- Beginning and end ---

    def provide(self, message: m.Provide, values: Sequence[Tensor]) -> bool:
        """Give slots their initial values (flat, per dense parameter); whether all of it was done."""
        done = True
        for number, holder in enumerate(message.holders):
            pairs = [
                (slot, grant)
                for slot, grant, owner in zip(message.slots, message.grants, message.owner, strict=True)
                if owner == number
            ]
            slots, grants = [slot for slot, _ in pairs], [grant for _, grant in pairs]
            area = Area(self._shape, self._slots, slots)
            memory = bytearray(area.size)
            self._write(DenseViews(area, memory), values)
            try:
                with contextlib.closing(self._call(holder)) as connection:
                    connection.send(m.Init(slots=slots, grants=grants), [memoryview(memory)])
                    answer, _ = connection.receive(_answers)
                    done = done and isinstance(answer, m.Initialised)
            except OSError:
                done = False
        return done

    def merge_buffers(self, buffers: Sequence[Tensor], *, trainers: int, idle: Callable[[], None]) -> bool:
        """Merge the module's buffers with the job's, and take what comes of it; ``trainers`` 0: only take.

        Returns:
            Whether there was something to take.

        Raises:
            ServerLost: Slot 0's server did not answer.
        """
        if not buffers:
            return False
        memory = bytearray(self._buffers.size)
        views = [
            view(memory, dtype=entry.dtype, offset=entry.offset, count=entry.count) for entry in self._buffers.entries
        ]
        for target, buffer in zip(views, buffers, strict=True):
            target.copy_(buffer.detach().reshape(-1))
        number = self._map.owner[0]
        if number < 0:
            raise ServerLost([0])
        peer: _Peer | None = None
        try:
            peer = self._peer(number)
            message = m.Buffers(grant=self._map.grants[0], trainers=trainers)
            peer.connection.send(message, [memoryview(memory)])
            answer, size = peer.connection.receive(_answers, idle=self._watch(peer, idle))
            if not isinstance(answer, m.BuffersMerged) or answer.stale:
                raise ConnectionResetError("slot 0 is served under another grant now")
            if size:
                peer.connection.receive_into(memoryview(memory), idle=self._watch(peer, idle))
        except OSError as error:
            if peer is not None:
                self._drop(peer)
            raise ServerLost([0]) from error
        if not size:
            return False
        with torch.no_grad():
            for buffer, source in zip(buffers, views, strict=True):
                buffer.copy_(source.view(buffer.shape))
        return True

    def export_rows(self, *, idle: Callable[[], None]) -> list[list[tuple[Tensor, Tensor]]]:
        """All touched rows of every table: per table a list of (row numbers, values).

        Raises:
            ServerLost: A server did not answer, or no longer serves its slots.
        """
        tables: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self._shape.tables]
        for slot, number in enumerate(self._map.owner):
            if number < 0:
                raise ServerLost([slot])
            peer: _Peer | None = None
            try:
                peer = self._peer(number)
                self._export_slot(peer, slot, tables, idle)
            except OSError as error:
                if peer is not None:
                    self._drop(peer)
                raise ServerLost([slot]) from error
        return tables

    def _export_slot(
        self, peer: _Peer, slot: int, tables: list[list[tuple[Tensor, Tensor]]], idle: Callable[[], None]
    ) -> None:
        peer.connection.send(m.Export(slot=slot, grant=self._map.grants[slot]))
        answer, _ = peer.connection.receive(_answers, idle=self._watch(peer, idle))
        if not isinstance(answer, m.Exported) or answer.stale:
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
