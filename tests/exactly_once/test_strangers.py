"""A trainer joins while unauthenticated callers hold all descriptors, and a stopped trainer leaves no thread at a server."""

from __future__ import annotations

import contextlib
import itertools
import re
import resource
import signal
import socket
from pathlib import Path

import pytest

from tests.exactly_once.test_counting import check
from tests.exactly_once.test_desired_state import Operator
from tests.realjob import RealJob

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def address_of(job: RealJob, role: str) -> tuple[int, str]:
    """Return the family and address of a process that listens."""
    if role == "master":
        return socket.AF_UNIX, (job.folder / "master.address").read_text().strip().removeprefix("unix://")
    found = re.search(r"listening at tcp://(\S+):(\d+)", job.log("pserver", 0))
    assert found is not None
    return socket.AF_INET, (found[1], int(found[2]))


def crowd(address, count: int) -> list[socket.socket]:
    """Open connections that send nothing."""
    made = []
    for _ in range(count):
        stream = socket.socket(address[0], socket.SOCK_STREAM)
        stream.setblocking(False)
        with contextlib.suppress(OSError):  # the connection is in progress, or the listen queue is full
            stream.connect(address[1])
        made.append(stream)
    return made


@pytest.mark.parametrize("role", ["pserver", "master"])
def test_a_trainer_joins_while_strangers_hold_all_descriptors(zygote, tmp_path, role):
    pause = {"COUNT_PAUSE": "0.01"}
    with RealJob(zygote, tmp_path / "j", epochs=40, trainers=1, servers=1, tcp=True, variables=pause) as job:
        operator = Operator(job)
        operator.until(lambda reported: reported.trainers == [0] and reported.samples > 0)
        pid = job.children[role, 0].pid
        most = bound(pid, spare=12)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))
        with contextlib.ExitStack() as strangers:
            for stranger in crowd(address_of(job, role), 100):
                strangers.enter_context(stranger)
            operator.until(lambda _: "no caller could be accepted" in job.log(role, 0), seconds=150)
            job.join(1)
            operator.until(lambda reported: reported.trainers == [0, 1], seconds=150)
        job.run_to_the_end(seconds=200)
        operator.store.close()
        assert job.children[role, 0].pid == pid
        check(job)


def bound(pid: int, *, spare: int) -> int:
    """Return the limit of descriptors with which a process can open ``spare`` more."""
    used = {int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir()}
    return next(most for most in itertools.count() if len(set(range(most)) - used) == spare)


def test_a_paused_trainer_occupies_no_thread_of_a_server(zygote, tmp_path):
    pause = {"COUNT_PAUSE": "0.01"}
    with RealJob(zygote, tmp_path / "j", epochs=40, trainers=1, servers=1, tcp=True, variables=pause) as job:
        operator = Operator(job)
        operator.until(lambda reported: reported.trainers == [0] and reported.samples > 0)
        pid = job.children["pserver", 0].pid
        before = threads(pid)
        job.join(1)
        operator.until(lambda reported: reported.trainers == [0, 1] and threads(pid) > before)
        job.children["trainer", 1].send_signal(signal.SIGSTOP)
        operator.until(lambda reported: reported.trainers == [0])
        operator.until(lambda _: threads(pid) <= before)
        job.children["trainer", 1].send_signal(signal.SIGCONT)
        job.run_to_the_end(seconds=200)
        operator.store.close()
        check(job)


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))
