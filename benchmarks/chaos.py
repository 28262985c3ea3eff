"""``python -m benchmarks.chaos --kills 200``: the counting model under hundreds of SIGKILLs, and an account of them.

One job after another of real processes (etcd, master, parameter servers, trainers), each killed at random some dozen
times, among pauses longer than the lease, joiners and leavers. In the end every entry of each job's model must equal its
number of epochs: samples lost and samples counted twice are read off the model itself.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.common import Row, main
from tests.realjob import Chaos, RealJob
from tests.zygote import JOB, Zygote

KILLS_PER_JOB = 20
EPOCHS = 16


def one_job(zygote: Zygote, folder: Path, *, seed: int, kills: int) -> tuple[Counter[str], Counter[str], int, int]:
    """Run a job through its kills: kills by role, other faults, samples lost, samples twice."""
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
    """Jobs until the kills are reached."""
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


def _none(name: str, found: int) -> Row:
    return Row(metric=f"samples {name}", value=found, unit="samples", goal="0", met=found == 0)


def _count(metric: str, found: int) -> Row:
    return Row(metric=metric, value=found, unit="")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    own, sys.argv[1:] = parser.parse_known_args()
    main("chaos", lambda: measure(kills=own.kills, seed=own.seed))
