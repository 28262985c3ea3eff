"""A job of real processes whose life cycles the test controls: they are killed, paused, joined, removed and restarted."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any, Self

import msgspec
from safetensors.torch import load_file

from shoal.master.state.records import Outcome
from shoal.protocol import environment as names
from shoal.store import JobKeys, Store
from shoal.transport import auth
from tests.etcds import Etcd
from tests.proxy import Proxy, Route
from tests.zygote import Child, Zygote

__all__ = ["Chaos", "RealJob"]

TESTS = Path(__file__).resolve().parent
MANIFEST = """
apiVersion: shoal.dev/v1alpha1
kind: TrainingJob
metadata: {{name: {name}}}
spec:
  command: [python, script]
  parameterServer: {{replicas: {servers}}}
  checkpoint: {{interval: {interval}}}
"""


class RealJob:
    """One job: etcd, master, parameter servers, trainers.

    Args:
        zygote: Starts the processes.
        folder: Folder for all files of the job.
        script: Script that the trainers run.
        servers: Number of parameter servers.
        trainers: Number of trainers at the start.
        epochs: Epochs of the job; None: those of the script.
        seed: Seed of the job; None: that of the script.
        interval: Time between snapshots.
        lease_seconds: Silence after which a member is dropped. Seconds.
        tcp: Whether parameter servers use TCP instead of Unix sockets and shared memory.
        variables: Environment variables of the script.
        server_program: Arguments that run a parameter server.
        etcd: A running etcd for several jobs; None: the job has its own.
        final: Exit codes, besides 0, after which a trainer is not restarted.
        proxy: Proxy between all processes, which then use TCP; None: no proxy.
    """

    def __init__(
        self,
        zygote: Zygote,
        folder: Path,
        *,
        script: Path = TESTS / "counting.py",
        servers: int = 2,
        trainers: int = 2,
        epochs: int | None = 3,
        seed: int | None = None,
        interval: str = "300ms",
        lease_seconds: float = 1.0,
        tcp: bool = False,
        variables: dict[str, str] | None = None,
        server_program: tuple[str, ...] = ("-m", "shoal.pserver"),
        etcd: Etcd | None = None,
        final: frozenset[int] = frozenset(),
        proxy: Proxy | None = None,
    ) -> None:
        self.folder = folder
        self.servers, self.epochs = servers, epochs
        self.desired: set[tuple[str, int]] = {("master", 0)}
        self.desired |= {("pserver", index) for index in range(servers)}
        self.desired |= {("trainer", index) for index in range(trainers)}
        self.children: dict[tuple[str, int], Child] = {}
        self.restarts: Counter[str] = Counter()
        self._zygote = zygote
        self._script = script
        self._lease = lease_seconds
        self._tcp = tcp
        self._variables = variables or {}
        self._server_program = server_program
        self._masters = 0
        self._left: set[tuple[str, int]] = set()
        self._final = final | {0}
        folder.mkdir(parents=True, exist_ok=True)
        self._own_etcd = etcd is None
        self.etcd = Etcd(folder / "etcd") if etcd is None else etcd
        self._ports = [free_port() for _ in range(servers)]
        self._routes = self._through(proxy) if proxy is not None else {}
        # Trainers of two jobs may run on this machine at the same time, and the uid distinguishes them.
        self.keys = JobKeys("default", "real", f"uid-{uuid.uuid4()}")
        manifest = MANIFEST.format(name="real", servers=servers, interval=interval)
        given = {"epochs": epochs, "seed": seed}
        manifest += "".join(f"  {name}: {value}\n" for name, value in given.items() if value is not None)
        (folder / "job.yaml").write_text(manifest)
        auth.Token.create(folder / "token")

    def __enter__(self) -> Self:
        if self._own_etcd:
            self.etcd.start()
        self.supervise()
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children.values():
            child.send_signal(signal.SIGKILL)
            child.wait(10)
        if self._own_etcd:
            self.etcd.close()

    def _through(self, proxy: Proxy) -> dict[str, Route]:
        """Add a route for each kind of connection, and one for each parameter server."""
        master = f"file://{self.folder}/master.address"
        routes = {role: proxy.route(lambda: master) for role in ("trainer", "pserver")}
        routes["etcd"] = proxy.route(lambda: self.etcd.endpoint)
        for index, port in enumerate(self._ports):
            routes[f"pserver-{index}"] = proxy.route(lambda port=port: f"tcp://127.0.0.1:{port}")
        return routes

    # --- Processes ---

    def _arguments(self, role: str, index: int) -> list[str]:
        if role == "trainer":
            return ["script", str(self._script)]
        if role == "master":
            self._masters += 1
            etcd = self._routes["etcd"].address.removeprefix("tcp://") if self._routes else self.etcd.endpoint
            # Every master has a new address, which its callers find through the file.
            listen = "tcp://127.0.0.1:0" if self._routes else f"unix://{self.folder}/m{self._masters}"
            return [
                *("-m", "shoal.master"),
                *("--manifest", str(self.folder / "job.yaml")),
                *("--etcd", etcd),
                *("--listen", listen),
                *("--address-file", str(self.folder / "master.address")),
                *("--lease-seconds", str(self._lease)),
            ]
        listen = "tcp://127.0.0.1:0" if self._tcp else f"unix://{self.folder}/p{index}"
        advertised: list[str] = []
        if self._routes:
            listen = f"tcp://127.0.0.1:{self._ports[index]}"
            advertised = ["--advertise", self._routes[f"pserver-{index}"].address]
        snapshots = ["--snapshots", str(self.folder / f"snapshots-{index}")]
        return [*self._server_program, "--listen", listen, *advertised, *snapshots]

    def _start(self, role: str, index: int) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "OMP_NUM_THREADS": "1",
            names.MASTER: self._routes[role].address
            if role in self._routes
            else f"file://{self.folder}/master.address",
            names.TOKEN_FILE: str(self.folder / "token"),
            names.UID: self.keys.uid,
            names.ROLE: role,
            names.INDEX: str(index),
            names.FOLDER: str(self.work),
            **self._variables,
        }
        arguments = self._arguments(role, index)
        folder = self.work
        folder.mkdir(exist_ok=True)
        environment["PWD"] = str(folder)
        self.children[role, index] = self._zygote.spawn(
            arguments, environment=environment, log=self.folder / f"{role}-{index}.log"
        )

    def supervise(self) -> None:
        """Start each wanted process that is not running, as a runner or a kubelet does."""
        if self.etcd.pid is None:
            self.etcd.start()
        for key in sorted(self.desired):
            child = self.children.get(key)
            if child is not None and child.returncode is None:
                continue
            if child is not None and child.returncode in self._final and key[0] == "trainer":
                self._left.add(key)
                self.desired.discard(key)
                continue
            if (
                child is not None
                and child.returncode not in {0, names.EXIT_NO_ETCD, names.EXIT_DEPOSED}
                and child.returncode is not None
                and child.returncode > 0
            ):
                raise AssertionError(f"{key} ended with {child.returncode}:\n{self.log(*key)[-3000:]}")
            if child is not None:
                self.restarts[key[0]] += 1
            self._start(*key)

    def log(self, role: str, index: int) -> str:
        path = self.folder / f"{role}-{index}.log"
        return path.read_text() if path.exists() else ""

    def alive(self, role: str) -> list[Child]:
        return [c for (r, _), c in self.children.items() if r == role and c.returncode is None]

    def kill(self, role: str, index: int) -> None:
        child = self.children[role, index]
        child.send_signal(signal.SIGKILL)
        child.wait(10)

    def join(self, index: int) -> None:
        child = self.children.get(("trainer", index))
        if child is not None and child.returncode is not None:
            del self.children["trainer", index]  # start a new trainer instead of restarting that one
        self.desired.add(("trainer", index))

    def leave(self, index: int) -> None:
        self.desired.discard(("trainer", index))
        child = self.children.get(("trainer", index))
        if child is not None:
            child.send_signal(signal.SIGTERM)

    # --- The end of the job ---

    @property
    def work(self) -> Path:
        """Folder in which the script runs."""
        return self.folder / "work"

    @property
    def trainers_left(self) -> bool:
        return any(role == "trainer" for role, _ in self.desired)

    @property
    def refused(self) -> bool:
        """Whether a trainer's script was refused, after which a runner ends the job."""
        return any(
            role == "trainer" and child.returncode == names.EXIT_REFUSED for (role, _), child in self.children.items()
        )

    def run_to_the_end(self, *, seconds: float, until_refused: bool = False) -> None:
        """Supervise until all trainers have ended.

        Args:
            seconds: Time after which the test fails. Seconds.
            until_refused: Whether to return also when a trainer was refused.
        """
        end = time.monotonic() + seconds
        while self.trainers_left and not (until_refused and self.refused):
            self.supervise()
            if time.monotonic() > end:
                raise AssertionError(f"no end after {seconds} s\n{self.last_lines()}")
            time.sleep(0.02)  # polling interval of the supervisor, not a synchronisation

    def last_lines(self) -> str:
        return "\n".join(f"== {r}-{i}\n{self.log(r, i)[-1500:]}" for r, i in sorted(self.children))

    def found_outcome(self) -> Outcome | None:
        """Return how the job ended; None: it has not ended."""
        with Store.connect(self.etcd.endpoint, prefix=self.keys.prefix) as store:
            found = store.get(self.keys.outcome)
        return None if found is None else msgspec.json.decode(found.value, type=Outcome)

    def outcome(self) -> Outcome:
        found = self.found_outcome()
        assert found is not None, "etcd has no outcome"
        return found

    def model(self, name: str = "counted.safetensors") -> dict[str, Any]:
        return load_file(self.model_path(name))

    def model_path(self, name: str) -> Path:
        return self.work / name


