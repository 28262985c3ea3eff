"""Connections that are half-open without TCP's notice: a waiting peer continues, and nothing of them is retained."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from shoal.protocol import messages as m
from shoal.pserver.service import ServerService
from shoal.trainer.engine.answer_timeout import AnswerTimeout
from shoal.trainer.engine.server_connection import ANSWERS
from shoal.trainer.engine.servers import ServerLost
from shoal.transport import auth, sync
from shoal.transport.acceptor import Acceptor
from shoal.transport.address import listen
from tests.etcds import eventually
from tests.proxy import Proxy
from tests.pserver.test_session import TOKEN, WEIGHT, World, idle

SERVER = auth.Identity("pserver", 0, 7)


@pytest.fixture
def proxy():
    with Proxy() as made:
        yield made


@pytest.fixture
def world(tmp_path, proxy):
    made = World("tcp", tmp_path)
    for server in made.servers:
        (address,) = server.holder.addresses
        route = proxy.route(lambda address=address: address)
        server.holder = m.Holder(index=server.holder.index, life=server.holder.life, addresses=[route.address])
    yield made
    for server in made.servers:  # half-open connections to the server never end
        for connection in server._accepted:
            connection.close()
    made.close()


@pytest.mark.parametrize("ways", [("there",), ("back",), ("there", "back")], ids="+".join)
def test_a_trainer_that_gets_no_answer_asks_again_on_a_new_connection(world, proxy, ways):
    trainer = world.begun()
    trainer.patience.lease_seconds = 0.5
    trainer.pull(0, 0, idle=idle)
    proxy.routes[0].swallow(ways, newcomers=False)
    with pytest.raises(ServerLost) as lost:
        trainer.pull(0, 0, idle=idle)
    assert sorted(lost.value.slots) == [0, 2]
    assert len(trainer.pull(0, 0, idle=idle)) == 2
    assert torch.equal(trainer.parameters[0], WEIGHT.flatten().reshape(2, 3))


def test_a_server_that_is_silent_at_every_call_is_asked_ever_more_seldom():
    patience = AnswerTimeout()
    waits = []
    for _ in range(8):
        waits.append(patience.seconds(7))
        patience.gave_up(7)
    assert waits == [10, 20, 40, 80, 160, 320, 320, 320]
    assert patience.seconds(8) == 10
    patience.response_received(7)
    assert patience.seconds(7) == 10


def test_a_trainer_that_attaches_anew_leaves_nothing_of_its_earlier_connection(tmp_path):
    world = World("tcp", tmp_path)
    world.begun()
    service = ServerService("unix:///nowhere", identity=SERVER, token=TOKEN, uid="job", folder=tmp_path)
    service.state, service.parameters = world.servers[0].state, world.servers[0].parameters
    stream, address = listen("tcp://127.0.0.1:0")
    acceptor = Acceptor([stream], identity=SERVER, token=TOKEN, job="job", serve=service._serve, failed=lambda _: None)
    acceptor.start()
    trainer, other = auth.Identity("trainer", 0, 5), auth.Identity("trainer", 1, 6)
    calls = []
    for identity in (other, trainer, trainer):
        calls.append(sync.connect(address, identity=identity, token=TOKEN, job="job"))
        calls[-1].send(m.Attach(slots=[0, 2], shared=0))
        assert isinstance(calls[-1].receive(ANSWERS)[0], m.Attached)
    eventually(lambda: sum(map(len, service._callers.values())) == 2, what="the end of the earlier connection's thread")
    for call in (calls[0], calls[2]):
        call.send(m.Pull(grants=[0, 0], epoch=0, task=0, values=False))
        assert isinstance(call.receive(ANSWERS)[0], m.PullReply)
    for call in calls:
        call.close()
    acceptor.close()
    eventually(lambda: not service._callers, what="the end of all threads")
    world.close()


def test_the_memory_of_a_trainer_that_is_gone_goes_with_it_and_waits_for_no_collector(tmp_path):
    """Both ends free it without the cycle collector, which runs at unspecified times; the memory may be gigabytes."""

    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count("/memfd:shoal")

    world = World("unix", tmp_path)
    trainer = world.begun()
    gc.collect()
    gc.disable()
    try:
        before = mappings()
        for _ in range(3):
            trainer.pull(0, 0, idle=idle)
            assert mappings() > before
            trainer.close()
        eventually(lambda: mappings() == before, what="the end of the mappings")
    finally:
        gc.enable()
        world.close()
