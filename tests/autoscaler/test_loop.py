"""The loop around the planner: its input, when it plans, and what it does with the plan."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter

import pytest

from shoal.autoscaler import loop as module
from tests.autoscaler.loops import Loop, demand, node, pod, trainer


@pytest.fixture
def loop(tmp_path):
    return Loop(tmp_path)


def test_a_job_gets_the_free_room_and_is_enqueued_once(loop):
    loop.made.on_event("Node", node("n"))
    loop.made.set_demand("a", demand("a", 1, 9))
    assert loop.made.decision("a") is None
    loop.plan()
    assert (loop.trainers("a"), loop.enqueued) == (4, ["a"])
    loop.plan()
    assert loop.enqueued == ["a"]
    assert loop.made.decision("a").reason == "no node has room for cpu 1"


def test_what_is_no_news_to_a_plan_makes_none(loop):
    plans = []

    async def live():
        loop.made_one = asyncio.Event()
        running = asyncio.create_task(loop.made.run())

        async def observe(*news):
            for each in news:
                loop.made.on_event("Node", each)
            await asyncio.sleep(0.2)
            plans.append(loop.made_one.is_set())
            loop.made_one.clear()

        await observe(node("n"))
        await observe(*(node("n", revision=revision) for revision in range(2, 9)))
        await observe(node("n", cpu="5", revision=9))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    loop.looked = asyncio.Event()
    asyncio.run(live())
    assert plans == [True, False, True]


@pytest.mark.parametrize("turns", range(5))
def test_it_ends_when_cancelled_whatever_event_arrives_then(loop, turns):
    async def live():
        loop.made_one, loop.looked = asyncio.Event(), asyncio.Event()
        running = asyncio.create_task(loop.made.run())
        await asyncio.sleep(0.05)
        loop.made.on_event("Node", node("n"))
        for _ in range(turns):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait({running}, timeout=1)
        return running.cancelled()

    assert asyncio.run(live())


def test_kept_trainers_are_reported_by_node_names(loop):
    for name in "nm":
        loop.made.on_event("Node", node(name))
    for index, where in enumerate("nnm"):
        loop.made.on_event("Pod", trainer("a", index, where))
    loop.made.set_demand("a", demand("a", 1, 3))
    loop.plan()
    assert loop.made.decision("a").kept == {"n": 2, "m": 1}


@pytest.mark.parametrize("master", ["1", "3"])
def test_servers_and_master_get_their_preferred_nodes(loop, master):
    for name in "nm":
        loop.made.on_event("Node", node(name))
    fixed = ((pod(), 4, "pserver"), (pod(cpu=master), 1, "master"))
    loop.made.set_demand("a", demand("a", 1, 9, fixed=fixed))
    loop.plan()
    decided = loop.made.decision("a")
    assert (len(decided.servers), len(decided.master)) == (4, 1)
    taken = Counter(decided.servers) + Counter(decided.added) + Counter({decided.master[0]: int(master)})
    assert dict(taken) == {"n": 4, "m": 4}
    loop.made.set_demand("b", demand("b", 0, 9))
    loop.plan()
    assert (loop.made.decision("b").servers, loop.made.decision("b").master) == ((), ())


@pytest.fixture
def waiting(loop):
    """A job for whose server and trainer another job's trainers are preempted, but have not left yet."""
    loop.made.on_event("Node", node("n"))
    for index in range(4):
        loop.made.on_event("Pod", trainer("a", index, "n"))
    loop.made.set_demand("a", demand("a", 1, 4))
    loop.made.set_demand("b", demand("b", 1, 1, fixed=((pod(), 1, "pserver"),)))
    loop.plan()
    decided = loop.made.decision("b")
    assert (loop.trainers("a"), decided.servers, decided.now, decided.servers_wait) == (2, ("n",), 0, True)
    return loop


def test_servers_wait_until_their_room_is_free_and_go_before_trainers(waiting):
    for index, soon in ((3, 0), (2, 1)):
        waiting.made.on_event("Pod", trainer("a", index, "n", revision=2), deleted=True)
        waiting.plan()
        decided = waiting.made.decision("b")
        assert (decided.servers_wait, decided.now) == (False, soon)


def test_servers_do_not_wait_for_ever_for_a_pod_that_does_not_end(waiting):
    for seconds, waits in ((10, True), (20, False)):
        waiting.clock.now += seconds
        waiting.plan()
        assert waiting.made.decision("b").servers_wait == waits


