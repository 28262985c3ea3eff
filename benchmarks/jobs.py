"""Jobs with real processes for benchmarks: a `shoal run` whose processes can be listed, killed and observed."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import msgspec
import psutil

from benchmarks.scripts import sleeper
from shoal.local.state.state_folder import StateFolder
from shoal.store import Event, JobKeys, Listing, MasterRecord, Store

__all__ = ["CLI", "Commits", "RunJob", "longest_gap", "until"]

CLI = (sys.executable, "-c", "from shoal.cli.main import main; main()")
NAME = "bench"


def until(found: Callable[[], bool], what: str, *, seconds: float = 60.0) -> None:
    """Wait for a condition, which is checked every 10 ms.

    Raises:
        TimeoutError: The condition was not true before the timeout.
    """
    end = time.monotonic() + seconds
    while not found():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not happen within {seconds:g} s")
        time.sleep(0.01)


class RunJob:
    """A `shoal run` of the script ``sleeper``.

    Args:
        trainers: Initial and fewest number of trainers.
        most: Most trainers. Default: 8.
        servers: Number of parameter servers. Default: 1.
        pause: Sleep per batch. Seconds. Default: 0.02.
        task_batches: Batches of a task. Default: 32.
    """

    def __init__(
        self, *, trainers: int, most: int = 8, servers: int = 1, pause: float = 0.02, task_batches: int = 32
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")
        self.folder = Path(self._folder.name)
        self.state = StateFolder(self.folder / "state", NAME)
        self._steps = self.folder / "steps"
        self._steps.mkdir()
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "BENCH_STEPS": str(self._steps),
            "BENCH_PAUSE": str(pause),
            "BENCH_TASK": str(task_batches),
        }
        numbers = ("--trainers", f"{trainers}:{most}", "--servers", str(servers), "--epochs", "100000", "--seed", "1")
        places = ("--name", NAME, "--state", str(self.folder / "state"))
        self._log = (self.folder / "log").open("wb")
        self._runner = subprocess.Popen(
            [*CLI, "run", sleeper.__file__, *numbers, *places],
            env=environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            self._runner.wait(30)
        self._runner.kill()
        self._runner.wait()
        self._log.close()
        self._folder.cleanup()

    @property
    def pid(self) -> int:
        """Process id of `shoal run`."""
        return self._runner.pid

    def log(self) -> str:
        """Return the output of `shoal run`."""
        return (self.folder / "log").read_text()

    def scale(self, trainers: int) -> None:
        """Run `shoal scale`."""
        places = ("--state", str(self.folder / "state"))
        subprocess.run(
            [*CLI, "scale", NAME, "--trainers", str(trainers), *places], check=True, stdout=subprocess.DEVNULL
        )

    def pids(self, role: str) -> dict[int, int]:
        """Return the process ids of a role, by index."""
        found = {}
        for child in psutil.Process(self._runner.pid).children():
            with suppress(psutil.Error):
                variables = child.environ()
                if variables.get("SHOAL_ROLE") == role and child.status() != psutil.STATUS_ZOMBIE:
                    found[int(variables["SHOAL_INDEX"])] = child.pid
        return found

    def stamps(self) -> dict[tuple[int, int], list[float]]:
        """Return all time stamps of all trainers, by (index, pid)."""
        found = {}
        for path in self._steps.iterdir():
            _, index, pid = path.name.split("-")
            content = path.read_bytes()
            found[int(index), int(pid)] = list(array("d", content[: len(content) // 8 * 8]))
        return found

    def steps(self) -> dict[tuple[int, int], list[float]]:
        """Return the times of the steps of all trainers, by (index, pid)."""
        return {key: stamps[len(sleeper.STAMPS) :] for key, stamps in self.stamps().items()}

    def lives(self) -> set[tuple[int, int]]:
        """Return (index, pid) of all trainers that have run."""
        names = [path.name.split("-") for path in self._steps.iterdir()]
        return {(int(index), int(pid)) for _, index, pid in names}

    def stepped(self, index: int, pid: int) -> bool:
        """Return whether a trainer has made a step; unlike `steps` it reads no file."""
        path = self._steps / f"steps-{index}-{pid}"
        return path.exists() and path.stat().st_size > 8 * len(sleeper.STAMPS)

    def stepping(self, trainers: int, *, steps: int = 100) -> None:
        """Wait until a number of running trainers have each made a number of steps."""

        def found() -> bool:
            if self._runner.poll() is not None:
                raise RuntimeError(f"the run ended:\n{self.log()}")
            now = time.monotonic()
            living = [times for times in self.steps().values() if len(times) >= steps and now - times[-1] < 0.5]
            return len(living) >= trainers

        until(found, f"{trainers} trainers at work\n{self.log()}", seconds=120)

    def commits(self) -> Commits:
        """Return a watch of the tasks that the master commits."""
        endpoint = (self.state.etcd / "etcd.endpoint").read_text().strip()
        return Commits(endpoint, JobKeys("default", NAME, self.state.uid))


class Commits:
    """Times at which commits of tasks arrived in etcd, with the generation of the master.

    Args:
        endpoint: Endpoint of etcd.
        keys: Keys of the job.
    """

    def __init__(self, endpoint: str, keys: JobKeys) -> None:
        self._keys = keys
        self._store = Store.connect(endpoint, prefix=keys.prefix)
        self._lock = threading.Lock()
        self._found: list[tuple[float, int]] = []
        self.generation = 0
        self._store.watch(keys.prefix, from_revision=None, on_events=self._events, on_reset=self._reset)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    def _reset(self, listing: Listing, _: str) -> None:
        for pair in listing.pairs:
            if pair.key == self._keys.master:
                self.generation = msgspec.json.decode(pair.value, type=MasterRecord).generation

    def _events(self, events: list[Event]) -> None:
        now = time.monotonic()
        # The keys of one revision are sorted: the election record precedes the keys of tasks.
        for event in events:
            if event.key == self._keys.master and event.value is not None:
                self.generation = msgspec.json.decode(event.value, type=MasterRecord).generation
            elif self._keys.relative(event.key).startswith("tasks/"):
                with self._lock:
                    self._found.append((now, self.generation))

    def first_of(self, generation: int) -> float | None:
        """Return the time of the first commit by the master of this or a later generation; None if there is none."""
        with self._lock:
            return next((when for when, by in self._found if by >= generation), None)


def longest_gap(steps: dict[tuple[int, int], list[float]], start: float, end: float) -> float:
    """Return the longest time between two steps of a trainer that overlaps the period from ``start`` to ``end``."""
    longest = 0.0
    for times in steps.values():
        for earlier, later in itertools.pairwise(times):
            if later >= start and earlier < end:
                longest = max(longest, later - earlier)
    return longest
