"""The master's service: sockets, etcd, the clock.

It has two threads. The asyncio loop passes messages to the core and sends its replies; the record log's thread commits
records in groups. An acknowledgement (a task is committed, a score or a model is kept, the job is stopped or complete) is
sent only after the records that were noted before it are durable, so that a new master has everything that was
acknowledged. All other messages are sent at once: a lease that is not in etcd costs at most some work, and keep-alives and
leases continue while etcd is unreachable.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from shoal.master.core import MasterCore
from shoal.master.record_log import Deposed, RecordLog
from shoal.master.state.job import Close, Send
from shoal.protocol.decoding import UNDECODABLE
from shoal.protocol.environment import EXIT_DEPOSED, EXIT_NO_ETCD
from shoal.protocol.messages import Complete, EpochDone, Evaluated, Saved, Stopping, TaskCommitted, ToMaster
from shoal.store import DesiredState, StoreClosedError, StoreError
from shoal.transport import aio, auth
from shoal.transport import liveness_probe as probes
from shoal.transport.file_limits import SHORT
from shoal.transport.logs import Seldom
from shoal.transport.unauthenticated import Unauthenticated

__all__ = ["MasterService"]

TICK_SECONDS = 0.05
LATE_SECONDS = 30.0
"""The time without a tick after which the liveness probe fails."""

ACKNOWLEDGEMENTS = frozenset({TaskCommitted, EpochDone, Evaluated, Saved, Stopping, Complete})
"""Messages that are sent after the records noted before them are durable.

