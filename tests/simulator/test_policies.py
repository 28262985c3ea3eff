"""The rules of the baseline policies, in small hand-made cases."""

import numpy as np
import pytest

from shoal.autoscaler.planner.model import Nodes, PendingPod, PlannerJob, Shapes, Snapshot
from shoal.simulator import POLICIES, ObservedWorld, PolicyView, Trigger
from shoal.simulator.policies.ancestor import Ancestor
from shoal.simulator.policies.fixed import Fixed
from shoal.simulator.policies.gang import Gang

RESOURCES = ("cpu", "memory", "example.com/gpu", "pods")


def job(uid: str, low: int, high: int, *, held=None, shape: int = 0, **more) -> PlannerJob:
    return PlannerJob(uid=uid, name=uid, priority=-5, min=low, max=high, shape=shape, held=held or {}, **more)


def seen(desired: int, *, pending: int = 0, leaving: int = 0) -> ObservedWorld:
    return ObservedWorld(desired=desired, running=desired - pending, pending=pending, leaving=leaving)


def view(
    *jobs: PlannerJob, free, known=None, nodes=(100,), requested: int | None = None, shapes=((1, 1, 0),), pending=()
) -> PolicyView:
    """Build a view from the cores of the nodes and what is free on each; every shape is (cores, memory, GPUs)."""
    rows = np.array([[1000 * cores, 1000, 8, 110] for cores in nodes], dtype=np.int64)
    open_rows = np.array([[1000 * cores, 1000, 8, 110] for cores in free], dtype=np.int64)
    request = np.array([[1000 * cores, memory, gpus, 1] for cores, memory, gpus in shapes], dtype=np.int64)
    count = len(nodes)
    snapshot = Snapshot(
        now=0.0,
        resources=RESOURCES,
        nodes=Nodes(
            names=tuple(map(str, range(count))),
            room=open_rows,
            leaving=np.zeros_like(rows),
            usable=np.ones(count, dtype=np.bool_),
            group=np.zeros(count, dtype=np.int64),
            total=rows.sum(axis=0),
        ),
        shapes=Shapes(request=request, fits=np.ones((len(shapes), 1), dtype=np.bool_)),
        jobs=jobs,
        pending=pending,
    )
    taken = (rows - open_rows).sum(axis=0)
    if requested is not None:
        taken[0] = 1000 * requested
    return PolicyView(
        snapshot=snapshot,
        seen={each.uid: (known or {}).get(each.uid, seen(0)) for each in jobs},
        allocatable=rows,
        free=open_rows,
        requested=taken,
    )


def counts(rule, seen_view: PolicyView) -> dict[str, int]:
    return {uid: decision.trainers for uid, decision in rule.decide(seen_view).items()}


