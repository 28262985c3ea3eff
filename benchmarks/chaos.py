"""``python -m benchmarks.chaos [--profile kills|network] [--faults 200]``: the counting model under hundreds of faults.

One job after another runs with real processes (etcd, master, two parameter servers, three trainers). At the end every entry
of each job's model must equal the number of epochs: the model itself shows samples that are lost or counted twice.

- kills: SIGKILLs of each role, 20 per job, with pauses longer than the lease, and joins and exits of trainers.
- network: a proxy between all processes (trainers and master, trainers and servers, servers and master, master and etcd)
  delays, throttles, resets, half-closes and drops data: in one or both directions, of existing connections (which stay
  half-open) or also of new ones. Processes are stopped for shorter and longer than the lease, which is 2 s.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from benchmarks.common import Row, report
from tests.badnetwork import LEASE_SECONDS, BadNetwork, bad_network, left_behind
from tests.realjob import Chaos, RealJob
from tests.zygote import JOB, Zygote

KILLS_PER_JOB = 20
EPOCHS = 16
FAULTS_PER_JOB = 50
NETWORK_EPOCHS = 14
LONGEST_PAUSE = 30.0
"""Longest allowed time without a committed batch, in seconds: several simultaneous faults, each of which costs a lease or
more, but no hang."""


def one_job(zygote: Zygote, folder: Path, *, seed: int, kills: int) -> tuple[Counter[str], Counter[str], int, int]:
    """Run a job with kills; return the kills by role, other faults, samples lost, and samples counted twice."""
    variables = {"COUNT_PAUSE": "0.01", "COUNT_EVALUATE": str(seed % 2)}
    with RealJob(zygote, folder, epochs=EPOCHS, trainers=3, variables=variables, tcp=seed % 3 == 2) as job:
        chaos = Chaos(job, seed=seed, kills=kills)
        chaos.run(seconds=600)
        lost = twice = 0
        for counts in job.model().values():
            lost += int((EPOCHS - counts).clamp(min=0).sum())
            twice += int((counts - EPOCHS).clamp(min=0).sum())
    return chaos.kills, chaos.others, lost, twice


def measure(*, kills: int, seed: int) -> tuple[list[Row], Any]:
    """Run jobs until the number of kills is reached."""
    killed: Counter[str] = Counter()
    others: Counter[str] = Counter()
    jobs: list[dict[str, Any]] = []
    begun = time.monotonic()
    zygote = Zygote(JOB)
    try:
        while sum(killed.values()) < kills:
            left = min(KILLS_PER_JOB, kills - sum(killed.values()))
            with tempfile.TemporaryDirectory(prefix="shoal-chaos-") as folder:
                found = one_job(zygote, Path(folder) / "j", seed=seed + len(jobs), kills=left)
            killed, others = killed + found[0], others + found[1]
            jobs.append({"kills": dict(found[0]), "others": dict(found[1]), "lost": found[2], "twice": found[3]})
            print(
                f"job {len(jobs)}: {sum(killed.values())} kills so far, {found[2]} lost, {found[3]} twice", flush=True
            )
    finally:
        zygote.close()
    rows = [_none(name, sum(job[name] for job in jobs)) for name in ("lost", "twice")]
    rows += [_count(f"SIGKILLs of {role}", count) for role, count in sorted(killed.items())]
    rows += [_count(f"{kind}s of trainers or processes", count) for kind, count in sorted(others.items())]
    return [*rows, _count("jobs", len(jobs)), _count("seconds", round(time.monotonic() - begun))], jobs


def measure_network(*, faults: int, seed: int) -> tuple[list[Row], Any]:
    """Run jobs until the number of faults is reached."""
    kinds: Counter[str] = Counter()
    jobs: list[dict[str, Any]] = []
    begun = time.monotonic()
    zygote = Zygote(JOB)
    try:
        while kinds.total() < faults:
            left = min(FAULTS_PER_JOB, faults - kinds.total())
            folder = tempfile.TemporaryDirectory(prefix="shoal-chaos-")
            with folder as name, _network(zygote, Path(name), seed=seed + len(jobs), faults=left) as network:
                network.run(seconds=600)
                lost, twice = network.miscounted()
                found = {"faults": dict(network.faults), "lost": lost, "twice": twice, "pause": network.longest_pause()}
            kinds += network.faults
            jobs.append(found | {"left": len(left_behind(zygote))})
            print(f"job {len(jobs)}: {kinds.total()} faults so far, {jobs[-1]}", flush=True)
    finally:
        zygote.close()
    pause = max(job["pause"] for job in jobs)
    rows = [_none(name, sum(job[name] for job in jobs)) for name in ("lost", "twice")]
    left = sum(job["left"] for job in jobs)
    rows.append(Row(metric="processes left behind", value=left, unit="", goal="0", met=left == 0))
    rows.append(
        Row(
            metric="longest time without a committed batch, against the lease",
            value=pause,
            unit="s",
            reference=LEASE_SECONDS,
            ratio=pause / LEASE_SECONDS,
            goal=f"<= {LONGEST_PAUSE:g}",
            met=pause <= LONGEST_PAUSE,
            count=len(jobs),
        )
    )
    rows += [_count(f"faults: {kind}", count) for kind, count in sorted(kinds.items())]
    rows.append(_count("faults", kinds.total()))
    return [*rows, _count("jobs", len(jobs)), _count("seconds", round(time.monotonic() - begun))], jobs


def _network(zygote: Zygote, folder: Path, *, seed: int, faults: int) -> AbstractContextManager[BadNetwork]:
    return bad_network(zygote, folder, seed=seed, faults=faults, epochs=NETWORK_EPOCHS)


def _none(name: str, found: int) -> Row:
    return Row(metric=f"samples {name}", value=found, unit="samples", goal="0", met=found == 0)


def _count(metric: str, found: int) -> Row:
    return Row(metric=metric, value=found, unit="")


def main() -> None:
    """Run a profile."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos")
    parser.add_argument("--profile", choices=["kills", "network"], default="kills")
    parser.add_argument("--faults", "--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the rows there")
    own = parser.parse_args()
    # SIGTERM raises SystemExit, so that the benchmark stops its processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if own.profile == "kills":
        report("chaos", *measure(kills=own.faults, seed=own.seed), file=own.json)
    else:
        report("chaos_network", *measure_network(faults=own.faults, seed=own.seed), file=own.json)


if __name__ == "__main__":
    main()
