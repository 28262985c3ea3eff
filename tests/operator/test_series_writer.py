"""The writer of logged values: when it writes a job's ConfigMap, and what it never touches."""

from __future__ import annotations

import asyncio
import logging
from itertools import count

import msgspec
import pytest

from shoal.api.metric_series import MetricSeries
from shoal.kube import KubeConflictError, KubeForbiddenError, KubeGoneError, KubeUnreachableError
from shoal.operator.core.reconcile import Ended
from shoal.operator.status import series_writer
from shoal.operator.status.series_writer import MOST_WAITING, SeriesWriter
from shoal.store import DesiredState, ReportedScore
from tests.operator.looks import published

UID = "0b1e6c4a-0000-4000-8000-000000000001"
JOB = {
    "apiVersion": "shoal.dev/v1alpha1", "kind": "TrainingJob",
    "metadata": {"name": "flights", "namespace": "team", "uid": UID},
}  # fmt: skip


class Cluster:
    """An API server with ConfigMaps only; a request fails with the next error of `errors`."""

    def __init__(self):
        self.maps, self.errors, self.requests = {}, [], []
        self._uids = count()

    def _ask(self, verb):
        self.requests.append(verb)
        if self.errors:
            error = self.errors.pop(0)
            if error is not None:
                raise error

    async def get(self, kind, name, *, namespace):
        assert kind == "ConfigMap"
        self._ask("get")
        return self.maps.get((namespace, name))

    async def create(self, manifest):
        self._ask("create")
        metadata = manifest["metadata"] | {"uid": f"map-{next(self._uids)}"}
        key = metadata["namespace"], metadata["name"]
        if key in self.maps:
            raise KubeConflictError("exists", reason="AlreadyExists")
        self.maps[key] = manifest | {"metadata": metadata}

    async def change(self, kind, name, change, *, uid, namespace):
        self._ask("patch")
        found = self.maps.get((namespace, name))
        if found is None:
            raise KubeGoneError("not found")
        if found["metadata"]["uid"] != uid:
            raise KubeConflictError("another uid")
        found["data"] = found["data"] | change["data"]

    @property
    def records(self):
        found = self.maps.get(("team", "flights-metrics"))
        return msgspec.json.decode(found["data"]["metrics.json"]) if found is not None else None


class Life:
    """A writer whose checks follow each other without a pause."""

    def __init__(self, cluster, jobs, pause=0.0):
        self.cluster = cluster
        self.writer = SeriesWriter(cluster, jobs.get, pause_seconds=pause)
        self.samples = count(10, 10)

    def report(self, uid=UID, **more):
        values = {"loss": 1.0} if not more.keys() & {"values", "scores"} else {}
        self.writer.reported(uid, published(**{"samples": next(self.samples), "values": values, **more}))

    async def turns(self, number=20):
        for _ in range(number):
            await asyncio.sleep(0)


@pytest.fixture
def cluster():
    return Cluster()


@pytest.fixture
def jobs():
    return {UID: JOB}


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch):
    monkeypatch.setattr(series_writer, "_CHECK_SECONDS", 0.0)


def lives(cluster, jobs, story, *, pause=0.0, leads=True):
    async def live():
        made = Life(cluster, jobs, pause)
        running = asyncio.create_task(made.writer.run()) if leads else None
        await made.turns()
        try:
            await story(made)
            assert running is None or not running.done()
        finally:
            if running is not None:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    asyncio.run(live())


def test_the_values_are_in_a_config_map_that_belongs_to_the_job(cluster, jobs):
    async def story(made):
        made.report(epoch=1, epochs=3, samples=640, values={"loss": 0.5})
        await made.turns()

    lives(cluster, jobs, story)
    (record,) = cluster.records
    assert {key: record[key] for key in ("epoch", "samples", "loss")} == {"epoch": 2, "samples": 640, "loss": 0.5}
    (written,) = cluster.maps.values()
    assert (written["apiVersion"], written["kind"]) == ("v1", "ConfigMap")
    (owner,) = written["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"], owner["controller"]) == ("TrainingJob", "flights", UID, True)
    labels = written["metadata"]["labels"]
    assert labels["shoal.dev/job"] == "flights"
    assert "shoal.dev/uid" not in labels, "the informers do not follow it"


def test_scores_are_records_of_their_epoch(cluster, jobs):
    async def story(made):
        made.report(epoch=1, epochs=2, values={"loss": 0.5}, scores=[ReportedScore(0, {"score": 0.7})])
        await made.turns()
        made.report(
            epoch=1,
            epochs=2,
            values={"loss": 0.4},
            scores=[ReportedScore(0, {"score": 0.7}), ReportedScore(2, {"score": 0.9})],
        )
        await made.turns()

    lives(cluster, jobs, story)
    assert [(each["epoch"], each["score"]) for each in cluster.records if "score" in each] == [(1, 0.7), (2, 0.9)]


def test_a_job_is_written_at_most_once_in_a_pause_and_at_its_end(cluster, jobs):
    async def story(made):
        made.report()
        await made.turns()
        made.report()
        made.report()
        await made.turns()
        assert cluster.requests == ["get", "create"]
        made.writer.reported(UID, Ended("Complete"))
        await made.turns()
        assert cluster.requests == ["get", "create", "get", "patch"]
        made.report(state="Complete")
        await made.turns()

    lives(cluster, jobs, story, pause=3600.0)
    assert [each["samples"] for each in cluster.records] == [10, 20, 30, 40]


