"""For every trace and policy, no node is overcommitted, work is conserved, and the simulation ends."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from shoal.simulator import POLICIES, PolicyDecision, Rule, Simulation, Trace, load, loads, simulate
from shoal.simulator.measures import Foreign, jain
from shoal.simulator.world.cluster import Phase, PodKind
from tests.soak import examples

SLOW = [HealthCheck.too_slow]
TRACES = Path(__file__).parents[2] / "examples" / "traces"
NAMES = sorted(POLICIES)

cores = st.sampled_from(["500m", "1", "1500m", "2", "3"])
moments = st.integers(0, 60)


@st.composite
def jobs(draw, number: int) -> dict:
    low = draw(st.integers(1, 3))
    made = {
        "name": f"job-{number}",
        "arrival": draw(moments),
        "work": draw(st.integers(1, 300)),
        "min": low,
        "max": low + draw(st.integers(0, 4)),
        "request": {"cpu": draw(cores), "memory": draw(st.sampled_from(["1Gi", "3Gi"]))},
        "priority": draw(st.integers(-9, -1)),
    }
    if draw(st.booleans()):
        made["speed"] = {1: draw(st.integers(1, 5)), 4: draw(st.integers(5, 9))}
    if draw(st.booleans()):
        made["servers"] = {"count": draw(st.integers(1, 2)), "request": {"cpu": draw(cores)}}
        made["master"] = {"request": {"cpu": "250m"}}
    if draw(st.booleans()):
        made["pool"] = "big"
    return made


@st.composite
def traces(draw) -> Trace:
    nodes = [
        {"count": draw(st.integers(1, 3)), "resources": {"cpu": 4, "memory": "8Gi", "pods": draw(st.integers(2, 9))}},
        {"count": 1, "pool": "big", "resources": {"cpu": 8, "memory": "16Gi"}},
    ]
    times = sorted(draw(st.sets(moments, min_size=1, max_size=4)))
    web = {
        "name": "web",
        "request": {"cpu": draw(cores)},
        "priority": draw(st.integers(-9, 3)),
        "steps": [[time, draw(st.integers(0, 9))] for time in times],
    }
    pods = [
        {
            "name": f"pods-{number}",
            "arrival": draw(moments),
            "count": draw(st.integers(1, 3)),
            "request": {"cpu": draw(cores)},
            "priority": draw(st.integers(-9, 9)),
            "preempts": draw(st.booleans()),
        }
        | ({"lifetime": draw(st.integers(1, 40))} if draw(st.booleans()) else {})
        for number in range(draw(st.integers(0, 2)))
    ]
    return Trace.model_validate(
        {
            "nodes": nodes,
            "jobs": [draw(jobs(number)) for number in range(draw(st.integers(0, 4)))],
            "deployments": [web],
            "pods": pods,
            "start_seconds": draw(st.sampled_from([0, 1, 2.5])),
            "stop_seconds": draw(st.sampled_from([0, 2, 7])),
        }
    )


class Watcher:
    """Check the simulation after each point in time, and integrate each job's speed independently."""

    def __init__(self) -> None:
        self.done: dict[str, float] = {}
        self._rates: dict[str, float] = {}
        self._before = 0.0

    def __call__(self, world: Simulation) -> None:
        assert world.now >= self._before
        for uid, rate in self._rates.items():
            self.done[uid] = self.done.get(uid, 0.0) + rate * (world.now - self._before)
        self._before = world.now
        self._rates = {job.uid: self.speed(job) for job in world.trainings.values()}
        self.count(world)

    @staticmethod
    def speed(job) -> float:
        if job.ended is not None or any(pod.phase is not Phase.RUNNING for pod in job.other_pods.values()):
            return 0.0
        return job.spec.speed(sum(pod.phase is Phase.RUNNING for pod in job.trainers.values()))

    @staticmethod
    def count(world: Simulation) -> None:
        cluster = world.cluster
        taken = np.zeros_like(cluster.taken)
        for node, pods in enumerate(cluster.on):
            for pod in pods.values():
                assert pod.node == node
                assert pod.phase in {Phase.STARTING, Phase.RUNNING, Phase.LEAVING}
                assert world.layout.allowed[pod.shape, node]
                taken[node] += cluster.request(pod)
        assert (taken <= world.layout.allocatable).all(), "a node is too full"
        assert (taken == cluster.taken).all()
        assert (taken.sum(axis=0) == cluster.by_owner.sum(axis=0)).all()
        assert (taken == sum(cluster.by_rank.values(), np.zeros_like(taken))).all()
        bound = [pod for pods in cluster.on for pod in pods.values()]
        leaving = sum((cluster.request(pod) for pod in bound if pod.phase is Phase.LEAVING), np.zeros(taken.shape[1]))
        assert (cluster.leaving.sum(axis=0) == leaving).all()
        trainers = {pod.number for pod in bound if pod.kind is PodKind.TRAINER and pod.phase is not Phase.LEAVING}
        assert trainers == {pod.number for job in world.trainings.values() for pod in job.bound}
        for job in world.trainings.values():
            assert len(job.trainers) <= job.spec.max


