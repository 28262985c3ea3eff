"""Connections between real sockets: the handshake, unauthenticated callers, frames with payloads, shared memory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
import tracemalloc

import msgspec
import pytest

from shoal.protocol import messages as m
from shoal.transport import aio, auth, shared_memory, sync
from shoal.transport.address import AddressError, listen, publish, resolve
from shoal.transport.frames import HEADER, MAX_GREETING, MAX_MESSAGE, FrameError, encode, parse_header
from shoal.transport.unauthenticated import Unauthenticated

TOKEN = auth.Token(b"0123456789abcdef")
SERVER = auth.Identity("pserver", 0, 7)
CLIENT = auth.Identity("trainer", 3, 9)
decoder = msgspec.msgpack.Decoder(m.ToMaster)


class Host:
    """Accepts callers one after another, and records the result of each."""

    def __init__(self, address):
        self.stream, self.address = listen(address)
        self.accepted = []
        self.refused = []
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while True:
            try:
                caller, _ = self.stream.accept()
            except OSError:
                return
            try:
                self.accepted.append(sync.accept(caller, identity=SERVER, token=TOKEN, job="job-1"))
            except OSError as error:
                self.refused.append(str(error))

    def close(self):
        self.stream.shutdown(socket.SHUT_RDWR)
        self.stream.close()
        self.thread.join(5)
        for connection in self.accepted:
            connection.close()


@pytest.fixture(params=["unix", "tcp"])
def host(request, tmp_path):
    made = Host(f"unix://{tmp_path}/s" if request.param == "unix" else "tcp://127.0.0.1:0")
    yield made
    made.close()


def call(host, **changes):
    options = {"identity": CLIENT, "token": TOKEN, "job": "job-1"} | changes
    return sync.connect(host.address, **options)


def wait_for(condition):
    done = threading.Event()
    for _ in range(1000):
        if condition():
            return
        done.wait(0.01)
    raise AssertionError("it did not happen")


def test_both_ends_receive_the_identity_of_the_other(host):
    connection = call(host)
    wait_for(lambda: host.accepted)
    assert connection.peer == SERVER
    assert host.accepted[0].peer == CLIENT
    connection.close()


def test_messages_and_payloads_arrive_whole(host):
    connection = call(host)
    wait_for(lambda: host.accepted)
    other = host.accepted[0]
    data = os.urandom(3_000_000)
    sender = threading.Thread(
        target=lambda: connection.send(m.RequestTask(epoch=4), [memoryview(data)[:1000], memoryview(data)[1000:]])
    )
    sender.start()
    message, size = other.receive(decoder)
    received = bytearray(size)
    other.receive_into(memoryview(received))
    sender.join()
    assert message == m.RequestTask(epoch=4)
    assert bytes(received) == data
    connection.close()
    with pytest.raises(OSError):
        other.receive(decoder)


def test_idle_is_called_during_silence_and_may_raise(host):
    connection = call(host)

    def give_up():
        raise ConnectionResetError("enough")

    with pytest.raises(ConnectionResetError, match="enough"):
        connection.receive(decoder, idle=give_up)
    connection.close()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"token": auth.Token(b"another-token-16")}, "token is wrong or missing"),
        ({"job": "job-2"}, "this is job job-1, not job-2"),
    ],
)
def test_unauthenticated_callers_are_refused_with_the_reason(host, changes, reason):
    with pytest.raises(auth.AuthenticationError, match=reason):
        call(host, **changes)
    wait_for(lambda: host.refused)
    assert not host.accepted


def test_another_version_is_refused_by_name(host, monkeypatch):
    greet = auth.greet

    def older(*args, **kwargs):
        return msgspec.structs.replace(greet(*args, **kwargs), version="0.0.9")

    monkeypatch.setattr(auth, "greet", older)
    with pytest.raises(auth.AuthenticationError, match=r"Shoal 0\.0\.9 cannot join a job of Shoal"):
        call(host)


def test_a_caller_does_not_trust_a_listener_without_the_token(tmp_path):
    stream, address = listen(f"unix://{tmp_path}/s")

    def impostor():
        caller, _ = stream.accept()
        caller.sendall(encode(auth.challenge()))
        caller.recv(4096)
        caller.sendall(encode(auth.Welcome(identity=SERVER, proof=b"\0" * 32)))
        caller.recv(1)
        caller.close()

    thread = threading.Thread(target=impostor)
    thread.start()
    with pytest.raises(auth.AuthenticationError, match="does not know the job's token"):
        sync.connect(address, identity=CLIENT, token=TOKEN, job="job-1")
    thread.join(5)
    stream.close()


UNREADABLE = [b"\xc1\xc1\xc1", b"\x81\xa4type\xa4\xe4abc", b"\x82\xa4type\xa4Want\xa5epoch" + b"\x91" * 4000 + b"\xc0"]
"""Messages: no msgpack at all, a text that is not UTF-8, and lists in lists, deeper than Python's stack."""
GARBAGE = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\xff" * 5000,
    HEADER.pack(b"SL", 0, MAX_GREETING + 1, 0),
    HEADER.pack(b"SL", 0, 5, 1 << 39),
    *(HEADER.pack(b"SL", 0, len(body), 0) + body for body in UNREADABLE),
    encode(m.RequestTask(epoch=1)),
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_ends_its_own_connection_only(host, garbage):
    kind = socket.AF_UNIX if host.address.startswith("unix") else socket.AF_INET
    target = host.address.removeprefix("unix://").removeprefix("tcp://")
    with socket.socket(kind, socket.SOCK_STREAM) as stream:
        stream.connect(target if kind == socket.AF_UNIX else ("127.0.0.1", int(target.rpartition(":")[2])))
        stream.sendall(garbage)
        with contextlib.suppress(OSError):  # the connection may be closed already
            stream.shutdown(socket.SHUT_WR)
        wait_for(lambda: host.refused)
    connection = call(host)
    wait_for(lambda: host.accepted)
    connection.close()


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_at_a_loop_ends_its_own_connection_only(tmp_path, garbage):
    """The asyncio end, on which the master listens, closes only the connection that sent garbage."""
    closed = []

    class Peer(aio.Listener):
        def on_closed(self):
            closed.append((self.peer, self.close_reason))

    async def run():
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(
            lambda: Peer(decoder, identity=SERVER, token=TOKEN, job="job-1", unauthenticated=Unauthenticated()),
            path=f"{tmp_path}/s",
        )
        reader, writer = await asyncio.open_unix_connection(f"{tmp_path}/s")
        writer.write(garbage)
        writer.write_eof()
        await reader.read()
        writer.close()
        caller = await aio.connect(f"unix://{tmp_path}/s", identity=CLIENT, token=TOKEN, job="job-1", decoder=decoder)
        assert caller.peer == SERVER
        caller.close()
        server.close()
        while len(closed) < 2:  # noqa: ASYNC110 - the test has a deadline around it
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(run(), 10))
    assert closed[0][0] is None


