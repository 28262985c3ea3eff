"""The progress that a master reports before it has learned the state of all slots from the servers."""

from __future__ import annotations

from types import SimpleNamespace

from shoal.master.state.progress import ProgressReporter, reported_scores
from shoal.protocol.messages import Evaluation


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
    evaluations = [Evaluation(epoch=epoch, number=0, score=score) for epoch, score in enumerate(scores)]
    found = reported_scores(evaluations)
    assert [(each.epoch, each.values) for each in found] == [(2, {"score.auc": 0.9}), (5, {"score": 0.6})]
    assert reported_scores([]) == []