@pytest.mark.parametrize("name", NAMES)
@examples(10, suppress_health_check=SLOW)
@given(trace=traces())
def test_nodes_are_never_too_full_and_work_is_conserved(name, trace):
    watcher = Watcher()
    result = simulate(trace, POLICIES[name](), watch=watcher, until=5000)
    report = result.report
    assert report.jobs == report.ended + len(report.unfinished)
    for job in result.trainings:
        assert job.done == pytest.approx(watcher.done.get(job.uid, 0.0), rel=1e-6, abs=1e-6)
        assert (job.ended is not None) == (job.uid not in report.unfinished)
        assert (job.first is None) == (job.uid in report.never_started)
        if job.ended is not None:
            assert job.done == job.spec.work
            assert job.ended - job.arrival >= job.spec.work / job.spec.speed(job.spec.max) - 1e-6
    assert set(report.fits_no_node) <= set(report.never_started) <= set(report.unfinished)
    assert all(0 <= share <= 1 + 1e-9 for share in report.requested.values())
    assert report.jain_index is None or 0 < report.jain_index <= 1 + 1e-9
    assert report.trainers_evicted <= report.trainers_stopped <= report.trainers_started


@pytest.mark.parametrize("name", NAMES)
@examples(4, suppress_health_check=SLOW)
@given(trace=traces())
def test_the_same_trace_gives_the_same_report(name, trace):
    first, second = (simulate(trace, POLICIES[name](), history=True, until=5000) for _ in range(2))
    assert first.report == second.report
    assert first.history == second.history


class Fickle(Rule):
    """A policy that demands arbitrary numbers of trainers on arbitrary nodes."""

    name = "fickle"
    scheduler_evicts = True
    surplus = True

    def __init__(self, numbers: list[int]) -> None:
        self._numbers = numbers
        self._next = 0

    def _draw(self, below: int) -> int:
        self._next += 1
        return self._numbers[self._next % len(self._numbers)] % below

    def decide(self, view) -> Mapping[str, PolicyDecision]:
        decisions = {}
        for job in view.snapshot.jobs:
            count = self._draw(job.max + 1)
            stays = {node: self._draw(held + 1) for node, held in job.held.items()} if self._draw(2) else None
            comes = {self._draw(len(view.snapshot.nodes.names)): self._draw(4)} if self._draw(2) else None
            decisions[job.uid] = PolicyDecision(trainers=count, kept=stays, added=comes)
        return decisions


