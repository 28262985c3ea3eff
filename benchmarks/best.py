"""Compares plans with the optimal allocation.

Random clusters of one to three nodes, one to three jobs and one or two shapes of trainers, in which nothing runs yet. Each
plan is compared with the leximin optimum over all allocations, which an exhaustive search finds (the same search as in the
planner's tests): the smallest share is as large as possible, then the second smallest, and so on.

| result | meaning |
|---|---|
| the best | all shares, in order of size, are those of the optimum |
| within a trainer | the first share that differs is lower by one trainer's step at most |
| further below | that share is lower by more: pods are packed greedily, and some clusters need another order |
| a minimum not packed | a job has no trainers although there is an allocation in which all have their minimum |

Clusters in which no allocation gives all jobs their minimum are counted separately and not compared: there the oldest jobs
come first.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from typing import Any

from benchmarks.common import Row, main
from shoal.autoscaler.planner.model import Snapshot
from tests.autoscaler.test_plan import APART, BELOW, BEST, MISSED, WITHIN, beside_the_best
from tests.autoscaler.worlds import cluster, job

CLUSTERS = int(os.environ.get("BENCH_CLUSTERS", "40000"))


def one(chance: random.Random) -> Snapshot:
    """Return a small random cluster, with jobs that demand more or less than its capacity."""
    resources, shapes = chance.randint(1, 4), chance.randint(1, 2)
    rooms = [[chance.randint(1, 20) for _ in range(resources)] for _ in range(chance.randint(1, 3))]
    asked: list[list[int]] = []
    while len(asked) < shapes:
        request = [chance.randint(0, 6) for _ in range(resources)]
        asked += [request] if any(request) else []
    jobs = []
    for number in range(chance.randint(1, 3)):
        low = chance.randint(1, 4)
        jobs.append(
            job(
                f"job-{number}", low, low + chance.randint(0, 3), shape=chance.randrange(shapes),
                since=float(chance.randint(0, 3)), weight=chance.choice([1.0, 1.0, 2.0]),
            )
        )  # fmt: skip
    snapshot: Snapshot = cluster(rooms, asked, jobs)
    return snapshot


def measure() -> tuple[list[Row], Any]:
    """Plan all clusters; return the share of each result among the comparable ones."""
    found: Counter[str] = Counter()
    below: dict[str, list[int]] = {BELOW: [], MISSED: []}
    for number in range(CLUSTERS):
        how = beside_the_best(one(random.Random(number)))
        found[how] += 1
        if how in below:
            below[how].append(number)
        if not (number + 1) % 2000:
            print(f"{number + 1:,} of {CLUSTERS:,} clusters", flush=True)
    total = CLUSTERS - found[APART]
    rows = [
        Row(metric=f"plans: {how}", value=100 * found[how] / total, unit="%", count=total) for how in (BEST, WITHIN)
    ]
    for how in below:
        row = Row(metric=f"plans: {how}", value=found[how], unit="", goal="0", met=not found[how], count=total)
        rows.append(row)
    return rows, {"found": dict(found), "which": below}


if __name__ == "__main__":
    main("best", measure)
