"""Hostile callers of a job's listening ports during training: unauthenticated ones, and members that send invalid messages.

A member's messages are anything but valid work: a push under a true grant, a farewell with a reason, or a failure of the
script may change the job, because the token is the trust boundary.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psutil

from shoal.protocol import messages as m
from shoal.protocol.slot_layout import Area
from shoal.store import Store
from shoal.transport import address, auth, sync
from tests.hostile import Liar, kinds
from tests.realjob import RealJob
from tests.zygote import Zygote

__all__ = ["CALLERS", "Footprint", "Fuzzer", "fuzzed_job"]

CALLERS = ("stranger", "trainer", "pserver", "observer")
BY_RIGHT = {
    m.StopEarly,
    m.ScriptFailed,
    m.ScriptHung,
    m.Save,
    m.Saved,
    m.Evaluated,
    m.Leave,
    m.BatchBegan,
    m.ReportState,
    m.Register,
}
"""Messages of a member of the job that change it, as they should: in their place there are random bytes, as one that has the
right types by chance is the word of a member. What a master makes of such words has tests of its own. A trainer that registers names the tasks that it holds, and a task of epoch 600 begins 600 epochs:
a job that is stopped finishes them."""
SILENT = 20
"""Connections of one caller that are left open without a greeting."""


@dataclass(frozen=True)
class Footprint:
    """The descriptors, threads and memory of a process."""

    descriptors: int
    threads: int
    megabytes: float

    @classmethod
    def of(cls, pid: int) -> Footprint:
        process = psutil.Process(pid)
        with process.oneshot():
            return cls(process.num_fds(), process.num_threads(), process.memory_info().rss / 1e6)

    def within(self, before: Footprint, *, megabytes: float) -> bool:
        """Return whether it has not grown, apart from caches and the job's own activity."""
        few = self.descriptors <= before.descriptors + 4 and self.threads <= before.threads + 4
        return few and self.megabytes <= before.megabytes + megabytes


