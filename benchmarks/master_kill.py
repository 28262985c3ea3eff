"""Measures the time from a kill of the master to the next committed task, and the gaps in the trainers' steps.

The runner restarts the master. A commit counts when it is seen in etcd under the new master's generation. Four trainers,
20 ms per batch, 32 batches in a task.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from benchmarks.common import Row, at_most, main, plain
from benchmarks.jobs import RunJob, longest_gap, until

KILLS = 9


def measure() -> tuple[list[Row], Any]:
    """Measure all kills."""
    seconds, gaps, quiet = [], [], []
    with RunJob(trainers=4, most=4) as job:
        job.stepping(4)
        with job.commits() as commits:
            for _ in range(KILLS):
                until(lambda: commits.generation > 0, "a master")
                time.sleep(2.0)
                following = commits.generation + 1
                when = time.monotonic()
                os.kill(job.pids("master")[0], signal.SIGKILL)
                until(lambda f=following: commits.first_of(f) is not None, "a commit")  # type: ignore[misc]
                committed = commits.first_of(following)
                assert committed is not None
                seconds.append(committed - when)
                time.sleep(1.0)
                steps = job.steps()
                gaps.append(longest_gap(steps, when, committed + 1) * 1000)
                quiet.append(longest_gap(steps, when - 1.5, when) * 1000)
    rows = [
        at_most("SIGKILL of the master to the next committed task, p50", seconds, "s", goal=1.0),
        Row(metric="the same, the worst", value=max(seconds), unit="s", count=len(seconds)),
        at_most("longest gap between steps of any trainer, p50", gaps, "ms", goal=60),
        Row(metric="the same, the worst", value=max(gaps), unit="ms", count=len(gaps)),
        plain("longest gap before the kill, p50", quiet, "ms"),
    ]
    return rows, {"seconds": seconds, "gaps_ms": gaps, "gaps_before_ms": quiet}


if __name__ == "__main__":
    main("master_kill", measure)
