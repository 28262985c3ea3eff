"""Scores and the model's file: one trainer makes them, all who wait are told, whichever master they asked."""

from __future__ import annotations

import itertools

from shoal.master.core import Master
from shoal.master.job import Job, Send, Settings
from shoal.master.records import Records
from shoal.wire import messages as m
from shoal.wire.auth import Identity
from tests.master.test_membership import SHAPE


class Desk:
    """A master, and what it says to whom."""

    def __init__(self, generation=1):
        chosen = Settings(name="j", epochs=3, seed=1, servers=1, checkpoint_seconds=1e9, checkpoint_keep=2, output="",
                          lease_seconds=10.0)  # fmt: skip
        grants = itertools.count(1)
        self.job = Job(settings=chosen, records=Records(), generation=generation, new_grant=lambda: next(grants),
                       now=0.0, clock=lambda: 0.0)  # fmt: skip
        self.master = Master(self.job)

    def joins(self, index):
        """A trainer registers; its connection has its index."""
        self.master.connected(index, Identity(role="trainer", index=index, life=100 + index), 0.0)
        self.says(index, m.Register(shape=SHAPE, epochs=3, seed=1, leases=[], pid=1, host="h"))

    def says(self, index, message):
        """What the master answers to whom."""
        self.master.message(index, message, 0.0)
        said = [(each.connection, each.message) for each in self.job.outbox if isinstance(each, Send)]
        self.job.outbox = []
        return said


def test_one_evaluates_and_all_who_wait_are_told():
    desk = Desk()
    desk.joins(0)
    desk.joins(1)
    assert desk.says(0, m.Evaluate(epoch=0, number=0)) == [(0, m.EvaluateTurn(epoch=0, number=0))]
    assert desk.says(1, m.Evaluate(epoch=0, number=0)) == []
    score = m.Evaluated(epoch=0, number=0, score="1")
    assert sorted(desk.says(0, score), key=lambda each: each[0]) == [(0, score), (1, score)]


def test_who_got_its_turn_from_an_earlier_master_is_answered_by_the_next():
    """It says its score again; nothing else would ever end its wait."""
    desk = Desk(generation=2)
    desk.joins(0)
    desk.joins(1)
    score = m.Evaluated(epoch=0, number=0, score="1")
    assert desk.says(0, score) == [(0, score)]
    assert desk.says(1, m.Evaluate(epoch=0, number=0)) == [(1, score)]


def test_who_wrote_the_model_for_an_earlier_master_is_answered_by_the_next():
    desk = Desk(generation=2)
    desk.joins(0)
    desk.joins(1)
    saved = m.Saved(path="x.safetensors", epoch=3, number=0)
    assert desk.says(0, saved) == [(0, saved)]
    assert desk.says(1, m.Save(path="x.safetensors", epoch=3, number=0)) == [(1, saved)]