def test_servers_of_a_job_that_was_requeued_wait_again(waiting):
    # A job with an allocation is requeued after 10 s, with a back-off of 30 s.
    for least, seconds, given, waits in ((4, 1, 1, True), (4, 10, 0, False), (1, 60, 1, True)):
        waiting.clock.now += seconds
        waiting.made.set_demand("a", demand("a", least, 4))
        waiting.plan()
        assert (waiting.trainers("b"), waiting.made.decision("b").servers_wait) == (given, waits)


def test_jobs_rank_by_the_classes_of_their_minimum(loop):
    loop.made.on_event("Node", node("n"))
    for name, value in (("low", -8), ("high", -5)):
        loop.made.on_event("PriorityClass", {"metadata": {"name": name}, "value": value})
        loop.made.set_demand(name, demand(name, 1, 9), minimum=name)
    loop.plan()
    assert (loop.trainers("low"), loop.trainers("high")) == (1, 3)


def test_a_job_without_room_waits_and_one_with_pods_is_requeued_and_readmitted_late(loop):
    for name in "nm":
        loop.made.on_event("Node", node(name))
    loop.made.set_demand("new", demand("new", 9, 9))
    loop.plan()
    assert loop.trainers("new") == 0
    loop.made.set_demand("new", None)
    loop.made.set_demand("a", demand("a", 8, 8))
    loop.plan()
    assert loop.trainers("a") == 8
    for index in range(4):
        loop.made.on_event("Pod", trainer("a", index, "n"))
    loop.made.on_event("Node", node("m", revision=2), deleted=True)
    loop.plan()
    assert loop.trainers("a") == 8, "it may be temporary"
    assert loop.made.decision("a").kept is None, "a trainer that fails meanwhile is replaced on any node with room"
    loop.clock.now += 11
    loop.plan()
    assert loop.trainers("a") == 0
    for index in range(4):
        loop.made.on_event("Pod", trainer("a", index, "n", revision=2), deleted=True)
    loop.made.on_event("Node", node("m", revision=3))
    loop.plan()
    assert (loop.trainers("a"), loop.made.decision("a").reason) == (
        0,
        "its minimum found no room; in back-off before it is admitted again",
    )
    loop.clock.now += 31
    loop.plan()
    assert loop.trainers("a") == 8


def test_a_dry_run_decides_and_enqueues_no_job(tmp_path):
    loop = Loop(tmp_path, "dryRun: true\n")
    loop.made.on_event("Node", node("n"))
    loop.made.set_demand("a", demand("a", 1, 9))
    loop.plan()
    assert (loop.made.acts, loop.enqueued, loop.trainers("a")) == (False, [], 4)


def test_a_new_configuration_enqueues_every_job_and_a_bad_one_is_not_followed(loop, caplog):
    loop.made.set_demand("a", demand("a", 1, 9))
    loop.plan()
    loop.enqueued.clear()
    loop.file.write_text("dryRun: maybe\n")
    loop.plan()
    assert (loop.enqueued, loop.made.acts) == (["a"], True)
    assert "dryRun" in caplog.text
    loop.enqueued.clear()
    loop.file.write_text("movesPerCycle: 3\n")
    loop.plan()
    assert loop.enqueued[0] == "a"


def test_a_plan_that_fails_leaves_all_as_it_was(loop, monkeypatch, caplog):
    loop.made.on_event("Node", node("n"))
    loop.made.set_demand("a", demand("a", 1, 9))
    loop.plan()

    def broken(*_):
        raise ArithmeticError("a bug")

    assert loop.made.decision("a").kept is not None
    monkeypatch.setattr("shoal.autoscaler.loop.plan", broken)
    loop.plan()
    assert loop.trainers("a") == 4
    assert loop.made.decision("a").kept is None, "a failed trainer is replaced without waiting for a plan"
    assert "no plan could be made" in caplog.text
    assert loop.failures == 1


def test_a_plan_names_every_job_and_claim(loop):
    loop.made.on_event("Node", node("n"))
    loop.made.set_demand("a", demand("a", 1, 9))
    waiting = {**pod(), "metadata": {"name": "web", "namespace": "d", "uid": "w", "resourceVersion": "1"}, "status": {"phase": "Pending"}}  # fmt: skip
    loop.made.on_event("Pod", waiting)
    loop.plan()
    reported = loop.last_plan
    assert (reported.nodes, reported.usable, reported.acts, reported.problem) == (1, 1, True, "")
    assert [(each.namespace, each.name, each.trainers, each.given, each.now) for each in reported.jobs] == [
        ("d", "a", 0, 4, 4)
    ]
    loop.made.set_demand("a", demand("a", 1, 9, priority=-1))
    loop.plan()
    assert [(each.pod, each.node, each.victims) for each in loop.last_plan.claims] == [("d/web", "n", {})]
    assert loop.last_plan.jobs[0].given == 3