def test_a_report_without_news_causes_no_request(cluster, jobs):
    async def story(made):
        made.report(samples=7)
        await made.turns()
        before = list(cluster.requests)
        made.report(samples=7, moved=5.0, rate=3.0, trainers=[1])
        made.report(values={}, scores=[])
        made.writer.reported(UID, DesiredState())
        await made.turns()
        assert cluster.requests == before

    lives(cluster, jobs, story)


def test_a_writer_that_takes_over_continues_the_series(cluster, jobs):
    async def first(made):
        made.report(samples=10, scores=[ReportedScore(0, {"score": 0.7})], values={"loss": 0.5})
        await made.turns()

    async def second(made):
        made.report(samples=10, scores=[ReportedScore(0, {"score": 0.7})], values={"loss": 0.5})
        await made.turns()
        assert cluster.requests[-1] == "get", "what the predecessor wrote is not written again"
        made.report(samples=20, values={"loss": 0.4})
        await made.turns()

    lives(cluster, jobs, first)
    lives(cluster, jobs, second)
    assert [each["samples"] for each in cluster.records] == [10, 10, 20]


def test_an_operator_that_stands_by_keeps_the_last_report_only(cluster, jobs):
    async def story(made):
        for _ in range(100):
            made.report()
        await made.turns()
        assert cluster.requests == []
        running = asyncio.create_task(made.writer.run())
        await made.turns()
        running.cancel()

    lives(cluster, jobs, story, leads=False)
    assert [each["samples"] for each in cluster.records] == [1000]


@pytest.mark.parametrize(
    "errors",
    [
        [KubeUnreachableError("away")],
        [None, KubeForbiddenError("no permission")],
        [None, KubeConflictError("exists", reason="AlreadyExists")],
        [None, KubeGoneError("namespace away")],
        [ValueError("odd")],
        [KubeUnreachableError("away")] * 5,
    ],
    ids=["read", "forbidden", "conflict", "gone", "unknown", "for-long"],
)  # fmt: skip
def test_an_error_is_logged_once_and_the_reports_are_written_later(cluster, jobs, errors, caplog):
    cluster.errors = list(errors)

    async def story(made):
        made.report()
        made.report()
        await made.turns(40)

    with caplog.at_level(logging.WARNING):
        lives(cluster, jobs, story)
    assert [each["samples"] for each in cluster.records] == [10, 20]
    assert sum("are not written" in each.message for each in caplog.records) == 1


def test_reports_that_cannot_be_written_are_bounded(cluster, jobs):
    cluster.errors = [KubeUnreachableError("away")] * 30

    async def story(made):
        for _ in range(40):
            made.report()
            made.report()
            await made.turns(1)
        await made.turns(60)

    lives(cluster, jobs, story)
    samples = [each["samples"] for each in cluster.records]
    assert samples == sorted(samples)
    assert samples[-1] == 800
    assert len(samples) <= MOST_WAITING + 20


@pytest.mark.parametrize("owner", [None, "another-uid"])
def test_a_config_map_that_is_not_of_the_job_is_never_changed(cluster, jobs, owner, caplog):
    references = [{"kind": "TrainingJob", "name": "flights", "uid": owner, "controller": True}] if owner else []
    foreign = {
        "metadata": {"uid": "mine", "ownerReferences": references},
        "data": {"metrics.json": "[]", "key": "value"},
    }
    cluster.maps["team", "flights-metrics"] = foreign

    async def story(made):
        made.report()
        await made.turns()
        assert set(cluster.requests) == {"get"}
        assert foreign["data"] == {"metrics.json": "[]", "key": "value"}
        del cluster.maps["team", "flights-metrics"]
        await made.turns()

    with caplog.at_level(logging.WARNING):
        lives(cluster, jobs, story)
    assert "ConfigMap team/flights-metrics exists and is not of this job; remove it" in caplog.text
    assert [each["samples"] for each in cluster.records] == [10]


@pytest.mark.parametrize("text", ["no JSON", "[1, {}]", "{}"])
def test_a_config_map_that_cannot_be_read_begins_anew(cluster, jobs, text):
    async def story(made):
        made.report()
        await made.turns()
        cluster.maps["team", "flights-metrics"]["data"]["metrics.json"] = text
        made.report()
        await made.turns()

    lives(cluster, jobs, story)
    assert [each["samples"] for each in cluster.records] == [20]


def test_a_job_that_was_deleted_is_forgotten(cluster, jobs):
    async def story(made):
        jobs[UID] = JOB | {"metadata": JOB["metadata"] | {"deletionTimestamp": "now"}}
        made.report()
        await made.turns()
        assert cluster.requests == []
        del jobs[UID]
        made.report()
        await made.turns()
        assert cluster.requests == []
        assert made.writer._jobs == {}

    lives(cluster, jobs, story)


def test_the_stored_series_is_bounded(cluster, jobs):
    async def story(made):
        for _ in range(700):
            made.report()
            await made.turns(4)

    lives(cluster, jobs, story)
    assert len(cluster.records) <= 500
    assert MetricSeries(cluster.records).records == cluster.records
