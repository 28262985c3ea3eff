"""When a job has a disruption budget: from its first trainer pod on, and as long as it has one."""

from __future__ import annotations

from shoal.operator.core.reconcile import Apply, CreatePod, Observed, reconcile
from shoal.operator.core.scaling import TrainerPod
from tests.operator.jobs import IDENTITY, job


def made(seen):
    actions = reconcile(job(), IDENTITY, seen, trainers=2)
    return [each.manifest["kind"] for each in actions if isinstance(each, Apply | CreatePod)]


def test_a_budget_is_created_after_its_pods():
    first = made(Observed(secrets=True))
    assert first.count("Pod") == 2
    assert "PodDisruptionBudget" not in first
    assert made(Observed(secrets=True, trainers=(TrainerPod(index=0, uid="a"),))).count("PodDisruptionBudget") == 1
