"""A job of real processes on a network that delays, throttles, cuts and half-opens connections, with paused processes."""

from __future__ import annotations

import itertools
import random
import signal
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from tests.proxy import WAYS, Proxy, Route
from tests.realjob import RealJob
from tests.zygote import Child, Zygote

__all__ = ["LEASE_SECONDS", "BadNetwork", "bad_network", "left_behind"]

LEASE_SECONDS = 2.0
KINDS = {"delay": 4, "throttle": 2, "cut": 4, "half-close": 3, "half-open": 4, "one way": 3, "outage": 2, "pause": 3}
"""Faults and their weights."""


class BadNetwork:
    """Injects random faults into a job's network and processes, until their number is reached or the job has ended.

    Args:
        job: The job, behind the proxy.
        proxy: The proxy between the job's processes.
        seed: Random seed of the faults.
        faults: Number of faults.
        stamps: Folder in which the trainers record when they received each batch.
        every: Mean time between two faults. Seconds.
    """

    def __init__(self, job: RealJob, proxy: Proxy, *, seed: int, faults: int, stamps: Path, every: float = 0.5) -> None:
        self.job, self.proxy = job, proxy
        self.faults: Counter[str] = Counter()
        self._chance = random.Random(seed)
        self._limit = faults
        self._stamps = stamps
        self._every = every
        self._undo: list[tuple[float, Child | Route]] = []
        """When, and the route that heals or the process that goes on."""

    def run(self, *, seconds: float) -> None:
        """Inject faults until all trainers have ended."""
        job, chance = self.job, self._chance
        end = time.monotonic() + seconds
        while not self.batches() and time.monotonic() < end:
            job.supervise()
            time.sleep(0.01)  # polling interval of the supervisor, not a synchronisation
        following = time.monotonic()
        while job.trainers_left:
            job.supervise()
            now = time.monotonic()
            self._heal(now)
            if now >= following and self.faults.total() < self._limit:
                self._fault(now)
                following = now + chance.expovariate(1 / self._every)
            if now > end:
                raise AssertionError(f"no end after {seconds} s; {self.faults}\n{job.last_lines()}")
            time.sleep(0.01)
        self._heal(float("inf"))

    def _heal(self, now: float) -> None:
        for undo in [undo for undo in self._undo if undo[0] <= now]:
            self._undo.remove(undo)
            if isinstance(undo[1], Child):
                undo[1].send_signal(signal.SIGCONT)
            elif all(other[1] is not undo[1] for other in self._undo):
                undo[1].heal()

    def _fault(self, now: float) -> None:
        chance = self._chance
        kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
        lasts = chance.choice((0.1, 0.3, 1.0, 0.3 * LEASE_SECONDS, 1.5 * LEASE_SECONDS))
        if kind == "pause":
            living = [*self.job.alive("trainer"), *self.job.alive("pserver"), *self.job.alive("master")]
            stopped = {id(undo[1]) for undo in self._undo}
            free = [child for child in living if id(child) not in stopped]
            if not free:
                return
            child = chance.choice(free)
            child.send_signal(signal.SIGSTOP)
            lasts = chance.choice((0.2, 0.5, 2.5)) * LEASE_SECONDS
            self._undo.append((now + lasts, child))
            self.faults["pause of a process" + (" beyond the lease" if lasts > LEASE_SECONDS else "")] += 1
            return
        route = self.proxy.any_route(chance)
        if not route.connections:
            return
        match kind:
            case "delay":
                route.delay(chance.choice((0.005, 0.05, 0.3)))
            case "throttle":
                route.throttle(chance.choice((10e3, 100e3)))
            case "cut":
                route.cut()
            case "half-close":
                route.half_close(chance.choice(WAYS))
            case "half-open":
                route.swallow(newcomers=False)
            case "one way":
                route.swallow((chance.choice(WAYS),), newcomers=False)
            case "outage":
                route.swallow()
        self._undo.append((now + lasts, route))
        self.faults[kind] += 1

    # --- Results ---

    def batches(self) -> list[float]:
        """Return the times at which any trainer received a batch, ascending."""
        found: list[float] = []
        for path in self._stamps.iterdir():
            content = path.read_bytes()
            found += array("d", content[: len(content) // 8 * 8])
        return sorted(found)

    def longest_pause(self) -> float:
        """Return the longest time without a committed batch of any trainer, in seconds."""
        return max((later - earlier for earlier, later in itertools.pairwise(self.batches())), default=0.0)

    def miscounted(self) -> tuple[int, int]:
        """Return the samples lost and the samples counted twice, both from the model itself."""
        lost = twice = 0
        for counts in self.job.model().values():
            epochs = torch.full_like(counts, self.job.epochs or 0)
            lost += int((epochs - counts).clamp(min=0).sum())
            twice += int((counts - epochs).clamp(min=0).sum())
        return lost, twice


@contextmanager
def bad_network(
    zygote: Zygote, folder: Path, *, seed: int, faults: int, epochs: int, trainers: int = 3, every: float = 0.5
) -> Iterator[BadNetwork]:
    """Run a counting job of two parameter servers behind a proxy that injects faults."""
    stamps = folder / "stamps"
    stamps.mkdir(parents=True)
    variables = {"COUNT_PAUSE": "0.01", "COUNT_EVALUATE": str(seed % 2), "COUNT_STAMPS": str(stamps)}
    with (
        Proxy() as proxy,
        RealJob(
            zygote,
            folder / "j",
            epochs=epochs,
            trainers=trainers,
            variables=variables,
            tcp=True,
            lease_seconds=LEASE_SECONDS,
            proxy=proxy,
        ) as job,
    ):
        yield BadNetwork(job, proxy, seed=seed, faults=faults, stamps=stamps, every=every)


def left_behind(zygote: Zygote) -> list[str]:
    """List the processes that remain of ended jobs."""
    found = []
    for process in psutil.Process(zygote.pid).children(recursive=True):
        try:
            found.append(f"{process.pid} {process.status()}")
        except psutil.NoSuchProcess:
            continue
    return found
