"""The master's liveness probe reports whether its event loop runs, its clock advances, and it listens."""

from __future__ import annotations

import secrets
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest

from shoal.master import service as module
from shoal.master.core import MasterCore
from shoal.master.service import MasterService
from shoal.master.state.job import JobState, MasterSettings
from shoal.master.state.records import Records
from shoal.transport import auth
from shoal.transport.address import listen
from tests.trainer.one_process import Loop, NoEtcd

SECONDS = 30.0


class Running:
    def __init__(self):
        settings = MasterSettings(name="j", epochs=1, seed=1, servers=1, checkpoint_seconds=60, checkpoint_keep=2, output="",
                            lease_seconds=10.0)  # fmt: skip
        job = JobState(settings=settings, records=Records(), generation=1, new_grant=lambda: secrets.randbits(62) + 1,
                  now=time.monotonic(), clock=time.monotonic)  # fmt: skip
        self.loop, self.listening = Loop(), threading.Event()
        self.stream = listen("tcp://127.0.0.1:0")[0]
        probe, address = listen("tcp://127.0.0.1:0")
        self.url = address.replace("tcp", "http")

        async def serve():
            identity, token = auth.Identity("master", 0, 1), auth.Token(b"x" * 32)
            self.service = MasterService(MasterCore(job), NoEtcd(), identity=identity, token=token, uid="u")
            await self.service.run(self.stream, ready=self.listening.set, probe=probe)

        self.thread = threading.Thread(target=lambda: self.loop.run_until_complete(serve()))
        self.thread.start()
        assert self.listening.wait(SECONDS)

    def probed(self, seconds=SECONDS):
        try:
            with urllib.request.urlopen(self.url, timeout=seconds) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def close(self):
        self.loop.call_soon_threadsafe(self.service._stop.set)
        self.thread.join(SECONDS)
        self.loop.close()


@pytest.fixture
def running():
    made = Running()
    yield made
    made.close()
    assert not made.thread.is_alive()


def test_a_working_master_is_healthy(running):
    assert running.probed() == (200, "ok\n")


def test_a_blocked_loop_does_not_answer_and_is_healthy_when_it_continues(running):
    stuck = threading.Event()
    running.loop.call_soon_threadsafe(stuck.wait, SECONDS)
    with pytest.raises(TimeoutError):
        running.probed(seconds=1.0)
    stuck.set()
    assert running.probed() == (200, "ok\n")


def test_a_clock_without_ticks_fails_the_probe(running, monkeypatch):
    monkeypatch.setattr(module, "LATE_SECONDS", -1.0)
    code, reason = running.probed()
    assert (code, reason) == (503, "its clock has stood still for 0 s\n")


def test_a_socket_that_does_not_listen_any_more_fails_the_probe(running):
    running.stream.shutdown(socket.SHUT_RDWR)
    assert running.probed() == (503, "it does not listen any more\n")