def test_a_caller_that_closes_without_a_greeting_is_not_logged_as_refused():
    """A kubelet's port probe behaves so: it leaves the data sent to it unread, so the connection is reset."""
    closed = []

    class Peer(aio.Listener):
        def on_closed(self):
            closed.append(self.close_reason)

    async def run():
        server = await asyncio.get_running_loop().create_server(
            lambda: Peer(decoder, identity=SERVER, token=TOKEN, job="job-1", unauthenticated=Unauthenticated()),
            "127.0.0.1",
            0,
        )
        probe = socket.create_connection(server.sockets[0].getsockname())
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        probe.close()
        while not closed:  # noqa: ASYNC110 - the test has a deadline around it
            await asyncio.sleep(0.01)
        server.close()

    asyncio.run(asyncio.wait_for(run(), 10))
    assert closed == ["closed by the peer"]


@pytest.mark.parametrize("body", UNREADABLE, ids=range(len(UNREADABLE)))
def test_a_peer_that_proved_itself_may_not_send_garbage_either(host, body):
    connection = call(host)
    wait_for(lambda: host.accepted)
    connection._stream.sendall(HEADER.pack(b"SL", 0, len(body), 0) + body)
    with pytest.raises(FrameError, match="not a message that belongs here"):
        host.accepted[0].receive(decoder)
    connection.close()


