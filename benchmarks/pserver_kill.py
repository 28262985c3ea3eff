"""A parameter server is killed: how long until the next step that uses it, and how much is computed again?

Two servers, each of which every step uses; two trainers, 20 ms per batch. The runner starts the server again, and it
takes its slots up from its last snapshot. Importing torch is measured by itself beside each kill, in a process that
does nothing else, and subtracted; so is, in a row of its own, what the first optimizer of a process imports.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from typing import Any

from benchmarks.common import Row, at_most, main, plain
from benchmarks.jobs import RunJob, until

KILLS = 4


def measure() -> tuple[list[Row], Any]:
    """The kills."""
    seconds, imports, optimizers = [], [], []
    with RunJob(trainers=2, most=2, servers=2) as job:
        for number in range(KILLS):
            job.stepping(2)
            time.sleep(1.0)
            imports.append(_import_seconds("import torch"))
            optimizers.append(_import_seconds("import torch, torch._dynamo"))
            when = time.monotonic()
            os.kill(job.pids("pserver")[number % 2], signal.SIGKILL)
            until(lambda w=when: _next_step(job, w) is not None, "a step", seconds=60)  # type: ignore[misc]
            found = _next_step(job, when)
            assert found is not None
            seconds.append(found - when)
        time.sleep(1.0)
        log = job.log()
    back = [int(count) for count in re.findall(r"(\d+) batches come back", log)]
    without = [max(0.0, a - b) for a, b in zip(seconds, imports, strict=True)]
    less = [max(0.0, a - b) for a, b in zip(seconds, optimizers, strict=True)]
    rows = [
        at_most("SIGKILL to the next step, without the import, p50", without, "s", goal=2.0),
        Row(metric="the same, the worst", value=max(without), unit="s", count=len(without)),
        plain("SIGKILL to the next step, with the import", seconds, "s"),
        plain("SIGKILL to the next step, without torch._dynamo either", less, "s"),
        plain("importing torch and torch._dynamo (the first optimizer)", optimizers, "s"),
        plain("importing torch, alone, beside the running job", imports, "s"),
    ]
    if back:
        rows.append(plain("batches that came back, per report of them", [float(b) for b in back], "batches"))
    return rows, {"seconds": seconds, "imports": imports, "imports_with_dynamo": optimizers, "batches_back": back}


def _import_seconds(statement: str) -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.monotonic() - began


def _next_step(job: RunJob, when: float) -> float | None:
    """The first step after the standstill that begins with the kill: one batch may still be on its way."""
    later = []
    for times in job.steps().values():
        later += [b for a, b in itertools.pairwise(times) if b > when and b - a > 0.25]
    return min(later, default=None)


if __name__ == "__main__":
    main("pserver_kill", measure)
