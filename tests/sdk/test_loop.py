"""The synchronous client's event loop: it ends with its client, wherever the garbage collector finds it."""

from __future__ import annotations

import asyncio
import gc
import threading
import time

import pytest

from shoal.sdk import Client
from shoal.sdk.client import _Loop


def threads():
    return [each for each in threading.enumerate() if each.name == "shoal-client"]


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    gc.collect()
    until(lambda: not threads())
    yield
    gc.collect()
    until(lambda: not threads())


def test_a_client_that_is_closed_or_forgotten_ends_its_thread(tmp_path):
    with Client(backend="local", state=tmp_path) as client:
        assert client.list() == []
        assert len(threads()) == 1
    forgotten = Client(backend="local", state=tmp_path)
    assert forgotten.list() == []
    del forgotten


def test_a_closed_client_works_again_when_it_is_called(tmp_path):
    client = Client(backend="local", state=tmp_path)
    client.close()
    client.close()
    assert client.list() == []
    client._loop.finish(client._loop.end(client._client))


def test_an_iterator_that_is_dropped_in_the_loop_s_own_thread_is_closed_without_waiting():
    loop, closed = _Loop(), threading.Event()

    async def values():
        try:
            for number in range(10):
                yield number
        finally:
            closed.set()

    iterator = loop.iterate(values())
    assert next(iterator) == 0
    held = [iterator]
    del iterator

    async def drop():
        held.clear()
        await asyncio.sleep(0)

    loop.run(drop())
    assert closed.wait(60)

    class Nothing:
        async def close(self):
            pass

    loop.finish(loop.end(Nothing()))


def test_an_error_and_an_interrupt_reach_the_caller(tmp_path):
    loop = _Loop()

    async def fails():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        loop.run(fails())

    class Nothing:
        async def close(self):
            pass

    loop.finish(loop.end(Nothing()))
