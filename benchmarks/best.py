"""How near do plans come to the best that there is?

Random clusters of one to three nodes, one to three jobs and one or two shapes of trainers, in which nothing runs yet. Each plan
is compared with the leximin optimum over all allocations, found by trying all of them (the same search as in the planner's
tests): the smallest share as large as can be, then the second smallest, and so on.

| word | a plan in which |
|---|---|
| the best | all shares, in order of size, are those of the optimum |
| within a trainer | the first share that differs is less by one trainer's step at most |
| further below | it is less by more: pods are packed greedily, and some clusters need another order |

Clusters in which the plan has no room for all minimums are counted apart; minimums go by age, so there is nothing to compare.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from typing import Any, Final

from benchmarks.common import Row, main
from shoal.autoscaler.model import Snapshot
from tests.autoscaler.test_plan import best, counts
from tests.autoscaler.worlds import cluster, job

CLUSTERS = int(os.environ.get("BENCH_CLUSTERS", "40000"))
CLOSE: Final = 1e-9
BEST, WITHIN, BELOW, APART = "the best", "within a trainer", "further below", "no room for all minimums"


def one(chance: random.Random) -> Snapshot:
    """A small cluster, and jobs that want more or less than there is."""
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


def compared(snapshot: Snapshot) -> str:
    """How a plan stands against the best."""
    made = counts(snapshot)
    if not all(made.values()):
        return APART
    optimum, steps = best(snapshot)
    shares = sorted(count * steps[uid] for uid, count in made.items())
    for have, could in zip(shares, optimum, strict=True):
        if abs(have - could) > CLOSE:
            return WITHIN if have >= could - max(steps.values()) - CLOSE else BELOW
    return BEST


def measure() -> tuple[list[Row], Any]:
    """All clusters; of those that can be compared the share of each outcome."""
    found: Counter[str] = Counter()
    below = []
    for number in range(CLUSTERS):
        how = compared(one(random.Random(number)))
        found[how] += 1
        below += [number] if how == BELOW else []
        if not (number + 1) % 2000:
            print(f"{number + 1:,} of {CLUSTERS:,} clusters", flush=True)
    total = CLUSTERS - found[APART]
    rows = [
        Row(metric=f"plans: {how}", value=100 * found[how] / total, unit="%", count=total) for how in (BEST, WITHIN)
    ]
    rows.append(
        Row(metric="plans: further below", value=found[BELOW], unit="", goal="0", met=not found[BELOW], count=total)
    )
    return rows, {"found": dict(found), "further below": below}


if __name__ == "__main__":
    main("best", measure)
