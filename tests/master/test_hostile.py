"""A job member that sends arbitrary messages: the master keeps running, and the next master can read its records."""

from __future__ import annotations

import random

import msgspec
import pytest

from shoal.protocol import messages as m
from shoal.transport.auth import Identity
from shoal.transport.frames import encode
from tests.hostile import Liar, kinds
from tests.master.harness import SERVER, MasterHarness
from tests.soak import FACTOR

decoder = msgspec.msgpack.Decoder(m.ToMaster)
answers = msgspec.msgpack.Decoder(m.FromMaster)


def lies(harness, liar, identity, *, count):
    """Send random messages on a connection, and check that every message that the master sends can be decoded."""
    connection = 50
    harness.master.connected(connection, identity, 0.0)
    for number in range(count):
        if connection not in harness.master._connections:
            harness.master.connected(connection, identity, 0.0)
        try:
            message = decoder.decode(msgspec.msgpack.encode(liar.message(liar.chance.choice(kinds(m.ToMaster)))))
        except (msgspec.DecodeError, OverflowError):
            continue
        harness.master.message(connection, message, float(number) * 0.01)
        if liar.chance.random() < 0.1:
            harness.master.tick(float(number) * 0.01)
        for _, message in harness.settle():
            answers.decode(encode(message)[16:])
    harness.master.closed(connection, float(count))
    harness.settle()
    harness.master.tick(float(count) * 0.01)
    harness.settle()


def test_a_task_of_an_epoch_that_is_not_open_cannot_be_done():
    """It would begin that epoch, and a job that is stopped by its script still finishes every epoch that has begun."""
    harness = MasterHarness()
    harness.joins(0)
    harness.works(0, 2)
    harness.joins(1)
    harness.deliver(1, m.TaskDone(lease=m.Lease(epoch=2, task=3, attempt=7), grants=[1] * len(harness.served)))
    assert 1 not in harness.master._connections
    assert (harness.job.queue.open, harness.job.queue.reached) == (0, (0, 1))
    assert 0 in harness.master._connections


@pytest.mark.parametrize("role", ["trainer", "pserver", "observer"])
@pytest.mark.parametrize("seed", range(4 * FACTOR))
@pytest.mark.parametrize("begun", [False, True], ids=["new", "begun"])
def test_a_member_that_lies_does_not_end_the_master(role, seed, begun):
    chance = random.Random(f"{role}{seed}{begun}")
    harness = MasterHarness()
    if begun:
        harness.joins(0)
        harness.works(0, 2)
    liar = Liar(chance, integers=[100, 150, SERVER.life, *range(6), *harness.served.values()])
    life = chance.choice((150, 1, 2**63 - 1))
    lies(harness, liar, Identity(role=role, index=chance.choice((7, 0, 2**31)), life=life), count=400)
    harness.replace_master()
    harness.master.tick(100.0)
    harness.settle()
