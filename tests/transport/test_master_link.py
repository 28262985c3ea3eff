"""The persistent link to the master: it finds the master at a new address, and stays connected while the master is alive."""

from __future__ import annotations

import select
import threading
import time

import msgspec

from shoal.protocol import messages as m
from shoal.transport import auth, sync
from shoal.transport.address import listen, publish
from shoal.transport.frames import encode
from shoal.transport.master_link import MasterLink

TOKEN = auth.Token(b"0123456789abcdef")
MASTER = auth.Identity("master", 0, 1)
decoder = msgspec.msgpack.Decoder(m.ToMaster)


class Master:
    """Accepts one caller after another; answers keep-alives and nothing else."""

    def __init__(self, folder, number):
        self.stream, address = listen(f"unix://{folder}/m{number}")
        publish(folder / "address", address)
        self.heard = []
        self.connections = []
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        try:
            while True:
                caller, _ = self.stream.accept()
                connection = sync.accept(caller, identity=MASTER, token=TOKEN, job="j")
                self.connections.append(connection)
                self.serve(connection)
        except OSError:
            return

    def serve(self, connection):
        try:
            while True:
                message, _ = connection.receive(decoder)
                self.heard.append(message)
                if isinstance(message, m.KeepAlive):
                    connection.send(m.KeepAliveReply())
        except OSError:
            return

    def close(self):
        import contextlib
        import socket

        with contextlib.suppress(OSError):
            self.stream.shutdown(socket.SHUT_RDWR)
        self.stream.close()
        for connection in self.connections:
            connection.close()
        self.thread.join(5)


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def make(folder, **options):
    given = {"greetings": lambda: [m.GetSlotMap()], "handle": lambda _: None, "refused": lambda _: None} | options
    return MasterLink(
        f"file://{folder}/address",
        identity=auth.Identity("trainer", 0, 2),
        token=TOKEN,
        job="j",
        **given,
    )


def test_a_master_elsewhere_is_found_and_greeted_anew(tmp_path):
    first = Master(tmp_path, 1)
    link = make(tmp_path)
    link.start()
    until(lambda: m.GetSlotMap() in first.heard)
    first.close()
    second = Master(tmp_path, 2)
    until(lambda: m.GetSlotMap() in second.heard)
    # The link counts as connected only after all greetings are sent; the master receives the first one earlier.
    until(lambda: link.send(m.LoopFinished()))
    until(lambda: m.LoopFinished() in second.heard)
    link.close()
    second.close()


def test_a_link_that_sends_much_without_replies_keeps_its_connection(tmp_path):
    """The master answers keep-alives only, so the link must send them although it sends other messages."""
    lost = []
    master = Master(tmp_path, 1)
    link = make(tmp_path, lost=lambda: lost.append(1))
    link.lease_seconds = 0.6
    link.start()
    until(lambda: link.connected)
    end = time.monotonic() + 2.0
    while time.monotonic() < end:
        link.send(m.JobEvent(level="info", text="busy"))
        time.sleep(0.05)
    assert not lost
    assert len(master.connections) == 1
    link.close()
    master.close()


def test_a_refusal_is_final(tmp_path):
    master = Master(tmp_path, 1)
    refusals = []
    link = MasterLink(
        f"file://{tmp_path}/address",
        identity=auth.Identity("trainer", 0, 2),
        token=auth.Token(b"another-token-16"),
        job="j",
        greetings=list,
        handle=lambda _: None,
        refused=refusals.append,
    )
    link.start()
    until(lambda: refusals)
    assert refusals == ["the job's token is wrong or missing"]
    link.close()
    master.close()


def test_a_large_message_on_a_slow_network_is_not_taken_for_silence(tmp_path):
    """The message's bytes arrive continuously, and the link sends keep-alives to the master meanwhile."""

    class Slow(Master):
        def serve(self, connection):
            self.heard.append(connection.receive(decoder)[0])  # the greeting
            sent = encode(m.Stop(reason="x" * 4000))
            place, end = 0, time.monotonic() + 60
            while time.monotonic() < end and not select.select([connection._stream], [], [], 0.02)[0]:
                connection._stream.send(sent[place : place + 1])
                place += 1
            connection._stream.send(sent[place:])
            super().serve(connection)

    handled, lost = [], []
    master = Slow(tmp_path, 1)
    link = make(tmp_path, handle=handled.append, lost=lambda: lost.append(1))
    link.lease_seconds = 10.0
    link.start()
    until(lambda: handled)
    assert m.KeepAlive() in master.heard
    assert not lost
    link.close()
    master.close()
