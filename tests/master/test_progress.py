"""The progress that a master reports before it has learned the state of all slots from the servers."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

from shoal.master.state.progress import ProgressReporter, reported_scores
from shoal.protocol import messages as m
from tests.master.harness import MasterHarness


def reporter(samples: int | None = None) -> tuple[SimpleNamespace, ProgressReporter]:
    records = SimpleNamespace(progress=None if samples is None else SimpleNamespace(samples=samples))
    job = SimpleNamespace(slots=SimpleNamespace(complete=False), records=records)
    return job, ProgressReporter(job, etcd="etcd")


def test_tasks_reported_by_servers_do_not_count_in_the_rate():
    job, made = reporter()
    assert made._rate(1.0, 0) == 0.0
    job.slots.complete = True
    assert made._rate(2.0, 500_000) == 0.0
    assert made._rate(3.0, 501_000) == 1000.0


def test_a_slot_that_is_away_ends_the_rate():
    job, made = reporter()
    job.slots.complete = True
    made._rate(1.0, 0)
    assert made._rate(2.0, 1000) == 1000.0
    job.slots.complete = False
    assert made._rate(3.0, 900) == 0.0
    job.slots.complete = True
    assert made._rate(4.0, 900) == 0.0


def test_until_all_servers_have_reported_the_published_samples_are_kept():
    job, made = reporter(samples=500)
    assert made._samples(0) == 500
    assert made._samples(200) == 500
    job.slots.complete = True
    assert made._samples(480) == 480
    job.slots.complete = False
    assert made._samples(470) == 470


def test_a_first_master_has_no_earlier_progress():
    _, made = reporter()
    assert made._samples(0) == 0


def test_the_scores_of_the_last_evaluations_are_published_as_numbers():
    scores = ["0.1", "0.2", '{"auc": 0.9}', '"a text"', "NaN", "0.6"]
    evaluations = [m.Evaluation(epoch=epoch, number=0, score=score) for epoch, score in enumerate(scores)]
    found = reported_scores(evaluations)
    assert [(each.epoch, each.values) for each in found] == [(2, {"score.auc": 0.9}), (5, {"score": 0.6})]
    assert reported_scores([]) == []


def test_the_operator_is_told_the_finite_values_that_were_logged_last_and_the_scores():
    harness = MasterHarness()
    harness.joins(0)
    for values in (
        {"loss": 2.0, "odd": math.nan, "far": math.inf},
        {"loss": 0.5, **{f"v{n:02}": float(n) for n in range(40)}},
    ):
        harness.deliver(0, m.LogValues(values=values, batches=1, skipped=0, replayed=0, not_finite=0))
    harness.works(0, 1)
    harness.deliver(0, m.Evaluate(epoch=0, number=0))
    harness.deliver(0, m.Evaluated(epoch=0, number=0, score="0.75"))
    harness.master.tick(100.0)
    harness.settle()
    reported = json.loads(harness.etcd["progress"])
    assert reported["values"] == {"loss": 0.5} | {f"v{number:02}": number for number in range(19)}
    assert reported["scores"] == [{"epoch": 0, "values": {"score": 0.75}}]
    assert (reported["epoch"], reported["samples"]) == (0, 4)
    harness.replace_master()
    assert harness.job.records.progress.scores[0].values == {"score": 0.75}
