"""A whole parameter server over real sockets, with a slow disk or blocked work; the test plays the master."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import msgspec
import pytest
import torch

import shoal.pserver.service
from shoal.protocol import messages as m
from shoal.protocol.slot_layout import Area
from shoal.pserver.service import ServerService
from shoal.pserver.snapshots import files
from shoal.transport import auth, sync
from shoal.transport.address import listen
from tests.pserver.shapes import make_shape

T = TypeVar("T")
TOKEN = auth.Token(b"0123456789abcdef")
SHAPE = make_shape(sizes={"w": [8]}, options={"lr": 1.0})
SLOTS = 4
SECONDS = 30.0
heard: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(m.ToMaster)
answers: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(m.ToTrainer)


def until(condition: Callable[[], T]) -> T:
    end = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
    return found


class PlayedMaster:
    """Greets the server and records its messages; the test sends the orders."""

    def __init__(self, folder: Path) -> None:
        self.stream, self.address = listen(f"unix://{folder}/master")
        self.received: list[Any] = []
        self.connection: sync.BlockingConnection | None = None
        self.lost = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self.stream.accept()
                identity = auth.Identity("master", 0, 1)
                connection = sync.accept(caller, identity=identity, token=TOKEN, job="job")
                connection.send(accepted())
                self.connection = connection
                with contextlib.suppress(OSError):
                    self._listen(connection)
                connection.close()
                self.lost += 1

    def _listen(self, connection: sync.BlockingConnection) -> None:
        while True:
            message, _ = connection.receive(heard)
            self.received.append(message)
            if isinstance(message, m.KeepAlive):
                connection.send(m.KeepAliveReply())

    def order(self, message: Any) -> None:
        until(lambda: self.connection is not None)
        assert self.connection is not None
        self.connection.send(message)

    def heard(self, kind: type[T], test: Callable[[T], bool] = lambda _: True) -> T:
        """Wait for a message."""
        return until(lambda: next((each for each in self.received if isinstance(each, kind) and test(each)), None))  # type: ignore[arg-type, return-value]

    def pings(self) -> int:
        return sum(isinstance(each, m.KeepAlive) for each in list(self.received))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.stream.shutdown(socket.SHUT_RDWR)
        self.stream.close()
        if self.connection is not None:
            self.connection.close()
        self._thread.join(SECONDS)


def accepted() -> m.JobSettings:
    return m.JobSettings(shape=SHAPE, slots=SLOTS, seed=1, epochs=1, interval=60.0, keep=2, lease_seconds=2.0)


class PlayedTrainer:
    """Pushes to and pulls from single slots."""

    def __init__(self, address: str) -> None:
        identity = auth.Identity("trainer", 0, 7)
        self.connection = sync.connect(address, identity=identity, token=TOKEN, job="job", timeout=SECONDS)

    def request(self, request: Any, payload: bytes = b"") -> tuple[Any, bytes]:
        end = time.monotonic() + SECONDS

        def idle() -> None:
            assert time.monotonic() < end, f"{type(request).__name__} is not answered"

        self.connection.send(request, [memoryview(payload)] if payload else [])
        answer, size = self.connection.receive(answers, idle=idle)
        memory = bytearray(size)
        self.connection.receive_into(memoryview(memory))
        return answer, bytes(memory)

    def initialise(self, grants: list[int]) -> None:
        slots = list(range(SLOTS))
        ones = torch.ones(Area(SHAPE, SLOTS, slots).size // 4).numpy().tobytes()
        self.request(m.InitialValues(slots=slots, grants=grants, parts=[]), ones)

    def push(self, batch: int, grant: int) -> list[float]:
        gradient = torch.ones(Area(SHAPE, SLOTS, [0]).size // 4).numpy().tobytes()
        push = m.Push(
            grants=[grant], epoch=0, task=batch // 2, first=batch % 2, batches=1, samples=10, skipped=False, absent=[],
            options={}, parts=[], next_epoch=0, next_task=0, values=True,
        )  # fmt: skip
        answer, values = self.request(push, gradient)
        assert answer.pushed == [m.SlotBatch(slots=[0], grants=[grant], batches=batch % 2 + 1)]
        return torch.frombuffer(bytearray(values), dtype=torch.float32).tolist()[:2]


class Running:
    """A running server with its four slots and a snapshot of them."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.master = PlayedMaster(folder)
        self.address = f"unix://{folder}/server"
        self.service = ServerService(
            self.master.address,
            identity=auth.Identity("pserver", 0, 5),
            token=TOKEN,
            uid="job",
            folder=folder / "snapshots",
            **options,
        )
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.probe = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        self.thread = threading.Thread(target=self.service.run, args=([self.address],), kwargs={"probe": self.probe})
        self.thread.start()
        self.master.heard(m.ReportState, lambda state_report: state_report.addresses != [])
        grants = [11, 12, 13, 14]
        for slot, grant in enumerate(grants):
            self.master.order(m.Grant(slot=slot, grant=grant, source="fresh", file=""))
        for grant in grants:
            self.master.heard(m.AwaitingInitialValues, lambda waiting, grant=grant: grant in waiting.grants)
        self.trainer = PlayedTrainer(self.address)
        self.trainer.initialise(grants)
        self.file = self.master.heard(m.SnapshotWritten).file
        self.master.heard(m.GrantReport, lambda held: sum(len(report.slots) for report in held.reports) == SLOTS)
        self.trainer.request(m.Attach(slots=[0], shared=0))
        self.grants = grants
        self.questions = 0

    def restore(self, slot: int, grant: int, file: str = "") -> None:
        self.master.order(m.Grant(slot=slot, grant=grant, source="file", file=file or self.file))

    def request_state(self) -> m.ReportState:
        """Return the server's state after it has carried out all orders sent so far."""
        self.questions += 1
        self.master.order(m.RequestState(question=self.questions))
        return self.master.heard(m.ReportState, lambda state_report: state_report.question == self.questions)

    def held(self, grant: int) -> m.GrantReport:
        return self.master.heard(m.GrantReport, lambda held: any(grant in report.grants for report in held.reports))

    def probed(self) -> tuple[int, str]:
        """Return the status and body of the server's liveness probe."""
        try:
            with urllib.request.urlopen(self.probe.replace("tcp", "http"), timeout=SECONDS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def close(self) -> None:
        self.trainer.connection.close()
        self.service.stop()
        self.thread.join(SECONDS)
        self.master.close()
        assert not self.thread.is_alive()


class SlowDisk:
    """Blocks reads of snapshots until the test releases them, as a disk does that reads gigabytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reading, self.may = threading.Event(), threading.Event()
        self.may.set()
        read = files._read_tensor

        def slowly(*arguments: Any) -> Any:
            self.reading.set()
            assert self.may.wait(SECONDS * 3)
            return read(*arguments)

        monkeypatch.setattr(files, "_read_tensor", slowly)

    def stop(self) -> None:
        self.may.clear()
        self.reading.clear()


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    quiet = SimpleNamespace(SIGTERM=0, SIGINT=0, signal=lambda *_: None)
    monkeypatch.setattr(shoal.pserver.service, "signal", quiet)
    # The folder is not pytest's, because the name of a Unix socket has at most 107 bytes.
    made = Path(tempfile.mkdtemp(prefix="shoal-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    return SlowDisk(monkeypatch)


@pytest.fixture
def running(folder: Path, disk: SlowDisk) -> Iterator[Running]:
    made = Running(folder)
    yield made
    disk.may.set()
    made.close()


def test_a_slow_restore_delays_no_other_slot_and_no_keep_alive(running: Running, disk: SlowDisk) -> None:
    master, trainer = running.master, running.trainer
    disk.stop()
    master.order(m.ReleaseSlot(slot=1, grant=running.grants[1]))
    running.restore(1, 21)
    assert disk.reading.wait(SECONDS)
    values = [trainer.push(batch, running.grants[0]) for batch in range(6)]
    assert values == [[1.0 - step] * 2 for step in range(1, 7)]
    state_report = running.request_state()
    assert sorted(slot for report in state_report.held for slot in report.slots) == [0, 2, 3]
    pings = master.pings()
    # More keep-alives than fit into the silence after which a master drops a member.
    until(lambda: master.pings() > pings + 5)
    assert not master.lost
    assert running.probed() == (200, "ok\n")
    disk.may.set()
    assert running.held(21).reports[0].slots == [1]


def test_the_last_order_for_a_slot_counts_whatever_is_being_read(running: Running, disk: SlowDisk) -> None:
    master = running.master
    master.order(m.ReleaseSlot(slot=1, grant=running.grants[1]))
    disk.stop()
    running.restore(1, 31)
    assert disk.reading.wait(SECONDS)
    running.restore(1, 32)
    running.restore(2, 33)
    running.restore(3, 34)
    master.order(m.ReleaseSlot(slot=2, grant=33))
    running.request_state()
    disk.may.set()
    running.held(32)
    running.held(34)
    received = {
        grant
        for held in master.received
        if isinstance(held, m.GrantReport)
        for each in held.reports
        for grant in each.grants
    }
    assert received == {*running.grants, 32, 34}
    held = {
        slot: grant
        for each in running.request_state().held
        for slot, grant in zip(each.slots, each.grants, strict=True)
    }
    assert held == {0: running.grants[0], 1: 32, 2: running.grants[2], 3: 34}


def test_an_unreadable_snapshot_is_reported_and_the_next_one_is_read(running: Running) -> None:
    running.restore(1, 61, "nothing.safetensors")
    running.restore(2, 62)
    assert running.master.heard(m.GrantFailed).grant == 61
    assert running.held(62).reports[0].slots == [2]


def test_a_hung_server_disconnects_from_its_master_and_fails_its_probe_with_the_reason(folder: Path) -> None:
    running = Running(folder, held_seconds=0.5)
    try:
        master = running.master
        assert not running.service.hang_reason()
        with running.service.lock:
            until(lambda: master.lost == 1)
            assert "stood still" in running.service.hang_reason()
            code, reason = running.probed()
            assert (code, reason.split(" for ")[0]) == (503, "its work has stood still")
        # The server reconnects with all its slots as soon as its work continues.
        until(lambda: running.probed() == (200, "ok\n"))
        until(lambda: len([each for each in master.received if isinstance(each, m.ReportState)]) >= 2)
        assert sum(len(report.slots) for report in running.request_state().held) == SLOTS
    finally:
        running.close()
