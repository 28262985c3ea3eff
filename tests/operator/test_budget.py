"""When a job has a budget: as soon as all trainers have come, or some are at work, and for as long as it stands."""

from __future__ import annotations

from shoal.operator.reconcile import Apply, CreatePod, Observed, reconcile
from shoal.operator.trainers import TrainerPod
from tests.operator.jobs import IDENTITY, job


def budgets(seen):
    actions = reconcile(job(), IDENTITY, seen, trainers=2)
    made = [each.manifest["kind"] for each in actions if isinstance(each, Apply | CreatePod)]
    return made.count("PodDisruptionBudget")


def test_a_budget_comes_after_the_pods_that_it_is_for():
    one, two = TrainerPod(index=0, uid="a"), TrainerPod(index=1, uid="b")
    assert budgets(Observed(secrets=True)) == 0
    assert budgets(Observed(secrets=True, trainers=(one,))) == 0, "another one is made in the same look"
    assert budgets(Observed(secrets=True, trainers=(one, two))) == 1


def test_whoever_is_at_work_is_protected_though_others_cannot_come():
    works = TrainerPod(index=0, uid="a", ready=True, works=True)
    assert budgets(Observed(secrets=True, trainers=(works,))) == 1
