"""Measures the time from a kill of a parameter server to the next step that uses it, and the batches computed again.

Two servers, each of which is used by every step; two trainers, 20 ms per batch. The runner restarts the server, which
restores its slots from its last snapshot. The new process logs the duration of its imports (nearly all of it torch); it is
subtracted, and reported separately.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import time
from typing import Any

from benchmarks.common import Row, at_most, main, plain
from benchmarks.jobs import RunJob, until

KILLS = 9


def measure() -> tuple[list[Row], Any]:
    """Measure all kills."""
    seconds, imports = [], []
    with RunJob(trainers=2, most=2, servers=2) as job:
        for number in range(KILLS):
            job.stepping(2)
            time.sleep(1.0)
            index = number % 2
            when = time.monotonic()
            os.kill(job.pids("pserver")[index], signal.SIGKILL)
            until(lambda w=when: _next_step(job, w) is not None, "a step", seconds=60)  # type: ignore[misc]
            found = _next_step(job, when)
            assert found is not None
            seconds.append(found - when)
            imports.append(_imports(job, index))
        time.sleep(1.0)
        log = job.log()
    replayed = [
        int(count.replace(",", "")) for count in re.findall(r"([\d,]+) batch(?:es are| is) computed again", log)
    ]
    without = [total - imported for total, imported in zip(seconds, imports, strict=True)]
    rows = [
        at_most("SIGKILL to the next step, without the import, p50", without, "s", goal=2.0),
        Row(metric="the same, the worst", value=max(without), unit="s", count=len(without)),
        plain("SIGKILL to the next step, with the import", seconds, "s"),
        plain("the import, by the new process itself", imports, "s"),
    ]
    if replayed:
        rows.append(plain("batches replayed after a kill", [float(each) for each in replayed], "batches"))
    return rows, {"seconds": seconds, "imports": imports, "replayed": replayed}


def _imports(job: RunJob, index: int) -> float:
    """Return the duration of the imports that the latest process of this server has logged, in seconds."""
    text = (job.state.logs / f"pserver-{index}.log").read_text()
    return float(re.findall(r"what it imports took ([0-9.]+) s", text)[-1])


def _next_step(job: RunJob, when: float) -> float | None:
    """Return the time of the first step after the gap that follows the kill; one batch may still complete before."""
    later = []
    for times in job.steps().values():
        later += [b for a, b in itertools.pairwise(times) if b > when and b - a > 0.25]
    return min(later, default=None)


if __name__ == "__main__":
    main("pserver_kill", measure)
