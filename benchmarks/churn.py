"""``python -m benchmarks.churn [--changes 200]``: trainers join and leave a `shoal run`, and no resources leak.

A job of one to three trainers and two parameter servers. Trainers join and leave by `shoal scale`, and are killed. The
resources of all processes that Shoal starts (children, threads, descriptors, shared memory, files of the state folder) must
be the same at the end as after the first rounds, at the same number of trainers.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import Row, report
from benchmarks.jobs import RunJob, until

__all__ = ["Churn", "churn"]

FEW, MANY = 1, 3
SHARED = Path("/dev/shm")
WARM_CHANGES = 8
SLACK = {"threads": 3, "descriptors": 3, "children": 0, "mappings": 0, "shared": 0, "files": 6}
"""Allowed increase of each resource, for operations in progress. Files are those of snapshots and of etcd's log."""


class Churn:
    """Changes the number of trainers of a job, and counts its resources.

    Args:
        job: The job.
        seed: Seed for the choice of the killed trainer. Default: 0.
    """

    def __init__(self, job: RunJob, *, seed: int = 0) -> None:
        self.job = job
        self.changes = 0
        self._chance = random.Random(seed)

    def round(self) -> None:
        """Let two trainers join, kill one and wait for its restart, and let two leave."""
        self._scale(MANY)
        pids = self.job.pids("trainer")
        index = self._chance.choice(sorted(pids))
        os.kill(pids[index], signal.SIGKILL)
        until(lambda: self.job.pids("trainer").get(index, pids[index]) != pids[index], "a new life", seconds=240)
        self._trains(MANY)
        self.changes += 2
        self._scale(FEW)

    def _scale(self, trainers: int) -> None:
        before = len(self.job.pids("trainer"))
        self.job.scale(trainers)
        self._trains(trainers)
        self.changes += abs(trainers - before)

    def _trains(self, trainers: int) -> None:
        def found() -> bool:
            pids = self.job.pids("trainer")
            if len(pids) != trainers:
                return False
            return all(self.job.stepped(index, pid) for index, pid in pids.items())

        until(found, f"{trainers} trainers at work\n{self.job.log()[-2000:]}", seconds=240)

    def counts(self) -> dict[str, int]:
        """Return the present resources of the runner, the master, the parameter servers and etcd."""
        runner = psutil.Process(self.job.pid)
        trainers = set(self.job.pids("trainer").values())
        children = runner.children()
        found = {
            "children": len(children) - len(trainers),
            "threads": 0,
            "descriptors": 0,
            "mappings": 0,
            "shared": self._left_shared(trainers),
            "files": sum(len(files) for _, _, files in os.walk(self.job.folder / "state")),
        }
        for process in (runner, *children):
            with suppress(psutil.NoSuchProcess):
                if process.pid not in trainers:
                    found["threads"] += process.num_threads()
                    found["descriptors"] += process.num_fds()
                    found["mappings"] += Path(f"/proc/{process.pid}/maps").read_text().count("/memfd:shoal")
        return found

    def _left_shared(self, living: set[int]) -> int:
        """Count torch's shared memory files that belong to trainers which have exited."""
        gone = {pid for _, pid in self.job.lives()} - living
        names = [path.name.split("_") for path in SHARED.iterdir()]
        return sum(len(parts) > 1 and parts[0] == "torch" and parts[1] in map(str, gone) for parts in names)

    def at_rest(self) -> dict[str, int]:
        """Return the counts after they have been constant for one second."""
        found = self.counts()
        while True:
            time.sleep(1.0)  # equal counts one second apart are taken as constant
            found, before = self.counts(), found
            if found == before:
                return found

    def settled(self, before: dict[str, int], *, seconds: float) -> dict[str, int]:
        """Return the increase since ``before``, as soon as it is within SLACK, or after ``seconds``."""
        end = time.monotonic() + seconds
        while True:
            more = {kind: count - before[kind] for kind, count in self.counts().items()}
            if all(more[kind] <= SLACK[kind] for kind in more) or time.monotonic() > end:
                return more
            time.sleep(0.2)  # interval of the checks


def churn(*, changes: int, seed: int, warm: int = WARM_CHANGES) -> tuple[list[Row], Any]:
    """Run the joins and exits; return the increase of each resource."""
    begun = time.monotonic()
    with RunJob(trainers=FEW, most=MANY, servers=2, pause=0.005) as job:
        job.stepping(FEW, steps=5)
        made = Churn(job, seed=seed)
        while made.changes < warm:
            made.round()
        before = made.at_rest()
        while made.changes < changes:
            made.round()
            print(f"{made.changes} changes: {made.counts()}", flush=True)
        more = made.settled(before, seconds=60)
    rows = [
        Row(
            metric=f"{kind} more than after {warm} joins and leaves",
            value=count,
            unit="",
            reference=before[kind],
            ratio=(before[kind] + count) / max(1, before[kind]),
            goal=f"<= {SLACK[kind]} more",
            met=count <= SLACK[kind],
        )
        for kind, count in more.items()
    ]
    seconds = round(time.monotonic() - begun)
    return [*rows, Row(metric="joins and leaves", value=made.changes, unit=""), _seconds(seconds)], before


def _seconds(seconds: int) -> Row:
    return Row(metric="seconds", value=seconds, unit="")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.churn")
    parser.add_argument("--changes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the rows there")
    own = parser.parse_args()
    # SIGTERM raises SystemExit, so that the benchmark stops its processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    report("churn", *churn(changes=own.changes, seed=own.seed), file=own.json)


if __name__ == "__main__":
    main()
