"""``python -m benchmarks.fuzz [--port master pserver] [--seconds 600]``: hostile clients of a job's ports while it trains.

A counting job of two trainers and two parameter servers. Four concurrent clients attack one port after the other: one
without the token (noise, incomplete handshakes, silence), and a false trainer, parameter server and observer that have the
job's token. The growth of the processes' memory, descriptors and threads is reported, and every sample is counted.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import Row, report
from benchmarks.jobs import until
from tests.fuzz import Footprint, Fuzzer, fuzzed_job
from tests.realjob import RealJob
from tests.zygote import JOB, Zygote

PORTS = ("master", "pserver")
SETTLE_SECONDS = 45.0
"""Seconds after the last call within which the processes must release the clients' resources."""


def _trains(job: RealJob) -> bool:
    job.supervise()
    return "epoch 3 of" in job.log("master", 0)


def one_port(zygote: Zygote, role: str, *, seconds: float, seed: int) -> dict[str, Any]:
    """Attack one port, and return the calls, the growth of the processes, and the job's account."""
    with tempfile.TemporaryDirectory(prefix="shoal-fuzz-") as folder, fuzzed_job(zygote, Path(folder)) as (job, finish):
        until(lambda: _trains(job), "the third epoch", seconds=300)
        lives = {key: child.pid for key, child in job.children.items()}
        watched = {f"{key[0]}-{key[1]}": pid for key, pid in lives.items() if key[0] != "trainer"}
        before = {name: Footprint.of(pid) for name, pid in watched.items()}
        fuzzer = Fuzzer(job, role, seed=seed, impersonates=True)
        fuzzer.run(seconds, meanwhile=job.supervise)
        ended = [key for key, child in job.children.items() if child.pid != lives[key]]
        end = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < end and not all(
            Footprint.of(pid).within(before[name], megabytes=1e9) for name, pid in watched.items()
        ):
            job.supervise()
            time.sleep(0.1)  # interval of the checks
        grown = {
            name: [
                after.descriptors - before[name].descriptors,
                after.threads - before[name].threads,
                after.megabytes - before[name].megabytes,
            ]
            for name, pid in watched.items()
            for after in (Footprint.of(pid),)
        }
        return {"calls": dict(fuzzer.calls), "sent": fuzzer.sent, "ended": ended, "grown": grown, "account": finish()}


def _rows(role: str, found: dict[str, Any]) -> list[Row]:
    account, grown = found["account"], found["grown"].values()
    counted = {account["counted"]}
    wrong = account["lost"] + account["twice"] + len(set(account["sums"].values()) - counted)
    return [
        Row(metric=f"{role}: calls", value=sum(found["calls"].values()), unit=""),
        Row(metric=f"{role}: messages", value=found["sent"], unit=""),
        _at_most(f"{role}: processes ended", len(found["ended"]), "", goal=0),
        _at_most(f"{role}: samples lost or counted twice", wrong, "samples", goal=0),
        _at_most(f"{role}: descriptors more than before, of the worst process", max(g[0] for g in grown), "", goal=4),
        _at_most(f"{role}: threads more than before, of the worst process", max(g[1] for g in grown), "", goal=4),
        _at_most(f"{role}: memory more than before, of the worst process", max(g[2] for g in grown), "MB", goal=60),
    ]


def _at_most(metric: str, value: float, unit: str, *, goal: float) -> Row:
    return Row(metric=metric, value=value, unit=unit, goal=f"<= {goal:g}", met=value <= goal)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz")
    parser.add_argument("--port", nargs="+", choices=PORTS, default=list(PORTS))
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the rows there")
    own = parser.parse_args()
    # SIGTERM raises SystemExit, so that the benchmark stops its processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    zygote = Zygote(JOB)
    try:
        found = {role: one_port(zygote, role, seconds=own.seconds, seed=own.seed) for role in own.port}
    finally:
        zygote.close()
    report("fuzz", [row for role in found for row in _rows(role, found[role])], found, file=own.json)


if __name__ == "__main__":
    main()