def test_a_large_message_that_is_only_announced_occupies_no_memory(host):
    connection = call(host)
    wait_for(lambda: host.accepted)
    connection._stream.sendall(HEADER.pack(b"SL", 0, MAX_MESSAGE, 0) + b"x" * 100)
    connection._stream.shutdown(socket.SHUT_WR)
    tracemalloc.start()
    try:
        with pytest.raises(ConnectionResetError):
            host.accepted[0].receive(decoder)
        assert tracemalloc.get_traced_memory()[1] < MAX_MESSAGE / 8
    finally:
        tracemalloc.stop()
    connection.close()


def test_a_message_of_several_parts_arrives_whole(host):
    connection = call(host)
    wait_for(lambda: host.accepted)
    text = "abc" * 1_000_001
    sending = threading.Thread(target=connection.send, args=(m.JobEvent(level="info", text=text),))
    sending.start()
    message, payload = host.accepted[0].receive(msgspec.msgpack.Decoder(m.ToMaster))
    sending.join()
    assert (message.text, payload) == (text, 0)
    connection.close()


def test_shared_memory_is_shared_and_cannot_shrink():
    descriptor, mine = shared_memory.create(4096)
    passed = os.dup(descriptor)
    with pytest.raises(OSError):
        os.ftruncate(descriptor, 10)
    theirs = shared_memory.open_shared(passed, 4096)
    mine[:5] = b"hello"
    assert theirs[:5] == b"hello"
    os.close(descriptor)
    mine.close()
    theirs.close()


def test_memory_that_could_shrink_is_refused(tmp_path):
    plain = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
    os.ftruncate(plain, 4096)
    with pytest.raises(OSError):
        shared_memory.open_shared(plain, 4096)


def test_addresses(tmp_path):
    publish(tmp_path / "a", "tcp://127.0.0.1:1")
    assert resolve(f"file://{tmp_path}/a") == "tcp://127.0.0.1:1"
    with pytest.raises(AddressError, match="must begin with"):
        resolve("http://x")
    with pytest.raises(AddressError, match="at most 107 bytes"):
        listen(f"unix://{tmp_path}/{'x' * 120}")
    with pytest.raises(AddressError, match="HOST:PORT"):
        listen("tcp://nowhere")


def test_a_header_limits_the_length_of_its_frame():
    assert parse_header(HEADER.pack(b"SL", 0, 10, 20), authenticated=True) == (10, 20)
    with pytest.raises(FrameError, match="too large"):
        parse_header(HEADER.pack(b"SL", 0, 10, 20), authenticated=False)


def test_a_token_is_never_shown(tmp_path):
    token = auth.Token.create(tmp_path / "t")
    assert (tmp_path / "t").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "t").read_text() not in repr(token)
    assert auth.Token.read(tmp_path / "t").sign("x") == token.sign("x")


def small_buffers(connection):
    connection._stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


def test_a_peer_that_reads_nothing_is_disconnected(host, monkeypatch):
    monkeypatch.setattr(sync, "STALL_SECONDS", 0.3)
    connection = call(host)
    small_buffers(connection)
    with pytest.raises(TimeoutError, match="pserver-0 takes nothing of what is sent to it"):
        connection.send(m.KeepAlive(), [memoryview(bytearray(60 << 20))])
    connection.close()


def test_idle_is_called_while_sending_and_may_raise(host):
    connection = call(host)
    small_buffers(connection)
    checks = []

    def idle():
        checks.append(1)
        if len(checks) == 2:
            raise ConnectionResetError("its slots are elsewhere now")

    with pytest.raises(ConnectionResetError, match="elsewhere"):
        connection.send(m.KeepAlive(), [memoryview(bytearray(60 << 20))], idle=idle)
    connection.close()


