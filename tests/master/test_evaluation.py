"""Scores, metrics and model files: one trainer produces each, and every waiting trainer receives it, also across masters."""

from __future__ import annotations

import math

from shoal.master.state.records import Records
from shoal.protocol import messages as m
from tests.master.harness import SHAPE, MasterHarness


def desk_of(trainers):
    harness = MasterHarness(server=False)
    for index in range(trainers):
        harness.joins(index)
    return harness


def evaluation(epoch, number, score="1"):
    return m.Evaluated(epoch=epoch, number=number, score=score)


def saved(epoch, number, path="x"):
    return m.Saved(path=path, epoch=epoch, number=number)


def save(epoch, number, path="x"):
    return m.Save(path=path, epoch=epoch, number=number)


def save_turn(epoch, number, path="x"):
    return m.SaveTurn(path=path, epoch=epoch, number=number)


def by_trainer(messages):
    return sorted(messages, key=lambda each: each[0])


def test_one_trainer_evaluates_and_all_that_wait_receive_the_score():
    harness = desk_of(2)
    assert harness.deliver(0, m.Evaluate(epoch=0, number=0)) == [(0, m.EvaluateTurn(epoch=0, number=0))]
    assert harness.deliver(1, m.Evaluate(epoch=0, number=0)) == []
    assert by_trainer(harness.deliver(0, evaluation(0, 0))) == [(0, evaluation(0, 0)), (1, evaluation(0, 0))]


def test_each_call_is_an_evaluation_of_its_own():
    harness = desk_of(2)
    harness.deliver(0, m.Evaluate(epoch=0, number=0))
    harness.deliver(0, evaluation(0, 0, "1"))
    assert harness.deliver(0, m.Evaluate(epoch=0, number=1)) == [(0, m.EvaluateTurn(epoch=0, number=1))]
    # Trainer 1 is one call behind; the third evaluation runs at the same time as the second.
    assert harness.deliver(1, m.Evaluate(epoch=0, number=0)) == [(1, evaluation(0, 0, "1"))]
    assert harness.deliver(1, m.Evaluate(epoch=0, number=2)) == [(1, m.EvaluateTurn(epoch=0, number=2))]
    assert harness.deliver(0, evaluation(0, 1, "2")) == [(0, evaluation(0, 1, "2"))]
    assert harness.deliver(1, evaluation(0, 2, "3")) == [(1, evaluation(0, 2, "3"))]
    assert [e.score for e in harness.job.records.evaluation_list()] == ["1", "2", "3"]
    assert harness.events()[-1] == "evaluation 3 of epoch 1: 3"


def test_an_evaluation_is_reassigned_when_its_trainer_dies():
    harness = desk_of(3)
    harness.deliver(0, m.Evaluate(epoch=0, number=1))
    harness.deliver(1, m.Evaluate(epoch=0, number=0))
    harness.deliver(2, m.Evaluate(epoch=0, number=1))
    assert harness.dies(0) == [(2, m.EvaluateTurn(epoch=0, number=1))]


def test_an_evaluation_assigned_by_an_earlier_master_is_answered_by_the_next():
    """The trainer sends its score again, and only the reply of the next master can end its wait."""
    harness = desk_of(2)
    assert harness.deliver(0, evaluation(0, 0)) == [(0, evaluation(0, 0))]
    assert harness.deliver(1, m.Evaluate(epoch=0, number=0)) == [(1, evaluation(0, 0))]


def test_of_two_scores_the_first_one_counts():
    harness = desk_of(2)
    harness.deliver(1, m.Evaluate(epoch=0, number=0))
    harness.deliver(0, evaluation(0, 0, "1"))
    assert harness.deliver(1, evaluation(0, 0, "2")) == [(1, evaluation(0, 0, "1"))]


