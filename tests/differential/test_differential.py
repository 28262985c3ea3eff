"""Scripts from a grammar give the same results in plain PyTorch, alone and in a job, or are refused alike in all jobs."""

from __future__ import annotations

import math
import re
import zlib
from typing import Any

import pytest
import torch
from hypothesis import given

from tests.differential import runs
from tests.differential.grammar import specs
from tests.differential.mistakes import MISTAKES
from tests.differential.runs import Result
from tests.differential.spec import Spec
from tests.soak import FACTOR, examples

SOAKING = FACTOR > 1
TWO_TRAINERS_OF = 1 if SOAKING else 8
"""One of this many scripts also runs in a job with two trainers."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    with runs.one_thread():
        yield


def near(found: Any, expected: Any, spec: Spec, what: str) -> None:
    """Check equality up to rounding, with a larger tolerance for bfloat16, which amplifies small differences."""
    tolerance = 2e-2 if spec.amp else 1e-6
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype, what
        assert torch.allclose(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True), (what, found, expected)
    elif isinstance(expected, dict):
        assert sorted(found) == sorted(expected), what
        for name, value in expected.items():
            near(found[name], value, spec, f"{what} {name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), (what, found, expected)
        for number, value in enumerate(expected):
            near(found[number], value, spec, f"{what} {number}")
    elif isinstance(expected, float):
        assert math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance) or (
            math.isnan(found) and math.isnan(expected)
        ), (what, found, expected)
    else:
        assert found == expected, what


def same(found: Result, expected: Result, spec: Spec, where: str) -> None:
    """Check that two runs of a script observed and wrote the same."""
    assert found.refused == expected.refused, (where, found.refused, expected.refused)
    if expected.refused:
        return
    for name, value in vars(expected.found).items():
        near(getattr(found.found, name), value, spec, f"{where}: {name}")
    near(found.values, expected.values, spec, f"{where}: values")
    near(found.files, expected.files, spec, f"{where}: files")


def check(spec: Spec) -> None:
    """Run a script in each way, and compare the results."""
    alone = runs.run_alone(spec)
    if spec.mistake:
        assert MISTAKES[spec.mistake].fragment in alone.refused, alone.refused or "not refused alone"
    else:
        same(alone, runs.run_plain(spec), spec, "alone against plain")
    together, account = runs.run_together(spec)
    if spec.stop is None or spec.stop[0] == "epoch":
        same(together, alone, spec, "one trainer against alone")
    else:
        # The trainer also finishes the task that it has leased in advance, so it trains some batches more.
        assert not together.refused
        assert together.found.rates[: len(alone.found.rates)] == alone.found.rates
    if not spec.mistake:
        assert (account.lost, account.twice) == (0, 0), account
    everywhere = not spec.mistake or MISTAKES[spec.mistake].everywhere
    if everywhere and zlib.crc32(repr(spec).encode()) % TWO_TRAINERS_OF == 0:
        check_two(spec, alone)


def _unnamed(refused: str) -> str:
    """Remove the parameter's name, and the counter's part of a module's name, from a refusal's message."""
    return re.sub(r"^parameter \S+", "parameter", refused.replace("inner.", ""))


def check_two(spec: Spec, alone: Result) -> None:
    """Check that two trainers train every sample exactly once, or are both refused with the same message as one."""
    results, account = runs.run_two(spec)
    if spec.mistake:
        # The model that counts has one parameter more, which may be the one that the message names.
        assert [_unnamed(r.refused) for r in results] == [_unnamed(alone.refused)] * 2
        return
    assert [r.refused for r in results] == ["", ""]
    assert (account.lost, account.twice) == (0, 0), account
    saved = results[0].files["end.safetensors"]["entries"]
    skipped = account.skipped
    assert float(saved.sum()) == account.counted - skipped, (saved, account)
    if spec.data.sampler != "replacement" and spec.stop is None:
        assert float(saved.max()) <= spec.epochs, saved
    if not (skipped or spec.data.sampler or spec.data.drop_last or spec.stop):
        assert torch.equal(saved, torch.full_like(saved, spec.epochs)), saved


@examples(300, derandomize=not SOAKING, database=None)
@given(spec=specs())
@pytest.mark.timeout(600 * FACTOR)
def test_scripts_do_in_a_job_what_they_do_in_plain_pytorch(spec):
    check(spec)
