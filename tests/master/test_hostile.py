"""A job member that sends arbitrary messages: the master keeps running, and the next master can read its records."""

from __future__ import annotations

import random

import msgspec
import pytest

from shoal.protocol import messages as m
from shoal.transport.auth import Identity
from shoal.transport.frames import encode
from tests.hostile import Liar, kinds
from tests.master.desk import SERVER, Desk
from tests.soak import FACTOR

decoder = msgspec.msgpack.Decoder(m.ToMaster)
answers = msgspec.msgpack.Decoder(m.FromMaster)


def lies(desk, liar, identity, *, count):
    """Send random messages on a connection, and check that every message that the master sends can be decoded."""
    connection = 50
    desk.master.connected(connection, identity, 0.0)
    for number in range(count):
        if connection not in desk.master._connections:
            desk.master.connected(connection, identity, 0.0)
        try:
            message = decoder.decode(msgspec.msgpack.encode(liar.message(liar.chance.choice(kinds(m.ToMaster)))))
        except (msgspec.DecodeError, OverflowError):
            continue
        desk.master.message(connection, message, float(number) * 0.01)
        if liar.chance.random() < 0.1:
            desk.master.tick(float(number) * 0.01)
        for _, said in desk.settle():
            answers.decode(encode(said)[16:])
    desk.master.closed(connection, float(count))
    desk.settle()
    desk.master.tick(float(count) * 0.01)
    desk.settle()


def test_a_task_of_an_epoch_that_is_not_open_cannot_be_done():
    """It would begin that epoch, and a job that is stopped by its script still finishes every epoch that has begun."""
    desk = Desk()
    desk.joins(0)
    desk.works(0, 2)
    desk.joins(1)
    desk.says(1, m.TaskDone(lease=m.Lease(epoch=2, task=3, attempt=7), grants=[1] * len(desk.served)))
    assert 1 not in desk.master._connections
    assert (desk.job.queue.open, desk.job.queue.reached) == (0, (0, 1))
    assert 0 in desk.master._connections


@pytest.mark.parametrize("role", ["trainer", "pserver", "observer"])
@pytest.mark.parametrize("seed", range(4 * FACTOR))
@pytest.mark.parametrize("begun", [False, True], ids=["new", "begun"])
def test_a_member_that_lies_does_not_end_the_master(role, seed, begun):
    chance = random.Random(f"{role}{seed}{begun}")
    desk = Desk()
    if begun:
        desk.joins(0)
        desk.works(0, 2)
    liar = Liar(chance, integers=[100, 150, SERVER.life, *range(6), *desk.served.values()])
    life = chance.choice((150, 1, 2**63 - 1))
    lies(desk, liar, Identity(role=role, index=chance.choice((7, 0, 2**31)), life=life), count=400)
    desk.replace_master()
    desk.master.tick(100.0)
    desk.settle()
