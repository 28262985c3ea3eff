"""Demands of jobs with invalid times or unknown classes, and what the condition Autoscaled and the metrics report."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shoal.api.plan import Plan, PlannedClaim, PlannedJob
from shoal.api.status import Reason
from shoal.operator import endpoints
from shoal.operator.controller.demands import Demands, autoscaled_condition
from shoal.operator.endpoints import Metrics
from tests.autoscaler.loops import Loop
from tests.operator.jobs import IDENTITY, job


@pytest.fixture
def loop(tmp_path):
    loop = Loop(tmp_path, "{}\n")
    loop.demands = {}
    set_demand = loop.made.set_demand

    def noted(uid, demand, **more):
        loop.demands[uid] = demand
        set_demand(uid, demand, **more)

    loop.made.set_demand = noted
    return loop


def manifest(created, generation=1):
    text = created.strftime("%Y-%m-%dT%H:%M:%SZ") if created is not None else None
    return {"metadata": {"name": "flights", "generation": generation, "creationTimestamp": text}}


def since(loop, demands, created, generation=1):
    demands.report(manifest(created, generation), job(), IDENTITY, needs_trainers=True)
    return loop.demands[IDENTITY.uid].since


# --- Times ---


def test_a_job_ranks_by_when_it_was_created(loop):
    created = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert since(loop, Demands(loop.made), created) == created.timestamp()
    assert since(loop, Demands(loop.made), None) == 0.0


@pytest.mark.parametrize("ahead", [timedelta(seconds=30), timedelta(hours=3), timedelta(days=9000)])
def test_a_creation_time_in_the_future_counts_as_now_and_is_kept(loop, ahead):
    """A creation time in the future counts as now; otherwise every job created before that time would rank higher."""
    before, demands = time.time(), Demands(loop.made)
    first = since(loop, demands, datetime.now(UTC) + ahead)
    assert before <= first <= time.time()
    assert since(loop, demands, datetime.now(UTC) + ahead, generation=2) == first, "an edit makes it no younger"
    demands.report(manifest(datetime.now(UTC) + ahead, 3), job(suspend=True), IDENTITY, needs_trainers=False)
    assert since(loop, demands, datetime.now(UTC) + ahead, generation=4) == first, "nor does a suspension"
    demands.forget(IDENTITY.uid)
    assert since(loop, demands, datetime.now(UTC) + ahead) >= first


@pytest.mark.parametrize("text", ["9999999-01-01", "2026-01-01", "now", 1e300, "0001-01-01T00:00:00+23:59", []])
def test_a_job_of_a_time_that_is_none_is_as_old_as_can_be(loop, text):
    demands = Demands(loop.made)
    demands.report({"metadata": {"name": "flights", "creationTimestamp": text}}, job(), IDENTITY, needs_trainers=True)
    assert loop.demands[IDENTITY.uid].since == 0.0


def test_a_job_of_an_unknown_class_ranks_below_all_others(loop):
    Demands(loop.made).report(manifest(None), job(), IDENTITY, needs_trainers=True)
    assert loop.demands[IDENTITY.uid].priority == -11


# --- The condition Autoscaled ---

PINNED = {"trainer": {"minReplicas": 2, "maxReplicas": 4, "replicas": 3}}


@pytest.mark.parametrize(
    ("text", "spec", "reason"),
    [
        ("{}", {}, "Following"), ("{}", PINNED, "Pinned"), ("dryRun: true", {}, "DryRun"), ("dryRun: true", PINNED, "DryRun"),
        ("enabled: false", {}, "Disabled"), ("enabled: false\ndryRun: true", PINNED, "Disabled"),
    ],
)  # fmt: skip
def test_how_a_job_is_treated(tmp_path, text, spec, reason):
    assert autoscaled_condition(Loop(tmp_path, text).made, job(**spec)) == (reason, "")
    assert autoscaled_condition(None, job(**spec)) is None


def test_a_refused_configuration_is_reported_with_its_consequence(tmp_path):
    loop = Loop(tmp_path, "dryRun: true\n")
    loop.file.write_text("dryRuns: false\ncycle: 5\n")
    loop.look()
    reason, words = autoscaled_condition(loop.made, job())
    assert reason is Reason.CONFIG_REFUSED
    assert "line 1: dryRuns: unknown field; did you mean dryRun?" in words
    assert words.endswith("; the previous configuration stays in force")
    assert "nothing is changed until it is corrected" in autoscaled_condition(loop.again(), job())[1]


# --- Metrics ---


def values(metrics):
    families = text_string_to_metric_families(metrics.text().decode())
    return {each.name: each.value for family in families for each in family.samples if not each.labels}


def test_without_an_autoscaler_its_metrics_are_absent():
    assert not [name for name in values(Metrics(list)) if name.startswith("shoal_autoscaler")]


def test_the_metrics_of_the_configuration():
    metrics = Metrics(list)
    for valid, acts in ((True, True), (False, True), (False, False), (True, False)):
        metrics.configured(valid, acts)
        found = values(metrics)
        assert (found["shoal_autoscaler_config_valid"], found["shoal_autoscaler_acts"]) == (valid, acts)


def planned(name, trainers, given, why):
    return PlannedJob("d", name, -6, trainers, given, given, 1, 9, why, "")


def test_the_metrics_of_a_plan():
    metrics = Metrics(list)
    claims = [PlannedClaim("d/web-0", "n", {"d/a": 2, "d/b": 1}), PlannedClaim("d/web-1", "n", {})]
    jobs = [planned("a", 4, 3, "AtMax"), planned("b", 2, 0, "Queued"), planned("c", 0, 0, "Queued")]
    metrics.planned(Plan("2026-01-02T03:04:05.000+00:00", 0.25, True, "", 7, 5, [], []))
    metrics.planned(Plan("2026-01-02T03:04:06.500+00:00", 0.5, True, "", 7, 5, jobs, claims, 2))
    metrics.not_planned()
    found = {name.removeprefix("shoal_autoscaler_"): value for name, value in values(metrics).items()}
    moment = datetime(2026, 1, 2, 3, 4, 6, 500_000, tzinfo=UTC).timestamp()
    wanted = {
        "plan_seconds_count": 2, "plan_seconds_sum": 0.75, "last_plan_seconds": 0.5, "plan_timestamp_seconds": moment,
        "plans_failed_total": 1, "jobs": 3, "jobs_queued": 2, "trainers": 6, "trainers_given": 3, "claims": 2, "victims": 3,
        "nodes": 7, "nodes_usable": 5, "unread": 2,
    }  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted


def test_every_metric_is_documented():
    metrics = Metrics(list)
    metrics.configured(True, True)
    reported = [line.split()[2] for line in metrics.text().decode().splitlines() if line.startswith("# HELP shoal_")]
    assert reported
    assert not [name for name in reported if f"| {name} |" not in endpoints.__doc__ and not name.endswith("_created")]
