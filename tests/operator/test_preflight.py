"""What the preflight requests from the API server before a job is accepted, and how often."""

from __future__ import annotations

import asyncio

import pytest

from shoal.kube import KubeForbiddenError, KubeInvalidError
from shoal.operator.controller.preflight import Preflight
from shoal.operator.core.reconcile import Observed
from tests.operator.jobs import IDENTITY, job


class Asked:
    """A gateway that records and counts requests."""

    def __init__(self):
        self.dry = []
        self.got = []
        self.at_once = self.most = 0
        self.there = {}
        self.error = None

    async def create(self, manifest, *, dry_run):
        assert dry_run
        self.dry.append(manifest["metadata"]["labels"]["shoal.dev/role"])
        if self.error is not None:
            raise self.error

    async def get(self, kind, name, *, namespace):
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        self.got.append((kind, name))
        return self.there.get((kind, name))


@pytest.fixture
def kube():
    return Asked()


def refused(checker, of, seen=None):
    return asyncio.run(checker.refused(of, IDENTITY, seen or Observed()))


def test_the_same_pods_are_checked_once(kube):
    checker = Preflight(kube)
    assert refused(checker, job()) == ""
    assert kube.dry == ["trainer", "pserver", "master"]
    assert refused(checker, job(trainer={"minReplicas": 2, "maxReplicas": 9, "replicas": 5})) == ""
    assert len(kube.dry) == 3, "only the number of trainers is another"
    assert refused(checker, job(image="example.org/train:2")) == ""
    assert len(kube.dry) == 6
    checker.forget(IDENTITY.uid)
    refused(checker, job(image="example.org/train:2"))
    assert len(kube.dry) == 9


@pytest.mark.parametrize("kind", [KubeInvalidError, KubeForbiddenError])
def test_refused_pods_are_checked_again(kube, kind):
    checker = Preflight(kube)
    kube.error = kind("not like this")
    assert ("not like this" in refused(checker, job())) is (kind is KubeInvalidError)
    kube.error, asked = None, len(kube.dry)
    assert refused(checker, job()) == ""
    assert len(kube.dry) == asked + 3


def test_names_are_read_concurrently_and_only_unknown_ones(kube):
    checker = Preflight(kube)
    refused(checker, job())
    assert kube.most == len(kube.got) > 3
    kube.got.clear()
    refused(checker, job(), Observed(applied={("ConfigMap", "flights-job"): "x"}))
    assert ("ConfigMap", "flights-job") not in kube.got


def test_a_name_that_is_taken(kube):
    kube.there["Service", "flights-master"] = {"metadata": {"name": "flights-master"}}
    assert refused(Preflight(kube), job()).startswith("NameTaken: Service flights-master exists")
