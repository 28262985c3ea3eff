"""The stand-in for the kube-scheduler: which pods it binds to which nodes, and which pods it preempts."""

import pytest

from shoal.simulator import loads
from shoal.simulator.world.cluster import Cluster, Phase, Pod, PodKind, rank_of
from shoal.simulator.world.layout import Layout
from shoal.simulator.world.scheduler import Scheduler


class Bench:
    """Nodes of 4 cores, and pods of 1, 2 or 4 cores; a trainer belongs to job 0 unless ``owner`` is given."""

    def __init__(self, nodes: int = 2, budgets=None) -> None:
        trace = loads(
            f"nodes: [{{count: {nodes}, resources: {{cpu: 4}}}}]\n"
            "pods: [{name: a, request: {cpu: 1}}, {name: b, request: {cpu: 2}}, {name: c, request: {cpu: 4}}]"
        )
        self.cluster = Cluster(Layout(trace), owners=3)
        self.victims: list[Pod] = []
        self.budgets = budgets or {0: 99, 1: 99}
        self.scheduler = Scheduler(self.cluster, evict=self._evict, budgets=lambda: self.budgets)

    def _evict(self, pod: Pod) -> None:
        self.victims.append(pod)
        self.cluster.begin_deletion(pod)

    def pod(self, cores: int, *, priority: int = 0, kind: PodKind = PodKind.FOREIGN, owner: int = 2, **more) -> Pod:
        number = self.cluster.number()
        pod = Pod(
            number=number,
            name=str(number),
            kind=kind,
            owner=owner,
            shape={1: 0, 2: 1, 4: 2}[cores],
            rank=rank_of(priority, kind),
            priority=priority,
            created=0.0,
            preempts=more.pop("preempts", kind is PodKind.FOREIGN),
            **more,
        )
        self.cluster.add(pod)
        return pod

    def trainer(self, cores: int, *, node: int, priority: int = -5, owner: int = 0, at: float = 0.0) -> Pod:
        pod = self.pod(cores, priority=priority, kind=PodKind.TRAINER, owner=owner)
        self.cluster.bind(pod, node, at)
        pod.phase = Phase.RUNNING
        return pod

    def run(self) -> list[Pod]:
        return self.scheduler.run(10.0)


def test_higher_priorities_are_bound_first_then_the_older():
    bench = Bench(nodes=1)
    low, old, young, high = (bench.pod(2, priority=priority, preempts=False) for priority in (-9, 0, 0, 5))
    assert bench.run() == [high, old]
    assert (young.phase, low.refused) == (Phase.PENDING, 10.0)


def test_pods_go_where_most_is_taken_or_where_their_creator_prefers():
    bench = Bench()
    bench.trainer(1, node=1)
    full = bench.pod(2)
    hinted = bench.pod(1, preferred_node=0)
    bench.run()
    assert (full.node, hinted.node) == (1, 0)


def test_the_fewest_victims_of_the_lowest_priority_give_way():
    bench = Bench(nodes=3)
    for _ in range(4):
        bench.trainer(1, node=0, priority=-9)
    higher = bench.trainer(4, node=1, priority=-2)
    lower = [bench.trainer(2, node=2, priority=-9) for _ in range(2)]
    pod = bench.pod(2)
    assert bench.run() == []
    assert bench.victims == [lower[1]], "one of two cores rather than two of one, and the newer one"
    assert pod.nominated == 2
    assert higher.phase is Phase.RUNNING


def test_no_pod_is_evicted_twice_for_one_pod():
    bench = Bench()
    bench.trainer(4, node=0)
    bench.trainer(4, node=1)
    bench.pod(4)
    bench.run()
    bench.run()
    assert len(bench.victims) == 1


def test_room_that_is_being_made_is_not_given_to_others():
    bench = Bench(nodes=1)
    victim = bench.trainer(4, node=0)
    urgent = bench.pod(4, priority=9)
    bench.run()
    bench.cluster.remove(victim)
    late = bench.pod(1, priority=5)
    trainer = bench.pod(1, priority=-5, kind=PodKind.TRAINER, owner=0)
    assert bench.run() == [urgent]
    assert (late.phase, trainer.phase) == (Phase.PENDING, Phase.PENDING)


def test_equal_priority_and_a_never_policy_evict_nothing():
    bench = Bench(nodes=1)
    bench.trainer(4, node=0, priority=0)
    bench.pod(4, priority=0)
    bench.pod(4, priority=5, preempts=False)
    assert bench.run() == []
    assert bench.victims == []


def test_budgets_are_kept_where_others_can_give_way():
    bench = Bench(nodes=2, budgets={0: 0, 1: 1})
    bench.trainer(4, node=0, priority=-9, owner=0)
    spared = bench.trainer(4, node=1, priority=-2, owner=1)
    bench.pod(4)
    bench.run()
    assert bench.victims == [spared]


def test_a_pod_that_fits_nowhere_evicts_nothing():
    bench = Bench(nodes=1)
    bench.trainer(4, node=0, priority=9)
    pod = bench.pod(4, priority=5)
    bench.run()
    assert (bench.victims, pod.nominated) == ([], -1)


@pytest.mark.parametrize("cores", [1, 2, 4])
def test_terminating_pods_occupy_their_room_until_they_are_removed(cores):
    bench = Bench(nodes=1)
    victim_ = bench.trainer(4, node=0)
    bench.cluster.begin_deletion(victim_)
    pod = bench.pod(cores, preempts=False)
    assert bench.run() == []
    bench.cluster.remove(victim_)
    assert bench.run() == [pod]
    assert not bench.cluster.leaving.any()
