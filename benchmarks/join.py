"""Measures the time from ``trainer.join()`` to the first committed batch of a new trainer.

`shoal scale` changes the number of trainers from one to two and back. The creation of the dataset is subtracted. The first
batch is committed when the loop gets the second one, because every server has acknowledged it then. The time from the call
of `shoal scale` is reported, too; most of it is the import of torch. The first torch optimizer of a process imports another
large part of torch (as in any script without Shoal); the figure is reported with and without that.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.common import Row, at_most, main, plain
from benchmarks.jobs import RunJob, until

JOINS = 9


def _join(job: RunJob) -> tuple[list[float], float, float]:
    """Let a trainer join; return its time stamps, the time of the call of `shoal scale`, and that of its return."""
    known = set(job.stamps())
    called = time.monotonic()
    job.scale(2)
    returned = time.monotonic()

    def newcomers() -> list[list[float]]:
        return [stamps for key, stamps in job.stamps().items() if key not in known and len(stamps) >= 7]

    until(lambda: bool(newcomers()), "the new trainer's first batches", seconds=60)
    stamps = newcomers()[0]
    job.scale(1)
    until(lambda: len(job.pids("trainer")) == 1, "its end", seconds=30)
    return stamps, called, returned


def measure() -> tuple[list[Row], Any]:
    """Measure all joins."""
    with RunJob(trainers=1, most=4) as job:
        job.stepping(1)
        job.scale(1)  # the job may start with more
        until(lambda: len(job.pids("trainer")) == 1, "a trainer alone", seconds=30)
        found = [_join(job) for _ in range(JOINS)]
    first = [stamps[6] - stamps[0] - (stamps[2] - stamps[1]) for stamps, _, _ in found]
    rows = [
        at_most("trainer.join() to the first committed batch, p50", first, "s", goal=0.3),
        Row(metric="the same, the worst", value=max(first), unit="s", count=len(first)),
        plain("of that, making model and optimizer (the script's own)", [s[3] - s[2] for s, _, _ in found], "s"),
        plain("all but that", [t - (s[3] - s[2]) for t, (s, _, _) in zip(first, found, strict=True)], "s"),
        plain("of that, prepare (registers with the master)", [s[4] - s[3] for s, _, _ in found], "s"),
        plain("of that, the first batch itself", [s[6] - s[5] for s, _, _ in found], "s"),
        plain("shoal scale, the command itself", [returned - called for _, called, returned in found], "s"),
        plain("from calling shoal scale to the first committed batch", [s[6] - c for s, c, _ in found], "s"),
    ]
    return rows, {"stamps": [[s - stamps[0] for s in stamps[:7]] for stamps, _, _ in found], "seconds": first}


if __name__ == "__main__":
    main("join", measure)
