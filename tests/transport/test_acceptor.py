"""The acceptor continues after every error of ``accept``, and silent callers do not block the job's own processes."""

from __future__ import annotations

import errno
import itertools
import os
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.transport import auth, sync
from shoal.transport.acceptor import DEAD, Acceptor
from shoal.transport.address import listen
from shoal.transport.unauthenticated import MOST_OF_ONE, Unauthenticated

TOKEN = auth.Token(b"0123456789abcdef")
SERVER = auth.Identity("pserver", 0, 7)
CLIENT = auth.Identity("trainer", 3, 9)

PASSING = [errno.EAGAIN, errno.ECONNABORTED, errno.EINTR, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EPERM,
           errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH, errno.EOPNOTSUPP,
           errno.ENETUNREACH, errno.ETIMEDOUT, errno.ENOSR]  # fmt: skip
"""The errors of accept(2) while the socket listens."""


class Failing(socket.socket):
    """A listening socket whose first calls of ``accept`` fail with these errors."""

    errors: list[int]

    def accept(self):
        if self.errors:
            number = self.errors.pop()
            raise OSError(number, os.strerror(number))
        return super().accept()


class Host:
    """An acceptor, the connections that it served, and the failures that it reported."""

    def __init__(self, address="tcp://127.0.0.1:0", errors=()):
        stream, self.address = listen(address)
        listener = Failing(fileno=stream.detach())
        listener.errors = list(errors)
        self.served: list[sync.BlockingConnection] = []
        self.failed: list[str] = []
        self.wake = threading.Event()
        self.acceptor = Acceptor(
            [listener], identity=SERVER, token=TOKEN, job="job-1", serve=self.serve, failed=self.failed_with
        )
        self.acceptor.start()

    def serve(self, connection):
        self.served.append(connection)
        self.wake.set()

    def failed_with(self, reason):
        self.failed.append(reason)
        self.wake.set()

    def call(self):
        return sync.connect(self.address, identity=CLIENT, token=TOKEN, job="job-1", timeout=30)

    def stranger(self):
        host, _, port = self.address.removeprefix("tcp://").rpartition(":")
        return socket.create_connection((host, int(port)))

    def close(self):
        self.acceptor.close()
        for connection in self.served:
            connection.close()


@pytest.mark.parametrize("number", PASSING, ids=lambda number: errno.errorcode[number])
def test_whatever_accept_fails_with_the_next_caller_is_served(number):
    host = Host(errors=[number] * 5)
    connection = host.call()
    assert host.wake.wait(30)
    assert connection.peer == SERVER
    assert [each.peer for each in host.served] == [CLIENT]
    assert not host.failed
    connection.close()
    host.close()


@pytest.mark.parametrize("number", sorted(DEAD), ids=lambda number: errno.errorcode[number])
def test_a_socket_that_does_not_listen_is_reported(number):
    host = Host(errors=[number])
    assert host.wake.wait(30)
    assert host.failed == [f"the process does not listen any more: [Errno {number}] {os.strerror(number)}"]
    host.close()


def test_an_error_other_than_those_of_sockets_does_not_end_it_either(monkeypatch):
    """A thread cannot be started at the limit of processes, and the acceptor continues."""
    real = threading.Thread.start
    failures = itertools.count()

    def start(thread):
        if thread.name.startswith("shoal-greet") and next(failures) < 3:
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    host = Host()
    for _ in range(3):
        with pytest.raises(OSError):
            host.call()
    connection = host.call()
    assert connection.peer == SERVER
    connection.close()
    host.close()


def test_silent_callers_are_closed_for_new_ones():
    host = Host()
    strangers = [host.stranger() for _ in range(MOST_OF_ONE + 10)]
    connections = [host.call() for _ in range(3)]
    assert [each.peer for each in connections] == [SERVER] * 3
    for stranger in strangers[:10]:  # the acceptor has closed the oldest, after its challenge
        stranger.settimeout(30)
        while stranger.recv(4096):
            pass
    for each in [*strangers, *connections]:
        each.close()
    host.close()


def test_closing_ends_its_threads_and_closes_silent_callers():
    host = Host()
    stranger = host.stranger()
    stranger.settimeout(30)
    assert stranger.recv(4096)
    host.close()
    while stranger.recv(4096):
        pass
    stranger.close()
    assert not any(thread.is_alive() for thread in host.acceptor._threads)
    with pytest.raises(OSError):
        host.stranger()


CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("admit"), st.sampled_from(["", "10.0.0.1", "10.0.0.2"])),
        st.tuples(st.just("remove"), st.integers(0, 30)),
        st.tuples(st.just("oldest"), st.none()),
    ),
    max_size=40,
)


@given(CALLS)
def test_bounds_hold_and_the_oldest_makes_room(calls):
    """Compare the admission of unauthenticated callers with a list in order of arrival."""
    unauthenticated: Unauthenticated[int] = Unauthenticated(most=6, most_of_one=3)
    naive: list[tuple[int, str]] = []
    numbers = itertools.count()
    for call, argument in calls:
        if call == "admit":
            number = next(numbers)
            same = [each for each in naive if argument and each[1] == argument]
            oldest = same[0] if len(same) == 3 else naive[0] if len(naive) == 6 else None
            assert unauthenticated.admit(number, argument) == (oldest[0] if oldest else None)
            naive = [each for each in naive if each != oldest] + [(number, argument)]
        elif call == "remove":
            assert unauthenticated.remove(argument) == any(number == argument for number, _ in naive)
            naive = [each for each in naive if each[0] != argument]
        else:
            assert unauthenticated.oldest() == (naive[0][0] if naive else None)
            naive = naive[1:]
        assert len(unauthenticated) == len(naive) <= 6