``EpochDone`` is one of them, as it must not overtake ``Stopping``: the script would start an epoch that is left out.
"""

log = logging.getLogger("shoal.master")


class _Peer(aio.Listener):
    """A connection that passes its events to the service."""

    def __init__(self, service: MasterService, number: int) -> None:
        super().__init__(
            service.decoder,
            identity=service.identity,
            token=service.token,
            job=service.uid,
            unauthenticated=service.unauthenticated,
        )
        self._service = service
        self.number = number

    def on_ready(self) -> None:
        self._service.connected(self)

    def on_message(self, message: Any) -> None:
        self._service.received(self, message)

    def on_closed(self) -> None:
        self._service.closed(self)


class MasterService:
    """Runs a master until SIGTERM or SIGINT, or until the record log fails.

    Args:
        master: The core.
        record_log: The record log; it leads already.
        identity: The identity of this process.
        token: The job's token.
        uid: The job's uid.
    """

    def __init__(
        self, master: MasterCore, record_log: RecordLog, *, identity: auth.Identity, token: auth.Token, uid: str
    ) -> None:
        self.decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(ToMaster)
        self.identity, self.token, self.uid = identity, token, uid
        self.unauthenticated: Unauthenticated[aio.Listener] = Unauthenticated()
        self._refused_callers, self._accepting = Seldom(), Seldom()
        self._master = master
        self._record_log = record_log
        self._peers: dict[int, _Peer] = {}
        self._numbers = 0
        self._delayed: deque[tuple[int, Send | Close]] = deque()
        self._noted = 0
        self._committed = 0
        self._work = threading.Condition()
        self._batch: list[tuple[str, bytes | None]] | None = None
        self._batch_number = 0
        self._committing = False
        self._stopping = False
        self._exit = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._events_logged = 0
        self._oversized: set[str] = set()
        self._ticked = time.monotonic()

    # --- Connections ---

    def connected(self, peer: _Peer) -> None:
        """Handle a peer that has authenticated."""
        assert peer.peer is not None
        self._peers[peer.number] = peer
        self._master.connected(peer.number, peer.peer, time.monotonic())
        self._after()

    def received(self, peer: _Peer, message: Any) -> None:
        """Pass a message to the core; a message that raises an exception closes its connection."""
        try:
            self._master.message(peer.number, message, time.monotonic())
        except Exception:
            log.exception("%s is disconnected: the master cannot handle its message", peer.peer)
            peer.abort("the master cannot handle its message")
        self._after()

    def closed(self, peer: _Peer) -> None:
        """Handle a closed connection; one that never authenticated is logged."""
        if self._peers.pop(peer.number, None) is None:
            if peer.close_reason not in {"closed by the peer", ""} and (times := self._refused_callers.count()):
                log.warning("a caller was turned away (%d times): %s", times, peer.close_reason)
            return
        self._master.closed(peer.number, time.monotonic())
        self._after()

    # --- Carrying out ---

    def _after(self) -> None:
        """Carry out the core's outbox: acknowledgements after the records noted so far are written, the rest at once."""
        job = self._master.job
        if job.records.changed:
            self._noted += 1
            self._start_commit()
        outbox, job.outbox = job.outbox, []
        for action in outbox:
            if isinstance(action, Send) and type(action.message) in ACKNOWLEDGEMENTS and self._noted > self._committed:
                self._delayed.append((self._noted, action))
            else:
                self._carry_out(action)
        self._log_events()

    def _carry_out(self, action: Send | Close) -> None:
        peer = self._peers.get(action.connection)
        if peer is None:
            return
        if isinstance(action, Send):
            peer.send(action.message)
        else:
            self._peers.pop(action.connection, None)
            peer.close(action.reason)

    def _start_commit(self) -> None:
        if self._committing:
            return
        self._committing = True
        with self._work:
            self._batch = self._master.job.records.flush()
            self._batch_number = self._noted
            self._work.notify()
        self._report_oversized()

    def _report_oversized(self) -> None:
        job = self._master.job
        for key, size in job.records.oversized.items():
            if key not in self._oversized:
                self._oversized.add(key)
                text = f"the record {key!r} has {size:,} bytes, more than etcd takes, and is not written"
                job.event(f"{text}: a new master will not have it", "error")
        job.records.oversized.clear()

    def _commit_done(self, number: int) -> None:
        self._committed = number
        self._committing = False
        self._master.job.etcd_problem = ""
        while self._delayed and self._delayed[0][0] <= number:
            self._carry_out(self._delayed.popleft()[1])
        if self._master.job.records.changed:
            self._start_commit()

    def _commit_batches(self) -> None:
        """Commit batches of records: the record log's thread."""
        assert self._loop is not None
        while True:
            with self._work:
                while self._batch is None and not self._stopping:
                    self._work.wait()
                if self._batch is None:
                    return
                batch, self._batch = self._batch, None
                number = self._batch_number
            try:
                self._record_log.commit(batch, everything=self._everything)
            except Deposed as error:
                self._from_thread(self._fail, str(error), EXIT_DEPOSED)
                return
            except StoreClosedError:
                return
            except StoreError as error:
                self._from_thread(self._fail, str(error), EXIT_NO_ETCD)
                return
            self._from_thread(self._commit_done, number)

    def _from_thread(self, call: Callable[..., None], *arguments: Any) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(call, *arguments)

    def _everything(self) -> Iterable[tuple[str, bytes | None]]:
        """Return all records, encoded on the loop's thread."""
        assert self._loop is not None

        async def collect() -> list[tuple[str, bytes | None]]:
            log.warning("etcd lost writes; all records are written again")
            self._master.job.event("etcd lost its last writes; they are written again", "warning")
            self._master.job.records.note_all_changed()
            return self._master.job.records.flush()

        return asyncio.run_coroutine_threadsafe(collect(), self._loop).result()

    def on_etcd_problem(self, text: str) -> None:
        """Record why etcd cannot be written; called on the thread that waits for etcd."""

        def note() -> None:
            if not self._master.job.etcd_problem:
                self._master.job.event(text, "warning")
            self._master.job.etcd_problem = text

        self._from_thread(note)

    def on_desired_state(self, value: bytes | None) -> None:
        """Apply the desired state that is in etcd (None: no key); called on the thread that watches it."""

        def note() -> None:
            try:
                desired = msgspec.json.decode(value, type=DesiredState) if value is not None else DesiredState()
            except UNDECODABLE as error:
                self._master.job.event(f"the desired state cannot be decoded and is ignored: {error}", "error")
            else:
                self._master.apply_desired(desired)
            self._after()

        self._from_thread(note)

    def _fail(self, reason: str, code: int) -> None:
        log.error("%s", reason)
        self._exit = code
        self._stop.set()

    # --- Running ---

    async def run(self, stream: socket.socket, *, ready: Callable[[], None], probe: socket.socket | None = None) -> int:
        """Serve until stopped; return the exit code.

        Args:
            stream: The listening socket.
            ready: Called when the master accepts connections.
            probe: The listening socket of the liveness probe. Default: none.
        """
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop.set)
        self._loop.set_exception_handler(self._loop_failed)
        thread = threading.Thread(target=self._commit_batches, name="shoal-records")
        thread.start()
        server = await self._create_server(stream)
        servers = [server]
        if probe is not None:
            servers.append(await probes.serve(probe, lambda: self._restart_reason(server, thread)))
        ready()
        try:
            await self._tick_until_stopped()
        finally:
            for each in servers:
                each.close()
            await self._shut_down(thread)
        return self._exit

    def _restart_reason(self, server: asyncio.AbstractServer, committer: threading.Thread) -> str:
        """Return why this master must be restarted; empty if it works. A reply itself shows that the loop runs.

        An unreachable etcd is no reason: the record log waits for it, and so would another master.
        """
        late = time.monotonic() - self._ticked
        if late > LATE_SECONDS:
            return f"its clock has stood still for {late:.0f} s"
        if not server.is_serving() or not all(_listens(each) for each in getattr(server, "sockets", ())):
            return "it does not listen any more"
        return "" if committer.is_alive() else "the thread that writes records has ended"

    async def _create_server(self, stream: socket.socket) -> asyncio.AbstractServer:
        assert self._loop is not None
        if stream.family == socket.AF_UNIX:
            return await self._loop.create_unix_server(self._new_peer, sock=stream, backlog=1024)
        return await self._loop.create_server(self._new_peer, sock=stream, backlog=1024)

    def _loop_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Close all unauthenticated connections when ``accept`` lacks descriptors; asyncio retries after 1 s."""
        if getattr(context.get("exception"), "errno", None) not in SHORT:
            loop.default_exception_handler(context)
            return
        while (caller := self.unauthenticated.oldest()) is not None:
            caller.abort("descriptors are short")
        if times := self._accepting.count():
            log.warning("no caller could be accepted (%d times): %s; it is tried again", times, context["exception"])

    def _new_peer(self) -> _Peer:
        self._numbers += 1
        return _Peer(self, self._numbers)

    async def _tick_until_stopped(self) -> None:
        while not self._stop.is_set():
            now = self._ticked = time.monotonic()
            for number, peer in self._peers.items():
                self._master.heard(number, peer.last_heard)
            self._master.tick(now)
            self._confirm_lead()
            self._after()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self._stop.wait()

    def _confirm_lead(self) -> None:
        """Confirm the lead (rule 11): a commit that succeeds after all servers replied shows that this master led."""
        servers = self._master.servers
        if not servers.confirm_requested:
            return
        question = self._master.job.slots.question
        self._master.job.records.note_changed("counters")
        self._noted += 1
        self._start_commit()
        commit = self._noted

        async def wait() -> None:
            while self._committed < commit and not self._stop.is_set():  # noqa: ASYNC110 - rare and short
                await asyncio.sleep(0.005)
            if self._master.job.slots.question == question:
                servers.confirmed(question)
                self._after()

        servers.confirm_requested = False
        self._confirming = asyncio.ensure_future(wait())

    async def _shut_down(self, thread: threading.Thread) -> None:
        end = time.monotonic() + 2.0
        while self._committed < self._noted and not self._exit and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        for peer in list(self._peers.values()):
            peer.close("the master stops")
        await asyncio.sleep(0)
        self._record_log.close()
        with self._work:
            self._stopping = True
            self._work.notify()
        await asyncio.to_thread(thread.join)

    def _log_events(self) -> None:
        events = self._master.job.events
        if not events or events[-1][0] == self._events_logged:
            return
        for number, _, level, text in events:
            if number > self._events_logged:
                self._events_logged = number
                log.log(getattr(logging, level.upper(), logging.INFO), "%s", text)


def _listens(stream: socket.socket) -> bool:
    try:
        return bool(stream.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False