class TestAncestor:
    def test_a_new_job_begins_with_its_minimum(self):
        assert counts(Ancestor(), view(job("a", 3, 9), free=[100])) == {"a": 3}

    def test_a_job_that_runs_grows_to_its_maximum_where_there_is_room(self):
        assert counts(Ancestor(), view(job("a", 3, 9), known={"a": seen(3)}, free=[97])) == {"a": 9}

    def test_growth_ends_at_97_percent_of_all_cpu(self):
        assert counts(Ancestor(), view(job("a", 1, 99), known={"a": seen(90)}, free=[10])) == {"a": 97}

    def test_the_least_fulfilled_is_served_first(self):
        jobs = (job("a", 1, 11), job("b", 1, 21))
        known = {"a": seen(6), "b": seen(1)}
        assert counts(Ancestor(), view(*jobs, known=known, free=[4])) == {"a": 6, "b": 2}

    def test_each_gets_one_in_each_pass(self):
        jobs = (job("a", 1, 11), job("b", 1, 21))
        known = {"a": seen(6), "b": seen(1)}
        assert counts(Ancestor(), view(*jobs, known=known, free=[17])) == {"a": 11, "b": 10}

    def test_of_equally_fulfilled_ones_small_trainers_come_first(self):
        jobs = (job("gpu", 1, 5, shape=1), job("big", 1, 5, shape=2), job("small", 1, 5))
        known = {each.uid: seen(1) for each in jobs}
        shapes = ((1, 1, 0), (1, 1, 1), (2, 1, 0))
        assert counts(Ancestor(), view(*jobs, known=known, free=[4], shapes=shapes)) == {"gpu": 1, "big": 1, "small": 2}

    def test_above_97_percent_the_most_fulfilled_gives_first_and_none_below_its_minimum(self):
        jobs = (job("a", 2, 12), job("b", 2, 12))
        known = {"a": seen(8), "b": seen(4)}
        assert counts(Ancestor(), view(*jobs, known=known, free=[0], requested=98)) == {"a": 7, "b": 4}
        assert counts(Ancestor(), view(*jobs, known=known, free=[0], requested=102)) == {"a": 5, "b": 2}
        assert counts(Ancestor(), view(*jobs, known=known, free=[0], requested=200)) == {"a": 2, "b": 2}

    def test_a_job_above_its_maximum_shrinks(self):
        assert counts(Ancestor(), view(job("a", 1, 4), known={"a": seen(7)}, free=[50])) == {"a": 4}

    def test_no_node_has_room_though_the_cluster_has(self):
        known = {"a": seen(1)}
        assert counts(
            Ancestor(), view(job("a", 1, 9, shape=0), known=known, nodes=(5, 5), free=[2, 2], shapes=((3, 1, 0),))
        ) == {"a": 1}

    @pytest.mark.parametrize("problem", [{"pending": 1}, {"leaving": 1}])
    def test_jobs_with_a_pending_or_leaving_trainer_are_skipped(self, problem):
        known = {"a": seen(3, **problem), "b": seen(3)}
        assert counts(Ancestor(), view(job("a", 1, 9), job("b", 1, 9), known=known, free=[90])) == {"b": 9}

    def test_every_job_is_considered_if_one_has_only_pending_trainers(self):
        known = {"a": seen(3, pending=1), "b": seen(3, pending=3)}
        assert counts(Ancestor(), view(job("a", 1, 9), job("b", 1, 9), known=known, free=[90])) == {"a": 9, "b": 9}

    def test_jobs_of_a_fixed_size_are_left_alone(self):
        assert counts(Ancestor(), view(job("a", 3, 3), known={"a": seen(3)}, free=[0], requested=99)) == {}

    def test_the_pods_of_new_jobs_count_as_requested(self):
        jobs = (job("a", 1, 9), job("new", 4, 9, fixed=((0, 2),)))
        assert counts(Ancestor(), view(*jobs, known={"a": seen(1)}, free=[10])) == {"new": 4, "a": 2}

    def test_it_is_triggered_by_events_of_jobs_only(self):
        assert Ancestor.triggers == {Trigger.JOB}
        assert not Ancestor().scheduler_evicts


class TestFixed:
    def test_all_is_asked_for_at_once(self):
        assert counts(Fixed(), view(job("a", 1, 9), job("b", 2, 4), free=[0])) == {"a": 9, "b": 4}


class TestGang:
    def test_all_or_nothing_in_order_and_none_overtakes(self):
        jobs = (job("a", 1, 6), job("b", 1, 60), job("c", 1, 1))
        assert counts(Gang(), view(*jobs, free=[50], nodes=[100])) == {"a": 6}

    def test_those_that_were_started_keep_what_they_have(self):
        known = {"a": seen(6)}
        assert counts(Gang(), view(job("a", 1, 6), job("b", 1, 2), known=known, free=[2])) == {"a": 6, "b": 2}

    def test_one_that_would_not_fit_an_empty_cluster_is_passed_over(self):
        assert counts(Gang(), view(job("a", 1, 101), job("b", 1, 2), free=[2])) == {"b": 2}

    def test_a_gang_needs_whole_trainers_on_nodes_and_room_for_its_other_pods(self):
        shapes = ((3, 1, 0), (1, 1, 0))
        small = view(job("a", 1, 2), free=[5, 5], nodes=[5, 5], shapes=shapes)
        assert Gang().decide(small)["a"].added == {0: 1, 1: 1}
        assert counts(Gang(), view(job("a", 1, 2), free=[5, 2], nodes=[5, 5], shapes=shapes)) == {}
        many = job("a", 1, 2, fixed=((1, 5),))
        assert counts(Gang(), view(many, free=[5, 5], nodes=[9, 9], shapes=shapes)) == {}

    def test_room_that_waiting_foreign_pods_will_take_is_none(self):
        waiting = (PendingPod(uid="w", name="w", shape=0, priority=0),)
        assert counts(Gang(), view(job("a", 1, 2), free=[2], pending=waiting)) == {}


def test_the_policies_are_known_by_their_names():
    assert set(POLICIES) == {"shoal", "fixed", "ancestor", "gang-fifo"}
    assert all(rule.name == name and isinstance(rule().scheduler_evicts, bool) for name, rule in POLICIES.items())