@examples(20, suppress_health_check=SLOW)
@given(trace=traces(), numbers=st.lists(st.integers(0, 99), min_size=1, max_size=50))
def test_a_policy_with_invalid_decisions_breaks_nothing(trace, numbers):
    watcher = Watcher()
    result = simulate(trace, Fickle(numbers), watch=watcher, until=500)
    for job in result.trainings:
        assert job.done == pytest.approx(watcher.done.get(job.uid, 0.0), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("file", ["burst.yaml", "queue.yaml"])
def test_all_jobs_of_the_examples_end_under_every_policy(name, file):
    report = simulate(load(TRACES / file), POLICIES[name](), watch=Watcher()).report
    assert report.unfinished == ()
    assert report.foreign_unbound == 0
    assert report.makespan is not None


ALONE = """
nodes: [{resources: {cpu: 4}}]
jobs: [{name: a, arrival: 7, work: 100, min: 2, max: 2, request: {cpu: 2}, speed: {linear: 5}}]
"""


@pytest.mark.parametrize("name", NAMES)
def test_a_job_that_is_alone_takes_what_can_be_reckoned(name):
    report = simulate(loads(ALONE), POLICIES[name]()).report
    assert report.pending_mean == pytest.approx(1.1), "0.1 s of debounce, 1 s of starting"
    assert report.completion_mean == report.makespan == pytest.approx(11.1)
    assert report.requested["cpu"] == pytest.approx(11 / 11.1)
    assert (report.trainers_started, report.trainers_stopped) == (2, 0)
    assert report.jain_index is None


@pytest.mark.parametrize("name", NAMES)
def test_a_job_that_fits_no_node_is_reported_and_delays_no_other(name):
    text = ALONE + "  - {name: huge, work: 1, max: 1, request: {cpu: 5}}\n"
    report = simulate(
        loads(text.replace("jobs: [{", "jobs:\n  - {").replace("}}]\n", "}}\n").replace("cpu: 4}}", "cpu: 4}}]")),
        POLICIES[name](),
    ).report
    assert report.fits_no_node == report.never_started == report.unfinished == ("huge",)
    assert report.ended == 1
    assert report.makespan is None
    assert report.simulated < 4000


def test_a_job_of_which_nothing_can_run_does_not_go_on_for_ever():
    text = ALONE + "pods: [{name: squatter, request: {cpu: 4}}]\n"
    report = simulate(loads(text), POLICIES["fixed"]()).report
    assert report.never_started == ("a",)
    assert report.fits_no_node == ()
    assert report.simulated < 4000


def test_cycles_longer_than_the_timeout_cut_no_work_short():
    text = ALONE.replace("work: 100", "work: 100000") + "cycle_seconds: 9000\n"
    assert simulate(loads(text), POLICIES["fixed"]()).report.ended == 1


def test_it_stops_at_the_given_time():
    report = simulate(loads(ALONE), POLICIES["fixed"](), until=9).report
    assert (report.simulated, report.unfinished, report.makespan) == (9, ("a",), None)
    early = simulate(loads(ALONE), POLICIES["fixed"](), until=3).report
    assert early.never_started == ("a",)


def test_a_job_waits_for_its_servers():
    text = ALONE.replace("speed:", "servers: {count: 2, request: {example.com/disk: 1}}, speed:")
    good = simulate(loads(text.replace("cpu: 4}", "cpu: 4, example.com/disk: 2}")), POLICIES["fixed"]()).report
    assert good.completion_mean == pytest.approx(11.1)
    bad = simulate(loads(text.replace("cpu: 4}", "cpu: 4, example.com/disk: 1}")), POLICIES["fixed"]()).report
    assert bad.ended == 0
    assert bad.pending_mean == pytest.approx(1.1), "its trainers run, in vain"


def test_waits_without_an_end_are_in_no_mean():
    text = ALONE + "pods: [{name: half, request: {cpu: 2}, lifetime: 50}, {name: squatter, request: {cpu: 1}}]\n"
    text = text.replace("cpu: 2}, speed", "cpu: 4}, speed")
    report = simulate(loads(text), POLICIES["fixed"]()).report
    assert report.never_started == ("a",)
    assert report.requested["cpu"] == pytest.approx(0.75), "from 7 s on, while one pod has not ended"


def test_lone_pods_end_after_their_lifetime_and_deployments_scale_down_by_the_newest():
    text = """
    nodes: [{resources: {cpu: 4}}]
    pods: [{name: once, request: {cpu: 1}, lifetime: 10}]
    deployments: [{name: web, request: {cpu: 1}, steps: [[0, 3], [20, 1], [30, 2]]}]
    """
    seen = {}
    report = simulate(
        loads(text),
        POLICIES["fixed"](),
        watch=lambda world: seen.update({world.now: sorted(pod.number for pod in world.cluster.on[0].values())}),
    ).report
    assert seen[0.0] == [1, 2, 3, 4]
    assert seen[11.0] == [2, 3, 4]
    assert seen[22.0] == [2]
    assert seen[30.0] == [2, 5]
    assert (report.jobs, report.makespan, report.foreign) == (0, None, 5)


def test_trainers_give_way_to_pods_of_higher_priority_where_the_scheduler_evicts():
    text = """
    nodes: [{resources: {cpu: 4}}]
    jobs: [{name: a, work: 1000, min: 1, max: 4, request: {cpu: 1}}]
    pods: [{name: web, arrival: 50, count: 2, request: {cpu: 1}, priority: 0}]
    """
    fixed = simulate(loads(text), POLICIES["fixed"](), until=100).report
    assert (fixed.foreign_bound_30s, fixed.foreign_unbound) == (0.0, 2)
    shoal = simulate(loads(text), POLICIES["shoal"](), until=100).report
    assert (shoal.foreign_bound_5s, shoal.trainers_evicted) == (1.0, 2)
    assert shoal.foreign_wait_p50 == pytest.approx(2.0)


def test_evicted_pods_of_deployments_and_servers_are_recreated():
    text = """
    nodes: [{count: 2, resources: {cpu: 4}}]
    jobs: [{name: a, work: 100, min: 1, max: 1, request: {cpu: 1}, servers: {count: 1, request: {cpu: 3}}}]
    deployments: [{name: low, request: {cpu: 4}, priority: -8, steps: [[0, 1]]}]
    pods: [{name: high, arrival: 50, request: {cpu: 4}, lifetime: 20}]
    """
    report = simulate(loads(text), Fickle([1])).report
    assert report.foreign == 3
    assert report.ended == 1


def test_jains_index_is_one_for_equals_and_small_where_one_has_all():
    assert jain(np.array([2.0, 2.0, 2.0])) == 1
    assert jain(np.array([1.0, 0.0, 0.0, 0.0])) == 0.25
    assert jain(np.array([1.0])) is None
    assert jain(np.zeros(3)) is None


def test_pods_that_had_not_the_time_are_not_judged():
    waits = Foreign(waits=[1.0, 6.0], deleted_waits=[2.0, 9.0], left=[3.0])
    assert waits.within(5) == pytest.approx(1 / 3)
    assert waits.within(30) == 1
    assert Foreign().within(5) is None