def free_port() -> int:
    """Return a port on which no process listens."""
    with socket.create_server(("127.0.0.1", 0)) as stream:
        return int(stream.getsockname()[1])


class Chaos:
    """Injects random faults into a job, until their number is reached or the job has ended.

    Args:
        job: The job.
        seed: Random seed of the faults.
        kills: Number of SIGKILLs.
        most_trainers: Number up to which trainers join.
    """

    def __init__(self, job: RealJob, *, seed: int, kills: int, most_trainers: int = 4) -> None:
        self.job = job
        self.random = random.Random(seed)
        self.limit = kills
        self.most_trainers = most_trainers
        self.kills: Counter[str] = Counter()
        self.others: Counter[str] = Counter()
        self._resume: list[tuple[float, Child]] = []
        self._copies: list[tuple[float, Path]] = []

    def run(self, *, seconds: float) -> None:
        job, chance = self.job, self.random
        end = time.monotonic() + seconds
        following = time.monotonic() + chance.uniform(0.0, 0.5)
        while job.trainers_left:
            job.supervise()
            now = time.monotonic()
            for due, child in [pair for pair in self._resume if pair[0] <= now]:
                child.send_signal(signal.SIGCONT)
                self._resume.remove((due, child))
            if now >= following and sum(self.kills.values()) < self.limit:
                for _ in range(chance.choice((1, 1, 1, 2, 3))):
                    self.fault(now)
                following = now + chance.expovariate(1 / 0.35)
            if now > end:
                raise AssertionError(f"no end after {seconds} s; {self.kills} {self.others}\n{job.last_lines()}")
            time.sleep(0.01)  # polling interval of the supervisor, not a synchronisation
        for _, child in self._resume:
            child.send_signal(signal.SIGCONT)

    def fault(self, now: float) -> None:
        kind = self.random.choices(
            ("trainer", "pserver", "master", "etcd", "pause", "join", "leave"), (5, 4, 3, 2, 2, 2, 1)
        )[0]
        job = self.job
        if kind == "etcd":
            job.etcd.kill()
            self.kills[kind] += 1
        elif kind in {"trainer", "pserver", "master"}:
            living = job.alive(kind)
            if living:
                child = self.random.choice(living)
                child.kill()
                child.wait(10)
                self.kills[kind] += 1
        elif kind == "pause":
            living = [*job.alive("trainer"), *job.alive("pserver"), *job.alive("master")]
            if living:
                child = self.random.choice(living)
                child.send_signal(signal.SIGSTOP)
                self._resume.append((now + self.random.choice((0.2, 0.6, 1.6)), child))
                self.others["pause"] += 1
        elif kind == "join":
            free = [i for i in range(self.most_trainers) if ("trainer", i) not in job.desired]
            if free:
                job.join(free[0])
                self.others["join"] += 1
        else:
            there = [index for role, index in job.desired if role == "trainer"]
            if len(there) > 1:
                job.leave(max(there))
                self.others["leave"] += 1
