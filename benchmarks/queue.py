"""Measures the tasks per second that a master leases and commits, all durable in a real etcd.

Eight client processes use the trainer's side of the protocol, with up to four tasks in flight each: they request a task,
report it as done, and request the next one. A task counts when the master reports it as committed, which it does only after
etcd has it on disk. One real parameter server serves the slots; a real trainer has set their initial values and exited.
After each measurement the same clients make plain puts into the same etcd, one at a time each.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.common import Row, at_least, main, plain
from benchmarks.jobs import until
from benchmarks.scripts import sleeper
from shoal.local.etcd_server import EtcdServer, find_etcd
from shoal.protocol import environment as names
from shoal.protocol import messages as m
from shoal.store import JobKeys, Store
from shoal.store._stubs import grpc, rpc
from shoal.transport import aio, auth

CLIENTS = 8
IN_FLIGHT = 4
SECONDS = 3.0
PAIRS = 9
KEYS = JobKeys("default", "queue", "0123456789abcdef")
MANIFEST = """
apiVersion: shoal.dev/v1alpha1
kind: TrainingJob
metadata: {name: queue}
spec:
  command: [python, script]
  epochs: 100000
  parameterServer: {replicas: 1}
  checkpoint: {interval: 1h}
"""


class Client(aio.Caller):
    """A trainer that computes nothing: it reports every task as done at once."""

    grants: tuple[int, ...] = ()
    working = False
    over = 0

    def on_message(self, message: Any) -> None:
        """Reply at once."""
        if isinstance(message, m.TaskLeased):
            self.send(m.TaskDone(lease=message.lease, grants=list(self.grants)))
        elif isinstance(message, m.TaskCommitted):
            self.over += 1
            if self.working:
                self.send(m.RequestTask(epoch=1 << 30))
        elif isinstance(message, m.SlotMap):
            self.grants = tuple(message.grants)
        elif isinstance(message, m.TaskReopened):
            self.send(m.TaskDone(lease=message.lease, grants=list(self.grants)))


async def _trainer(pipe: Pipe, folder: Path, shape: m.ModelSpec, index: int) -> None:
    client = await aio.connect(
        f"file://{folder}/master.address",
        identity=auth.Identity(role="trainer", index=index, life=auth.new_life()),
        token=auth.Token.read(folder / "token"),
        job=KEYS.uid,
        decoder=msgspec.msgpack.Decoder(m.FromMaster),
        make=Client,
    )
    assert isinstance(client, Client)
    client.send(m.Register(shape=shape, epochs=1, seed=0, leases=[], pid=os.getpid(), host=""))
    while not client.grants:  # noqa: ASYNC110 - waits once, for a short time
        await asyncio.sleep(0.01)
    await asyncio.to_thread(pipe.send, "ready")
    while (order := await _order(pipe, client)) != "end":
        if order == "puts":
            await asyncio.to_thread(_puts, pipe, folder, index)
        else:
            await _tasks(pipe, client)
    client.close()


async def _order(pipe: Pipe, client: Client) -> str:
    while not pipe.poll():
        client.send(m.KeepAlive())
        await asyncio.sleep(0.05)
    return str(pipe.recv())


async def _tasks(pipe: Pipe, client: Client) -> None:
    before, client.working = client.over, True
    asked = time.monotonic()
    for _ in range(IN_FLIGHT):
        client.send(m.RequestTask(epoch=1 << 30))
    await asyncio.sleep(SECONDS)
    # Tasks in flight do not count; the pause lets them finish, so that they do not disturb the puts.
    done, passed = client.over - before, time.monotonic() - asked
    client.working = False
    await asyncio.sleep(0.3)
    pipe.send(done / passed)


def _puts(pipe: Pipe, folder: Path, index: int) -> None:
    endpoint = (folder / "etcd" / "etcd.endpoint").read_text().strip().removeprefix("unix://")
    with grpc.insecure_channel(f"unix:{endpoint}") as channel:
        put = rpc.KVStub(channel).Put
        request = rpc.PutRequest(key=f"/puts/{index}".encode(), value=b"x" * 64)
        put(request)
        count, began = 0, time.monotonic()
        while time.monotonic() < began + SECONDS:
            put(request)
            count += 1
        pipe.send(count / (time.monotonic() - began))


def _client(pipe: Pipe, folder: Path, shape: bytes, index: int) -> None:
    asyncio.run(_trainer(pipe, folder, msgspec.json.decode(shape, type=m.ModelSpec), index))


class QueueJob:
    """Etcd, a master, a parameter server with a tiny model, and a trainer during the set-up.

    Args:
        folder: Folder of all files.
        stack: Stack whose end stops all processes.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack
        self.etcd = EtcdServer(find_etcd(), folder / "etcd")
        self.etcd.start()
        stack.callback(self.etcd.stop)
        (folder / "job.yaml").write_text(MANIFEST)
        auth.Token.create(folder / "token")
        self.master = self._start("master", "-m", *self._master())
        listen = f"unix://{folder}/pserver"
        self._start("pserver", "-m", "shoal.pserver", "--listen", listen, "--snapshots", str(folder / "snapshots"))
        self.shape = self._give_shape()

    def _master(self) -> list[str]:
        profile = os.environ.get("BENCH_PROFILE")
        return [
            *(("cProfile", "-o", profile, "-m") if profile else ()),
            *("shoal.master", "--manifest", str(self.folder / "job.yaml"), "--etcd", self.etcd.endpoint),
            *("--listen", f"unix://{self.folder}/master", "--address-file", str(self.folder / "master.address")),
        ]

    def _start(self, role: str, *arguments: str) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "BENCH_STEPS": str(self.folder),
            "BENCH_PAUSE": "3600",
            "BENCH_TASK": "1",
            names.MASTER: f"file://{self.folder}/master.address",
            names.TOKEN_FILE: str(self.folder / "token"),
            names.UID: KEYS.uid,
            names.ROLE: role,
            names.INDEX: "99" if role == "trainer" else "0",
        }
        with (self.folder / f"{role}.log").open("wb") as log:
            process = subprocess.Popen([sys.executable, *arguments], env=environment, stdout=log, stderr=log)
        self._stack.callback(_end, process)
        return process

    def _give_shape(self) -> bytes:
        """Run a trainer that registers the model and sets the slots' initial values; return the model's record."""
        trainer = self._start("trainer", sleeper.__file__)
        steps = self.folder / f"steps-99-{trainer.pid}"
        # One stamp more than those of joining: the trainer has a batch, so every slot is served.
        until(lambda: steps.exists() and steps.stat().st_size >= 8 * 6, "the first trainer's first batch")
        _end(trainer)
        with Store.connect(self.etcd.endpoint, prefix=KEYS.prefix) as store:
            found = store.get(KEYS.at("shape"))
        assert found is not None
        return found.value


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(5)
    process.kill()
    process.wait()


