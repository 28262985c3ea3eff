"""Measures the effect of a trainer's kill on the other trainers.

Four trainers whose compute is a sleep of 20 ms per batch; one of them is killed (SIGKILL), twenty times. The steps of each
survivor in the second after the kill are compared with those in the second before. The runner restarts the killed trainer,
which imports torch on the same cores in that time; this is part of the figure.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from benchmarks.common import Row, at_least, at_most, main, plain
from benchmarks.jobs import RunJob, longest_gap
from benchmarks.scripts.sleeper import BATCH

KILLS = 20


def _kill(job: RunJob, index: int) -> tuple[float, set[tuple[int, int]]]:
    """Kill a trainer; return the time, and (index, pid) of the survivors."""
    job.stepping(4)
    time.sleep(1.1)
    pids = job.pids("trainer")
    survivors = {(other, pid) for other, pid in pids.items() if other != index}
    when = time.monotonic()
    os.kill(pids[index], signal.SIGKILL)
    time.sleep(1.3)
    return when, survivors


def measure() -> tuple[list[Row], Any]:
    """Measure all kills, each with the second before it as the reference."""
    pairs, gaps, quiet = [], [], []
    with RunJob(trainers=4, most=4) as job:
        for number in range(KILLS):
            when, survivors = _kill(job, number % 4)
            steps = {key: times for key, times in job.steps().items() if key in survivors}
            before = sum(when - 1 <= t < when for times in steps.values() for t in times)
            after = sum(when <= t < when + 1 for times in steps.values() for t in times)
            pairs.append((float(after * BATCH), float(before * BATCH)))
            gaps.append(longest_gap(steps, when, when + 1) * 1000)
            quiet.append(longest_gap(steps, when - 1, when) * 1000)
    rows = [
        at_least("samples/s of the survivors, second after / before", pairs, "samples/s", goal=0.95),
        at_most("longest gap between steps of a survivor, p50", gaps, "ms", goal=60),
        Row(metric="the same, the worst of all", value=max(gaps), unit="ms", count=len(gaps)),
        plain("longest gap in the second before the kill, p50", quiet, "ms"),
    ]
    return rows, {"pairs": pairs, "gaps_ms": gaps, "gaps_before_ms": quiet}


if __name__ == "__main__":
    main("trainer_kill", measure)
