"""A trainer that sends arbitrary messages: the server refuses them, serves the other trainers, and retains nothing of them."""

from __future__ import annotations

import contextlib
import random
import socket

import pytest
import torch

from shoal.protocol import messages as m
from shoal.trainer.engine.servers import Gradients
from shoal.transport import auth, sync
from tests.etcds import eventually
from tests.hostile import Liar, kinds
from tests.pserver.test_session import SLOTS, TOKEN, WEIGHT, World, idle
from tests.soak import FACTOR


@pytest.fixture(params=["unix", "tcp"])
def world(request, tmp_path):
    made = World(request.param, tmp_path)
    yield made
    made.close()


def call(world, life) -> sync.BlockingConnection:
    (address,) = world.servers[0].holder.addresses
    return sync.connect(address, identity=auth.Identity("trainer", 9, life), token=TOKEN, job="job")


@pytest.mark.parametrize("seed", range(2 * FACTOR))
@pytest.mark.parametrize("wrong", [0.0, 0.1], ids=["typed", "untyped"])
def test_a_trainer_that_lies_is_refused_and_the_others_are_served(world, seed, wrong):
    chance = random.Random(f"{seed}{wrong}")
    honest = world.begun()
    liar = Liar(chance, integers=range(SLOTS), wrong=wrong)
    for life in range(1000, 1060):
        connection = call(world, life)
        with contextlib.suppress(OSError):
            if chance.random() < 0.7:
                connection.send(m.Attach(slots=[0, 2], shared=0))
            for _ in range(4):
                connection._stream.sendall(liar.frame(chance.choice(kinds(m.ToServer))))
            connection._stream.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            while connection._stream.recv(1 << 20):
                pass
        connection.close()
    eventually(lambda: len(world.servers[0].ends) == 60 + 1, what="the end of each of its connections")
    assert not [end for end in world.servers[0].ends if end.startswith("failed")]
    honest.pull(0, 0, idle=idle)
    assert torch.equal(honest.parameters[0], WEIGHT)


@pytest.mark.parametrize(
    "options", [{"lr": "x"}, {"lr": None}, {"lr": [1.0]}, {"maximize": 1.5}, {"nesterov": "yes"}, {"params": []}]
)
def test_an_option_of_another_kind_is_refused_before_anything_is_applied(world, options):
    honest = world.begun()
    push = m.Push(grants=[], epoch=0, task=0, first=0, batches=1, samples=10, skipped=False, absent=[], parts=[],
                  options={0: options}, next_epoch=0, next_task=0, values=True)  # fmt: skip
    gradients = Gradients(dense=[torch.ones(6)], tables=[])
    with pytest.raises(Exception, match="not served"):
        list(honest.push(push, gradients, idle=idle))
    honest.pull(0, 0, idle=idle)
    assert torch.equal(honest.parameters[0], WEIGHT)