def _all(pipes: list[Pipe], order: str) -> float:
    for pipe in pipes:
        pipe.send(order)
    return sum(float(pipe.recv()) for pipe in pipes)


def measure() -> tuple[list[Row], Any]:
    """Measure pairs of tasks and puts, one after the other."""
    spawn = multiprocessing.get_context("spawn")
    pairs = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-queue-")))
        job = QueueJob(folder, stack)
        pipes: list[Pipe] = []
        for index in range(CLIENTS):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_client, args=(theirs, folder, job.shape, index), daemon=True)
            process.start()
            stack.callback(process.kill)
            pipes.append(ours)
        for pipe in pipes:
            pipe.recv()
        _all(pipes, "tasks")
        pairs = [(_all(pipes, "tasks"), _all(pipes, "puts")) for _ in range(PAIRS)]
        for pipe in pipes:
            pipe.send("end")
    tasks = [value for value, _ in pairs]
    rate = statistics.median(tasks)
    absolute = plain("tasks handed out and done, durable", tasks, "tasks/s")
    rows = [
        replace(absolute, goal=">= 3000", met=rate >= 3000),
        at_least("tasks/s against plain puts by the same clients", pairs, "per s", goal=1.5),
    ]
    return rows, {"pairs": pairs}


if __name__ == "__main__":
    main("queue", measure)
