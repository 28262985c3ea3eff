"""Fixtures that make a job: alone in this process, or with a real master and real parameter servers."""

from __future__ import annotations

import atexit

import pytest

from shoal.trainer.alone import AloneJob
from shoal.trainer.script.foreign_optimizers import guard
from tests.trainer.one_process import OneProcess
from tests.trainer.toy import EPOCHS, SEED, AnyJob


@pytest.fixture(autouse=True)
def no_job_of_before():
    """Clear the current job, so that one that an earlier test left in the middle of a batch has no effect."""
    guard(None)


@pytest.fixture
def alone():
    made = AloneJob(epochs=EPOCHS, seed=SEED)
    yield made
    if made._prepared:
        made._feed.close()
    atexit.unregister(made._report_unfinished)


@pytest.fixture
def one(monkeypatch):
    made = OneProcess(monkeypatch, servers=2, epochs=EPOCHS, seed=SEED)
    yield made
    made.close()


@pytest.fixture(params=["alone", "together"])
def any_job(request):
    if request.param == "alone":
        job = request.getfixturevalue("alone")
        return AnyJob(job, together=False, skipped=lambda: job._skipped)
    made = request.getfixturevalue("one")
    return AnyJob(made.join(), together=True, skipped=lambda: made.records.outcome.account.samples.skipped)
