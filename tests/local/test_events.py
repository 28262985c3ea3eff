"""The master's events, as the local runner prints them."""

import msgspec

from shoal.local.view.events import Events
from shoal.protocol.messages import Evaluation
from tests.local.test_formatting import PROGRESS


def after(*texts, generation=1, scores=()):
    events = [(number, 0.0, "info", text) for number, text in enumerate(texts, 1)]
    evaluations = [Evaluation(epoch=epoch, number=0, score=score) for epoch, score in enumerate(scores)]
    return msgspec.structs.replace(PROGRESS, generation=generation, events=events, evaluations=evaluations)


def texts(lines):
    return [text for _, text in lines]


def test_each_event_is_printed_once_and_a_new_master_restarts_the_numbers():
    events = Events()
    assert texts(events.new(after("one"), 0.0)) == ["one"]
    assert texts(events.new(after("one", "two"), 0.0)) == ["two"]
    assert texts(events.new(after("three", generation=2), 0.0)) == ["three"]


def test_a_score_is_printed_once_at_its_event():
    events = Events()
    story = ("trainer-0 joined", 'evaluation after epoch 1: {"auc": 0.93333}', "epoch 2 of 3 begins")
    printed = texts(events.new(after(*story, scores=['{"auc": 0.93333}']), 0.0))
    assert printed == ["trainer-0 joined", "epoch 1 evaluated: auc 0.9333", "epoch 2 of 3 begins"]
    assert events.new(after(*story, scores=['{"auc": 0.93333}']), 0.0) == []
    assert texts(events.new(after(*story, scores=["0.5"]), 0.0)) == ["epoch 1 evaluated: 0.5"]


def test_a_score_whose_event_was_lost_with_its_master_is_printed():
    events = Events()
    events.new(after("one"), 0.0)
    assert texts(events.new(after(generation=2, scores=["0.5"]), 0.0)) == ["epoch 1 evaluated: 0.5"]


def test_scores_from_before_a_resume_are_not_printed_again():
    events = Events()
    assert events.new(after(scores=["0.5", "0.6"]), 0.0) == []
    assert texts(events.new(after(scores=["0.5", "0.6", "0.7"]), 0.0)) == ["epoch 3 evaluated: 0.7"]


def test_each_evaluation_of_an_epoch_is_printed():
    events, story = Events(), ("evaluation after epoch 1: 0.5", "evaluation 2 of epoch 1: 0.6")
    progress = after(*story, scores=["0.5"])
    progress = msgspec.structs.replace(
        progress, evaluations=[*progress.evaluations, Evaluation(epoch=0, number=1, score="0.6")]
    )
    assert texts(events.new(progress, 0.0)) == ["epoch 1 evaluated: 0.5", "epoch 1 evaluated (2): 0.6"]


def test_an_evaluation_after_the_loop_is_of_the_model_after_the_last_epoch():
    events = Events()
    story = [*("evaluation after epoch 1: 0.1", "evaluation after epoch 2: 0.2", "evaluation after epoch 3: 0.3")]
    printed = texts(
        events.new(after(*story, "evaluation after epoch 3: 0.4", scores=["0.1", "0.2", "0.3", "0.4"]), 0.0)
    )
    assert printed[-1] == "after the last epoch evaluated: 0.4"


def test_exits_are_printed_by_the_runner_alone():
    assert Events().new(after("trainer-1 left", "pserver-0 disconnected without leaving"), 0.0) == []
    assert texts(Events().new(after("trainer-1 was silent for 9.0 s"), 0.0)) == ["trainer-1 was silent for 9.0 s"]


def test_what_a_lost_server_costs_is_one_line():
    events = Events()
    story = [f"{slot + 1} batches come back: slots {slot} were restored without them" for slot in range(3)]
    assert events.new(after(*story[:2]), 5.0) == []
    assert events.new(after(*story), 5.4) == []
    ((level, text),) = events.due(6.0)
    assert level == "warning"
    assert text.startswith("6 batches are computed again")
    assert events.due(9.0) == []