def test_silence_within_a_message_times_out_and_between_messages_does_not(host, monkeypatch):
    monkeypatch.setattr(sync, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(sync, "LISTENER_IDLE_SECONDS", 0.1)
    connection = call(host)
    wait_for(lambda: host.accepted)
    errors = []

    def serve():
        try:
            while True:
                host.accepted[0].receive(decoder)
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join(1.0)  # silence between messages, longer than the bound
    assert thread.is_alive()
    connection.send(m.KeepAlive())
    connection._stream.sendall(HEADER.pack(b"SL", 0, 100, 0) + b"\x81")
    thread.join(30)
    assert [str(error) for error in errors] == ["trainer-3 is silent in the middle of a message; given up after 0.3 s"]
    connection.close()


def test_a_large_payload_passes_a_slow_reader(host):
    """The reader keeps taking bytes, so the sender does not time out."""
    connection = call(host)
    small_buffers(connection)
    wait_for(lambda: host.accepted)
    payload = os.urandom(1 << 20) * 8
    sender = threading.Thread(target=lambda: connection.send(m.KeepAlive(), [memoryview(payload)]))
    sender.start()
    message, size = host.accepted[0].receive(decoder)
    target = bytearray(size)
    host.accepted[0].receive_into(memoryview(target))
    sender.join(30)
    assert (message, bytes(target)) == (m.KeepAlive(), payload)
    connection.close()


def test_a_connection_over_tcp_ends_when_the_other_machine_vanishes(host):
    """Both ends set TCP_USER_TIMEOUT and keep-alive; the kernel's reaction cannot be shown on one machine."""
    connection = call(host)
    wait_for(lambda: host.accepted)
    for end in (connection._stream, host.accepted[0]._stream):
        if end.family != socket.AF_UNIX:
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000
            assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    connection.close()


def test_a_peer_of_the_loop_that_does_not_read_is_cut_off_at_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(aio, "HIGH_WATER", 1 << 20)
    closed = []

    class Peer(aio.Listener):
        def on_ready(self):
            peers.append(self)

        def on_closed(self):
            closed.append(self.close_reason)

    peers = []

    async def run():
        server = await asyncio.get_running_loop().create_unix_server(
            lambda: Peer(decoder, identity=SERVER, token=TOKEN, job="job-1", unauthenticated=Unauthenticated()),
            path=f"{tmp_path}/s",
        )
        address = f"unix://{tmp_path}/s"
        reader = await asyncio.to_thread(sync.connect, address, identity=CLIENT, token=TOKEN, job="job-1")
        sent = 0
        while not closed and sent < 100 << 20:
            peers[0].send(m.JobEvent(level="info", text="x" * 100_000))
            sent += 100_000
            await asyncio.sleep(0)
        reader.close()
        server.close()
        return sent

    sent = asyncio.run(asyncio.wait_for(run(), 60))
    assert closed == ["it does not read what it is sent"]
    assert sent < 10 << 20


def test_silent_callers_of_the_loop_are_closed_for_new_ones(tmp_path):
    unauthenticated = Unauthenticated(most=3)

    async def run():
        server = await asyncio.get_running_loop().create_unix_server(
            lambda: aio.Listener(decoder, identity=SERVER, token=TOKEN, job="job-1", unauthenticated=unauthenticated),
            path=f"{tmp_path}/s",
        )
        strangers = [await asyncio.open_unix_connection(f"{tmp_path}/s") for _ in range(5)]
        caller = await aio.connect(f"unix://{tmp_path}/s", identity=CLIENT, token=TOKEN, job="job-1", decoder=decoder)
        assert caller.peer == SERVER
        for reader, _ in strangers[:2]:
            await reader.read()  # until end of file
        assert len(unauthenticated) <= 3
        for _, writer in strangers:
            writer.close()
        caller.close()
        server.close()
        while len(unauthenticated):  # noqa: ASYNC110 - the test has a deadline around it
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(run(), 30))