def test_a_listing_removes_what_was_deleted_unseen(loop):
    for name in "nm":
        loop.made.on_event("Node", node(name))
    loop.made.set_demand("a", demand("a", 1, 9))
    loop.plan()
    assert loop.trainers("a") == 8
    loop.made.listed("Node", [node("n")], revision=9)
    loop.plan()
    assert loop.trainers("a") == 4


# --- A slow plan ---

TICKS = 100


class Slow:
    """Replace the planner: compute in pure Python until the loop has made ``until`` turns, then return the real plan."""

    def __init__(self, monkeypatch, *, until=TICKS, meanwhile=lambda: None):
        self.turns = self.plans = 0
        self._until, self._meanwhile, self._real = until, meanwhile, module.plan
        monkeypatch.setattr(module, "plan", self)

    def __call__(self, *args):
        self.plans += 1
        deadline = time.monotonic() + 60
        while self.turns < self._until:
            assert time.monotonic() < deadline, "the loop is blocked while a plan is computed"
            sum(range(1000))
        return self._real(*args)

    async def live(self, loop):
        """Run the loop turn by turn until a plan is made; call ``meanwhile`` once, after half of the turns."""
        loop.made_one, loop.looked = asyncio.Event(), asyncio.Event()
        running = asyncio.create_task(loop.made.run())
        while not loop.made_one.is_set():
            await asyncio.sleep(0.001)
            self.turns += 1
            if self.turns == self._until // 2:
                self._meanwhile()
        loop.made_one.clear()
        return running


async def ended(running):
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def test_the_loop_continues_while_a_plan_is_computed(loop, monkeypatch):
    loop.made.on_event("Node", node("n"))
    loop.made.set_demand("a", demand("a", 1, 9))
    slow = Slow(monkeypatch)

    async def live():
        await ended(await slow.live(loop))

    asyncio.run(asyncio.wait_for(live(), 120))
    assert (slow.turns >= TICKS, loop.failures, loop.trainers("a"), loop.enqueued) == (True, 0, 4, ["a"])


def test_what_happens_while_a_plan_is_made_is_for_the_next_one(loop, monkeypatch):
    loop.made.on_event("Node", node("n"))
    for uid in ("a", "b", "c"):
        loop.made.set_demand(uid, demand(uid, 1, 9))

    def meanwhile():
        loop.made.set_demand("a", None)
        loop.made.set_demand("b", demand("b", 1, 2))
        loop.made.on_event("Node", node("m"))

    slow = Slow(monkeypatch, meanwhile=meanwhile)

    async def live():
        running = await slow.live(loop)
        first = {uid: loop.trainers(uid) for uid in "abc"}
        reported = [each.name for each in loop.last_plan.jobs]
        await loop.made_one.wait()
        await ended(running)
        return first, reported

    first, reported = asyncio.run(asyncio.wait_for(live(), 120))
    assert first["a"] is None, "the job is gone"
    assert first["b"] is None, "the plan was computed for another demand"
    assert first["c"] >= 1
    assert reported == ["b", "c"]
    assert (slow.plans, loop.trainers("a"), loop.trainers("b"), loop.trainers("c")) == (2, None, 2, 6)


def test_a_plan_that_was_begun_is_dropped_when_the_loop_ends(loop, monkeypatch):
    loop.made.on_event("Node", node("n"))
    loop.made.set_demand("a", demand("a", 1, 9))
    begun, enough = threading.Event(), threading.Event()
    real = module.plan

    def stuck(*args):
        begun.set()
        enough.wait(60)
        return real(*args)

    monkeypatch.setattr(module, "plan", stuck)

    async def live():
        loop.made_one, loop.looked = asyncio.Event(), asyncio.Event()
        running = asyncio.create_task(loop.made.run())
        while not begun.is_set():  # noqa: ASYNC110 - a thread sets it
            await asyncio.sleep(0.001)
        await ended(running)

    asyncio.run(asyncio.wait_for(live(), 60))
    assert all(each.daemon for each in threading.enumerate() if each.name == "plan"), "no end waits for it"
    enough.set()
    assert (loop.trainers("a"), loop.enqueued) == (None, [])
