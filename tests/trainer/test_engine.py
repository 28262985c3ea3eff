"""The trainer's requests to the master, and their answers."""

from __future__ import annotations

import pytest

from shoal.protocol import messages as m
from shoal.trainer.engine.engine import Engine
from shoal.transport import auth
from tests.pserver.shapes import make_shape

SAVE = m.Save(path="/model", epoch=0, number=0)
SAVED = m.Saved(path="/model", epoch=0, number=0)
REGISTERED = m.Registered(
    epochs=2, seed=1, epoch=0, slots=1, output="", lease_seconds=10.0, step_seconds=600.0, trainers=1, joins=1, groups=[], evaluations=[],
    metrics=[], stopping="",
)  # fmt: skip
STOPPING = m.Stopping(reason="enough")


@pytest.fixture
def engine(tmp_path):
    identity = auth.Identity(role="trainer", index=0, life=auth.new_life())
    token = auth.Token(b"x" * 32)
    return Engine(f"unix://{tmp_path}/nobody", identity=identity, token=token, uid="u", epochs=2, seed=1)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("messages", [(SAVED, STOPPING), (STOPPING, SAVED), (SAVED, STOPPING, STOPPING)])
def test_another_trainers_stop_does_not_take_the_place_of_an_answer(engine, messages):
    """All messages are in the inbox before the first is read."""
    for message in messages:
        engine._inbox.put(message)
    assert engine.request(SAVE, m.SaveTurn, m.Saved) == SAVED
    assert engine.stopping == "enough"


@pytest.mark.timeout(30)
def test_the_reply_to_a_stop_is_returned_to_its_request(engine):
    engine._inbox.put(STOPPING)
    assert engine.request(m.StopEarly(reason="mine", epoch=0), m.Stopping) == STOPPING


def test_a_question_that_is_answered_is_not_asked_again_when_a_new_master_is_there(engine):
    requested = []
    engine._link.send = requested.append
    engine._shape = make_shape()
    for message in (SAVED, REGISTERED):
        engine._inbox.put(message)
    assert engine.request(SAVE, m.SaveTurn, m.Saved) == SAVED
    assert requested == [SAVE], "its second answer would be taken for that of the next question"
