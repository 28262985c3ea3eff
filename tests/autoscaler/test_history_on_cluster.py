"""The history of the size of a job that follows plans, on a real control plane."""

from __future__ import annotations

import pytest

from tests.autoscaler.worlds_on_cluster import TWO_NODES, apply, trainers

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]


def changes(job):
    return [(each["before"], each["after"], each["cause"], each["by"]) for each in job.status().get("history", [])]


def test_the_history_names_the_autoscaler_and_who_pinned_suspended_and_resumed_the_job(world):
    job = world.j
    apply(job, 2, 20)
    trainers(job, TWO_NODES)
    no_room = "no node has room for cpu 1, memory 64Mi"
    job.until(lambda: changes(job) and changes(job)[-1][1:] == (TWO_NODES, no_room, "autoscaler"), "its size")
    assert {by for *_, by in changes(job)} == {"autoscaler"}
    before = len(changes(job))
    job.scale(3)
    job.until(lambda: changes(job)[before:] == [(TWO_NODES, 3, "pinned by spec.trainer.replicas", "scale")], "the pin")
    job.patch({"suspend": True})
    job.until(lambda: changes(job)[-1] == (3, 0, "suspended", "kubectl-patch"), "the suspension")
    job.state("Suspended")
    job.patch({"suspend": False})
    job.until(lambda: changes(job)[-1] == (0, 3, "resumed", "kubectl-patch"), "the resumption")
    job.patch({"trainer": {"replicas": None}})
    job.until(lambda: changes(job)[-1] == (3, TWO_NODES, no_room, "autoscaler"), "its size without the pin")
