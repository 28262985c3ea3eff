"""The liveness probe is answered whatever unauthenticated callers do, and its reply contains no more than it must."""

from __future__ import annotations

import contextlib
import socket
import urllib.error
import urllib.request

import pytest

from shoal.transport import liveness_probe
from shoal.transport.address import listen
from shoal.transport.liveness_probe import MOST_OF_ONE, REQUEST_BYTES, ProbeThread

SECONDS = 30.0


class Answering:
    def __init__(self):
        self.reason = ""
        stream, address = listen("tcp://127.0.0.1:0")
        self.url = address.replace("tcp://", "http://")
        self.place = stream.getsockname()
        self.thread = ProbeThread(stream, lambda: self.reason)
        self.thread.start()

    def get(self):
        """Send a kubelet's request; return status, body and headers."""
        try:
            with urllib.request.urlopen(self.url + "/healthz", timeout=SECONDS) as answer:
                return answer.status, answer.read().decode(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode(), dict(error.headers)

    def call(self):
        return socket.create_connection(self.place, timeout=SECONDS)


@pytest.fixture
def answering():
    made = Answering()
    yield made
    made.thread.close()
    assert not made.thread._thread.is_alive()


def ended(stream):
    with contextlib.suppress(ConnectionResetError):
        return not stream.recv(1)
    return True


def test_it_answers_ok_or_the_reason_and_nothing_else(answering):
    assert answering.get() == (
        200,
        "ok\n",
        {"Content-Type": "text/plain", "Content-Length": "3", "Connection": "close"},
    )
    answering.reason = "its work has stood still for 75 s"
    status, body, _ = answering.get()
    assert (status, body) == (503, "its work has stood still for 75 s\n")


def test_idle_unauthenticated_callers_are_closed_for_new_ones(answering):
    with contextlib.ExitStack() as strangers:
        crowd = [strangers.enter_context(answering.call()) for _ in range(3 * MOST_OF_ONE)]
        for stranger in crowd:
            with contextlib.suppress(OSError):  # the server may have closed it already, to make room
                stranger.send(b"GET / HT")
        assert answering.get()[0] == 200
        assert ended(crowd[0])


def test_a_slow_caller_is_closed_after_its_timeout(answering, monkeypatch):
    monkeypatch.setattr(liveness_probe, "CALL_SECONDS", 0.1)
    with answering.call() as slow:
        slow.send(b"GET /")
        assert ended(slow)
    assert answering.get()[0] == 200


@pytest.mark.parametrize("bytes_", [b"POST / HTTP/1.1\r\n\r\n", b"\0\0\0\0", b"GET /" + b"x" * 2 * REQUEST_BYTES])
def test_what_is_no_short_get_is_cut_off(answering, bytes_):
    with answering.call() as caller:
        caller.send(bytes_)
        assert ended(caller)
    assert answering.get()[0] == 200


def test_a_request_in_pieces_is_one_request(answering):
    with answering.call() as caller:
        for piece in (b"G", b"ET / HTTP/1.1\r\nHost: x\r\n", b"\r", b"\n"):
            caller.send(piece)
        assert caller.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
