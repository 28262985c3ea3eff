"""Pending diagnostics ask the API server why servers' and masters' pods are not created: after a delay, and seldom."""

from __future__ import annotations

import asyncio

import pytest

from shoal.kube import KubeConflictError, KubeForbiddenError
from shoal.operator.controller.missing_pods import MissingPodDiagnostics
from shoal.operator.core.reconcile import Ended, Observed, ServerPod
from tests.operator.jobs import IDENTITY, job

APPLIED = {("StatefulSet", "flights-pserver"): "x", ("Deployment", "flights-master"): "x"}
FIRST, SECOND = (ServerPod(name=f"flights-pserver-{n}", uid=f"{n}") for n in (0, 1))
MASTER = ServerPod(name="flights-master-a", uid="m")


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Api:
    """A gateway that refuses creations and records them."""

    def __init__(self):
        self.asked = []
        self.error = KubeForbiddenError("no room", reason="Forbidden")

    async def create(self, manifest, *, dry_run):
        assert dry_run
        self.asked.append(manifest["metadata"]["name"])
        if self.error is not None:
            raise self.error


@pytest.fixture
def parts():
    api, clock = Api(), Clock()
    return api, clock, MissingPodDiagnostics(api, clock=clock)


def problems(missing, *, of=None, **seen):
    observed = Observed(**{"applied": APPLIED, "servers": (FIRST, SECOND), "masters": (MASTER,)} | seen)
    errors_seen, again = asyncio.run(missing.check(of or job(), IDENTITY, observed))
    return [(each.role, each.pod, each.reason, each.message) for each in errors_seen], again


def test_no_dry_run_while_nothing_is_missing(parts):
    api, _, missing = parts
    assert problems(missing) == ([], None)
    assert problems(missing, servers=(), masters=(), applied={}) == ([], None), "controllers have had no chance"
    assert problems(missing, servers=(), masters=(), of=job(suspend=True)) == ([], None)
    assert problems(missing, servers=(), masters=(), ended=Ended("Complete")) == ([], None)
    assert api.asked == []


def test_the_first_missing_pod_of_each_role_is_checked(parts):
    api, clock, missing = parts
    assert problems(missing, servers=(FIRST,), masters=()) == ([], 1.0)
    clock.now += 1
    refused = [
        (*each, "Forbidden", "no room") for each in (("pserver", "flights-pserver-1"), ("master", "flights-master"))
    ]
    assert problems(missing, servers=(FIRST,), masters=()) == (refused, 5.0)
    clock.now += 2
    assert problems(missing, servers=(FIRST,), masters=()) == (refused, 3.0), "the problem is kept meanwhile"
    assert api.asked == ["flights-pserver-1", "flights-master"]
    clock.now += 3
    api.error = None
    assert problems(missing, servers=(FIRST,)) == ([], 10.0)
    assert problems(missing) == ([], None)


def test_a_long_wait_is_checked_rarely(parts):
    api, clock, missing = parts
    for _ in range(3600):
        problems(missing, masters=())
        clock.now += 1
    assert 60 <= len(api.asked) <= 66


def test_a_pod_created_meanwhile_is_no_problem(parts):
    api, clock, missing = parts
    api.error = KubeConflictError("it exists", reason="AlreadyExists")
    problems(missing, masters=())
    clock.now += 1
    assert problems(missing, masters=()) == ([], 5.0)
