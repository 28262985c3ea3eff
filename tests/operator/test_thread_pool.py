"""Blocking calls beside the event loop: how many threads they use, which calls get through, and which are never run."""

from __future__ import annotations

import asyncio
import threading

import pytest

from shoal.operator import thread_pool as module
from shoal.operator.endpoints import Metrics
from shoal.operator.thread_pool import blocked, run_in_thread
from shoal.store import Store, StoreClosedError, StoreUnreachableError
from tests.etcds import run_etcd

MANY = 100


def threads():
    return sum(each.name.startswith("blocking-call") for each in threading.enumerate())


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - threads set no asyncio event
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def idle():
    """Wait until the calls of earlier tests in this process have ended: all tests share the threads."""
    asyncio.run(until(lambda: blocked() == (0, 0)))


@pytest.fixture
def stuck():
    """Provide an event that hanging calls wait for; all of them have returned when the test ends."""
    enough = threading.Event()
    yield enough
    enough.set()
    asyncio.run(until(lambda: blocked() == (0, 0)))


def test_an_etcd_that_hangs_takes_no_thread_for_each_call(tmp_path):
    """Calls to an etcd that hangs use a bounded number of threads; the urgent health check and the shutdown still get through."""

    async def scenario(etcd, store):
        etcd.pause()
        calls = [
            asyncio.ensure_future(run_in_thread(lambda: store.get("/shoal/x", timeout_seconds=60))) for _ in range(MANY)
        ]
        await until(lambda: blocked().waiting == MANY - module.MOST_THREADS)
        assert threads() <= module.MOST_THREADS + module.URGENT_THREADS
        with pytest.raises(StoreUnreachableError):
            await run_in_thread(lambda: store.get("/shoal/x", timeout_seconds=0.5), urgent=True)
        assert not any(each.done() for each in calls)
        etcd.resume()
        assert await asyncio.gather(*calls) == [None] * MANY
        assert threads() <= module.MOST_THREADS + module.URGENT_THREADS
        await run_in_thread(store.close, urgent=True)

    with run_etcd(tmp_path) as etcd, Store.connect(etcd.endpoint, prefix="/shoal/") as store:
        asyncio.run(scenario(etcd, store))


def test_the_end_of_the_process_gets_through_while_all_calls_hang(tmp_path):
    """Closing the store ends all calls, those that hang and those that wait."""

    async def scenario(etcd, store):
        etcd.pause()
        calls = [asyncio.ensure_future(run_in_thread(lambda: store.get("/shoal/x"))) for _ in range(MANY)]
        await until(lambda: blocked().waiting == MANY - module.MOST_THREADS)
        await run_in_thread(store.close, urgent=True)
        found = await asyncio.gather(*calls, return_exceptions=True)
        etcd.resume()
        return found

    with run_etcd(tmp_path) as etcd, Store.connect(etcd.endpoint, prefix="/shoal/") as store:
        found = asyncio.run(scenario(etcd, store))
    assert {type(each) for each in found} == {StoreClosedError}
    asyncio.run(until(lambda: blocked() == (0, 0)))


def test_a_call_that_is_cancelled_before_it_begins_is_never_run(stuck):
    ran = []

    async def scenario():
        busy = [asyncio.ensure_future(run_in_thread(stuck.wait)) for _ in range(module.MOST_THREADS)]
        await until(lambda: blocked().running == module.MOST_THREADS)
        waiting = asyncio.ensure_future(run_in_thread(lambda: ran.append("cancelled")))
        last = asyncio.ensure_future(run_in_thread(lambda: ran.append("last")))
        await until(lambda: blocked().waiting == 2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert blocked() == (1, module.MOST_THREADS)
        stuck.set()
        await last
        await asyncio.gather(*busy)

    asyncio.run(scenario())
    assert ran == ["last"]


def test_a_call_that_waits_for_a_thread_too_long_fails_as_one_that_etcd_does_not_answer(stuck, monkeypatch):
    monkeypatch.setattr(module, "QUEUE_TIMEOUT_SECONDS", 0.2)
    ran = []

    async def scenario():
        busy = [asyncio.ensure_future(run_in_thread(stuck.wait)) for _ in range(module.MOST_THREADS)]
        await until(lambda: blocked().running == module.MOST_THREADS)
        with pytest.raises(StoreUnreachableError, match="all 16 threads"):
            await run_in_thread(lambda: ran.append("late"))
        stuck.set()
        await asyncio.gather(*busy)
        return await run_in_thread(lambda: "it goes on")

    assert asyncio.run(scenario()) == "it goes on"
    assert not ran


def test_a_call_whose_waiter_was_cancelled_ends_in_its_thread(stuck):
    """The process does not wait for a thread whose call was cancelled."""

    async def scenario():
        call = asyncio.ensure_future(run_in_thread(stuck.wait))
        await until(lambda: blocked().running == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(scenario())
    assert all(each.daemon for each in threading.enumerate() if each.name.startswith("blocking-call"))


def test_an_error_of_the_call_is_raised_where_it_is_waited_for():
    with pytest.raises(ZeroDivisionError):
        asyncio.run(run_in_thread(lambda: 1 // 0))
    assert asyncio.run(run_in_thread(lambda: 1)) == 1


def test_running_and_waiting_calls_are_counted(stuck):
    metrics = Metrics(list)

    async def scenario():
        calls = [asyncio.ensure_future(run_in_thread(stuck.wait)) for _ in range(module.MOST_THREADS + 3)]
        await until(lambda: blocked() == (3, module.MOST_THREADS))
        text = metrics.text().decode()
        assert "shoal_operator_blocking_calls_waiting 3.0" in text
        assert f"shoal_operator_blocking_calls_running {module.MOST_THREADS}.0" in text
        stuck.set()
        await asyncio.gather(*calls)

    asyncio.run(scenario())


def test_where_the_machine_has_no_thread_more_those_that_there_are_serve(stuck, monkeypatch):
    threads_of_few = module._Threads(4)
    monkeypatch.setattr(module, "_ordinary", threads_of_few)

    class NoThread(threading.Thread):
        def start(self):
            raise RuntimeError("can't start new thread")

    async def scenario():
        with monkeypatch.context() as machine:
            machine.setattr(threading, "Thread", NoThread)
            with pytest.raises(RuntimeError):
                await run_in_thread(lambda: 1)
        assert await run_in_thread(lambda: 2) == 2
        with monkeypatch.context() as machine:
            machine.setattr(threading, "Thread", NoThread)
            return await asyncio.gather(*(run_in_thread(lambda number=number: number) for number in range(10)))

    assert asyncio.run(scenario()) == list(range(10))
    asyncio.run(until(lambda: blocked() == (0, 0)))