class Fuzzer:
    """Calls one port of a job repeatedly.

    Args:
        job: A counting job that trains.
        role: Role whose port is called: ``master`` or ``pserver``.
        seed: Random seed of the messages.
        impersonates: Whether a caller claims to be parameter server 0. The token allows it to take that server's place, and the
            job's own server has to reconnect repeatedly.
    """

    def __init__(self, job: RealJob, role: str, *, seed: int, impersonates: bool = False) -> None:
        self.calls: Counter[str] = Counter()
        self.sent = 0
        self._job, self._role, self._seed, self._impersonates = job, role, seed, impersonates
        self._token = auth.Token.read(job.folder / "token")
        self._messages = kinds(m.ToMaster if role == "master" else m.ToServer)
        with Store.connect(job.etcd.endpoint, prefix=job.keys.prefix) as store:
            found = store.get(job.keys.prefix + "shape")
        assert found is not None
        self._shape = msgspec.json.decode(found.value, type=m.ModelSpec)
        self._end = 0.0

    @property
    def address(self) -> str:
        """Address of the port."""
        if self._role == "master":
            return f"file://{self._job.folder}/master.address"
        found = re.findall(r"listening at (tcp://\S+)", self._job.log("pserver", 0))
        return str(found[-1])

    def run(self, seconds: float, *, meanwhile: Callable[[], None]) -> None:
        """Let every caller send messages for ``seconds``, and call ``meanwhile`` repeatedly."""
        self._end = time.monotonic() + seconds
        failed: list[BaseException] = []

        def attack(caller: str) -> None:
            try:
                self._attack(caller)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=attack, args=(caller,)) for caller in CALLERS]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            meanwhile()
            time.sleep(0.05)  # polling interval of the supervisor, not a synchronisation
        for error in failed:
            raise error

    def _attack(self, caller: str) -> None:
        chance = random.Random(f"{self._seed}{self._role}{caller}")
        silent: list[socket.socket] = []
        while time.monotonic() < self._end:
            self.calls[caller] += 1
            with contextlib.suppress(OSError):
                stream = self._stranger(chance) if caller == "stranger" else self._member(caller, chance)
                if stream is not None and chance.random() < 0.1 and len(silent) < SILENT:
                    silent.append(stream)
                elif stream is not None:
                    stream.close()
            time.sleep(0.02 if caller != "pserver" or self._role != "master" else 1.0)
        for stream in silent:
            stream.close()

    def _stranger(self, chance: random.Random) -> socket.socket | None:
        stream = address.connect(self.address, timeout=2.0)
        liar = Liar(chance, wrong=0.2)
        with contextlib.suppress(OSError):
            for _ in range(chance.randrange(4)):
                handshake = chance.choice(kinds(auth.Handshake))
                stream.sendall(liar.frame(handshake) if chance.random() < 0.5 else liar.noise())
                self.sent += 1
        return stream

    def _member(self, caller: str, chance: random.Random) -> socket.socket | None:
        stands_in = self._impersonates and caller == "pserver" and chance.random() < 0.3
        index = 0 if stands_in else chance.randrange(50, 1000)
        identity = auth.Identity(caller, index, auth.new_life())
        connection = sync.connect(self.address, identity=identity, token=self._token, job=self._job.keys.uid)
        stream = connection._stream
        stream.settimeout(2.0)
        liar = Liar(chance, integers=[*range(16), 120, 600], wrong=chance.choice((0.0, 0.0, 0.05, 0.5)))
        allowed = [kind for kind in self._messages if kind not in BY_RIGHT or liar.wrong]
        with contextlib.suppress(OSError):
            self._introduce(connection, caller, chance)
            for _ in range(chance.randrange(30)):
                stream.sendall(self._frame(liar, chance.choice(allowed)))
                self.sent += 1
                if chance.random() < 0.1:
                    stream.recv(1 << 20, socket.MSG_DONTWAIT)
        return stream

    def _frame(self, liar: Liar, kind: type) -> bytes:
        """Return a frame of this kind, or random bytes where a message could be valid work by chance."""
        return liar.noise() if kind in BY_RIGHT else liar.frame(kind)

    def _introduce(self, connection: sync.BlockingConnection, caller: str, chance: random.Random) -> None:
        """Introduce the caller as a real member does, so that its messages pass the first checks."""
        if chance.random() < 0.3:
            return
        if self._role == "master" and caller == "trainer":
            shape = self._shape
            connection.send(m.Register(shape=shape, epochs=2, seed=3, leases=[], pid=1, host="h"))
        elif self._role == "pserver":
            slots = chance.sample(range(16), chance.choice((1, 4, 8)))
            connection.send(m.Attach(slots=slots, shared=0))
            if chance.random() < 0.5:
                payload = memoryview(bytearray(Area(self._shape, 16, slots).size))
                connection.send(stale_push(slots, chance), [payload])


def stale_push(slots: list[int], chance: random.Random) -> m.Push:
    """Return a push that is valid except for its grants."""
    return m.Push(
        grants=[chance.randrange(2**62) for _ in slots],
        epoch=chance.randrange(3),
        task=chance.randrange(3),
        first=0,
        batches=1,
        samples=5,
        skipped=chance.random() < 0.5,
        absent=[],
        options={},
        parts=[],
        next_epoch=0,
        next_task=0,
        values=chance.random() < 0.5,
    )


@contextmanager
def fuzzed_job(zygote: Zygote, folder: Path) -> Iterator[tuple[RealJob, Callable[[], dict[str, Any]]]]:
    """Run a counting job that trains until the second value is called, which ends the job and returns its account."""
    stop = folder / "stop"
    variables = {"COUNT_PAUSE": "0.02", "COUNT_STOP": str(stop)}
    with RealJob(zygote, folder / "j", epochs=100_000, trainers=2, tcp=True, variables=variables) as job:

        def finish() -> dict[str, Any]:
            stop.touch()
            job.run_to_the_end(seconds=120)
            account = job.outcome().account
            assert account is not None
            sums = {name: int(counts.sum()) for name, counts in job.model().items()}
            samples = account.samples
            return {"lost": samples.lost, "twice": samples.twice, "counted": samples.counted, "sums": sums}

        yield job, finish
