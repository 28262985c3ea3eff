"""Measures the overhead of the checks for changes that a script makes to its model.

A model of 500 small parameters, in one process. The checks that the job adds to a step of a trainer (of the parameters
before the step, of remaining gradients at the end of the batch, of the scheduler, and the record of the new values) are
timed alone, many times, and compared with a step of 5 ms. The plain step of the same model is reported, too.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks.common import Row, at_most, main, plain
from shoal.trainer.data.dataset import describe_data
from shoal.trainer.optim.accumulation import Accumulation
from shoal.trainer.optim.schedule import LearningRateSchedule
from shoal.trainer.script.description import describe
from shoal.trainer.script.mutations import MutationDetector

PARAMETERS, SIZE = 500, 1000
STEP_MS = 5.0
REPEATS, CALLS = 30, 200


def _model() -> nn.Module:
    return nn.ParameterList([nn.Parameter(torch.randn(SIZE)) for _ in range(PARAMETERS)])


def _parts() -> tuple[MutationDetector, Accumulation, LearningRateSchedule]:
    model = _model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = describe_data(TensorDataset(torch.zeros(8, 1)), batch_size=4)
    described = describe(model, [optimizer], data, accumulate=1, task_batches=None)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    watch = MutationDetector(model, described.watched, groups=described.groups, versions_constant=True)
    schedule = LearningRateSchedule(
        [],
        described.groups,
        interval="step",
        steps=1,
        epochs=1,
        place=lambda _: ("between", None),
        measured=lambda _: True,
    )
    return watch, Accumulation(described.dense), schedule


def measure() -> tuple[list[Row], Any]:
    """Measure rounds of checks, with plain steps in between."""
    watch, accumulation, schedule = _parts()
    other = _model()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    for parameter in other.parameters():
        parameter.grad = torch.zeros_like(parameter)
    watched, plainly = [], []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        for _ in range(CALLS):
            watch.batch_begins()
            accumulation.check()
            watch.check()
            schedule.check()
            watch.set_reference()
            accumulation.end_batch(stepped=True, accumulating=False)
            watch.check()
        watched.append((time.perf_counter() - begun) / CALLS * 1000)
        begun = time.perf_counter()
        for _ in range(10):
            optimizer.step()
        plainly.append((time.perf_counter() - begun) / 10 * 1000)
    share = [milliseconds / STEP_MS * 100 for milliseconds in watched]
    rows = [
        at_most(f"watching {PARAMETERS} parameters, of a step of {STEP_MS:g} ms, p50", share, "%", goal=1.0),
        plain("the same, p50", [milliseconds * 1000 for milliseconds in watched], "us"),
        plain("a plain SGD step of the model, p50", [milliseconds * 1000 for milliseconds in plainly], "us"),
    ]
    return rows, {"watched_ms": watched, "plain_ms": plainly, "median_ms": statistics.median(watched)}


if __name__ == "__main__":
    main("watch", measure)