def test_a_new_master_sends_scores_and_metrics_to_trainers_that_join():
    harness = desk_of(1)
    harness.deliver(0, evaluation(1, 1, "3"))
    harness.deliver(0, evaluation(0, 0, "1"))
    for value in (math.inf, 5.0):
        harness.deliver(0, m.Metric(epoch=2, number=0, value=value))
    harness.deliver(0, m.Metric(epoch=1, number=3, value=0.1))
    harness.replace_master()
    ((_, registered),) = [each for each in harness.joins(1) if isinstance(each[1], m.Registered)]
    assert registered.evaluations == [
        m.Evaluation(epoch=0, number=0, score="1"),
        m.Evaluation(epoch=1, number=1, score="3"),
    ]
    assert registered.metrics == [
        m.Metric(epoch=1, number=3, value=0.1),
        m.Metric(epoch=2, number=0, value=math.inf),
    ]
    assert registered.groups == SHAPE.groups


def test_each_life_of_a_trainer_has_a_number_of_its_own():
    harness = desk_of(2)

    def number(messages):
        return next(x.joins for _, x in messages if isinstance(x, m.Registered))

    first = number(harness.joins(2))
    assert number(harness.joins(3)) == first + 1
    harness.replace_master()
    assert number(harness.joins(2)) == first
    assert number(harness.joins(2, life=77)) == first + 2


def test_what_is_kept_is_bounded():
    records = Records()
    for number in range(1100):
        records.evaluated(0, number, "1")
        records.record_model_file(f"path {number}", 0, 0)
    for number in range(10_100):
        records.measured(0, number, 1.0)
    assert sorted(records.evaluations[0]) == list(range(100, 1100))
    assert next(iter(records.saved)) == "path 100"
    assert len(records.metrics) == 10_000
    assert len(records.evaluation_list()) == 1000
    kept = {key for key, value in records.flush() if value is not None}
    assert sum(key.startswith("evaluations/") for key in kept) == 1000
    again = Records()
    again.load((key, value) for key, value in ((k, records._value(k)) for k in kept) if value is not None)
    assert (again.evaluations, again.metrics, again.saved) == (records.evaluations, records.metrics, records.saved)


# --- Model files ---


def test_each_save_writes_the_model_of_its_call():
    harness = desk_of(2)
    assert harness.deliver(0, save(0, 0)) == [(0, save_turn(0, 0))]
    assert harness.deliver(1, save(0, 0)) == []
    assert by_trainer(harness.deliver(0, saved(0, 0))) == [(0, saved(0, 0)), (1, saved(0, 0))]
    assert harness.deliver(1, save(1, 0)) == [(1, save_turn(1, 0))]
    assert harness.deliver(0, save(1, 1)) == []
    # The next call gets its turn only after the previous one has written, so no two write to one path at the same time.
    assert harness.deliver(1, saved(1, 0)) == [(1, saved(1, 0)), (0, save_turn(1, 1))]
    assert harness.deliver(1, save(1, 1)) == []
    assert by_trainer(harness.deliver(0, saved(1, 1))) == [(0, saved(1, 1)), (1, saved(1, 1))]
    assert harness.job.records.saved == {"x": (1, 1)}


def test_a_trainer_that_is_behind_does_not_write_an_older_model():
    harness = desk_of(2)
    harness.deliver(0, save(3, 0))
    harness.deliver(0, saved(3, 0))
    assert harness.deliver(1, save(1, 5)) == [(1, saved(1, 5))]
    assert harness.deliver(1, save(1, 5, "y")) == [(1, save_turn(1, 5, "y"))]


def test_a_model_file_is_reassigned_when_its_writer_dies():
    harness = desk_of(2)
    harness.deliver(0, save(0, 0))
    harness.deliver(1, save(0, 0))
    assert harness.dies(0) == [(1, save_turn(0, 0))]


def test_a_model_written_for_an_earlier_master_is_confirmed_by_the_next():
    harness = desk_of(2)
    assert harness.deliver(0, saved(3, 0)) == [(0, saved(3, 0))]
    harness.replace_master()
    harness.joins(1)
    assert harness.deliver(1, save(3, 0)) == [(1, saved(3, 0))]
    assert harness.deliver(1, save(3, 1)) == [(1, save_turn(3, 1))]
