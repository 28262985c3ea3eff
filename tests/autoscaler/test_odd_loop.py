"""Invalid or unusual input to the loop: unreadable amounts, edits of running jobs, refused configurations, clocks, and
deleted PriorityClasses."""

from __future__ import annotations

import inspect
import logging
import time

import pytest

from shoal.autoscaler.loop import Autoscaler
from tests.autoscaler.loops import Loop, demand, node, pod, trainer


@pytest.fixture
def loop(tmp_path):
    return Loop(tmp_path)


def asking(**requests):
    """Return a pod with these requests."""
    return {"spec": {"containers": [{"name": "trainer", "resources": {"requests": requests}}]}}


def warnings(caplog):
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


# --- Quantities ---


@pytest.mark.parametrize(
    ("cpu", "trainers"),
    [
        ("4", 4), (4, 4), ("4000m", 4), ("4.9", 4), ("0.5", 0), ("5e-1", 0), (".004k", 4), ("4e0", 4), ("0.4E1", 4), ("3999m", 3),
        ("4000000u", 4), ("4000000000n", 4), ("+4", 4), ("4.", 4), ("0", 0), (4.0, 4), ("0.004Ki", 4), ("1Ki", 20),
        ("1e3", 20), ("12E2", 20), ("1k", 20), ("2M", 20), ("1.5Gi", 20), ("1E", 20), ("1Ei", 20), ("9" * 60, 20),
    ],
)  # fmt: skip
def test_a_nodes_amounts_in_every_legal_form(loop, cpu, trainers, caplog):
    loop.made.on_event("Node", node("n", cpu=cpu))
    loop.made.set_demand("a", demand("a", 1, 20))
    loop.plan()
    assert loop.trainers("a") == trainers
    assert warnings(caplog) == []


ILLEGAL = ["four", "-4", "", " 4", "4 CPUs", "0x4", "nan", "1e", None, True, [], {}, -4, float("inf"), "4" * 200]


@pytest.mark.parametrize("cpu", ILLEGAL, ids=[repr(each)[:9] for each in ILLEGAL])
def test_a_node_with_an_invalid_amount_gets_no_pod_that_requests_it(loop, cpu, caplog):
    loop.made.on_event("Node", node("bad", cpu=cpu))
    loop.made.on_event("Node", node("n"))
    loop.made.set_demand("a", demand("a", 1, 20))
    loop.made.set_demand("memory", demand("memory", 1, 1, trainer=asking(memory="12Gi")))
    loop.made.set_demand("more", demand("more", 1, 1, trainer=asking(memory="12Gi")))
    loop.plan()
    loop.plan()
    assert loop.trainers("a") == 4, "of the good node"
    assert (loop.trainers("memory"), loop.trainers("more")) == (1, 1), "one of them where the CPUs are not known"
    reported = warnings(caplog)
    assert len(reported) == 1, "once"
    assert reported[0].startswith("Node bad: status.allocatable.cpu: ")
    assert reported[0].endswith("; values that cannot be read count as 0")
    assert loop.last_plan.unread == 1
    loop.made.on_event("Node", node("bad", revision=2))
    loop.plan()
    assert (loop.trainers("a"), loop.last_plan.unread) == (8, 0)
    loop.made.on_event("Node", node("bad", cpu=cpu, revision=3))
    loop.plan()
    assert len(warnings(caplog)) == 2, "it had been well meanwhile"


def test_no_trainer_is_preempted_as_an_amount_becomes_unreadable(loop):
    loop.made.on_event("Node", node("n"))
    for index in range(3):
        loop.made.on_event("Pod", trainer("a", index, "n"))
    loop.made.set_demand("a", demand("a", 1, 20))
    loop.plan()
    assert loop.trainers("a") == 4
    loop.made.on_event("Node", node("n", cpu="four", revision=2))
    loop.plan()
    assert loop.trainers("a") == 3, "the present ones, and no new one"
    assert loop.made.decision("a").kept == {"n": 3}
    loop.made.on_event("Pod", trainer("a", 2, "n", revision=2), deleted=True)
    loop.plan()
    assert loop.trainers("a") == 2


# --- A minimum larger than the cluster ---


def test_a_minimum_above_the_whole_cluster_waits_and_reports_what_it_needs(loop):
    for name in "nmo":
        loop.made.on_event("Node", node(name, cpu="20"))
    loop.made.set_demand("a", demand("a", 40, 60, trainer=asking(cpu="5")))
    loop.made.set_demand("b", demand("b", 1, 2))
    loop.plan()
    assert (loop.trainers("a"), loop.trainers("b")) == (0, 2), "others are not held up"
    assert loop.made.decision("a").reason.startswith("needs 40 x cpu 5, the cluster has room for 12 at best")


# --- Trainers without requests, and edits of running jobs ---


def test_trainers_without_requests_are_bounded_by_what_a_node_takes(loop):
    loop.made.on_event("Node", node("n", cpu="40"))
    for name in range(10):
        loop.made.on_event("Pod", {**trainer("x", name, "n"), "metadata": {"name": f"w{name}", "namespace": "d", "uid": f"w{name}", "resourceVersion": "1"}})  # fmt: skip
    loop.made.set_demand("a", demand("a", 1, 1000, trainer=asking()))
    loop.plan()
    assert loop.trainers("a") == 100, "110 pods, ten of which are others'"
    assert loop.made.decision("a").reason == "no node has room for a pod"


def test_a_lowered_maximum_shrinks_what_runs(loop):
    for name in "nm":
        loop.made.on_event("Node", node(name))
    for index in range(8):
        loop.made.on_event("Pod", trainer("a", index, "nm"[index % 2]))
    loop.made.set_demand("a", demand("a", 1, 8))
    loop.plan()
    assert loop.trainers("a") == 8
    loop.made.set_demand("a", demand("a", 1, 3))
    loop.plan()
    decision = loop.made.decision("a")
    assert (decision.trainers, decision.now, sum(decision.kept.values()), decision.reason) == (3, 3, 3, "at max 3")


@pytest.mark.parametrize(
    ("now", "held", "given"),
    [("2", 4, 4), ("500m", 4, 4), ("2", 3, 3), ("2", 2, 3), ("500m", 3, 5), ("500m", 1, 7), ("1", 3, 4)],
)  # fmt: skip
def test_after_an_edit_old_pods_count_by_what_they_ask_and_new_ones_by_the_edit(loop, now, held, given):
    """After an edit, old pods count by their own request, and new pods by the edited one.

    The node has four CPUs, and each old pod requests one.
    """
    loop.made.on_event("Node", node("n"))
    for index in range(held):
        loop.made.on_event("Pod", trainer("a", index, "n"))
    loop.made.set_demand("a", demand("a", 1, 20, trainer=asking(cpu=now)))
    loop.plan()
    assert loop.trainers("a") == given
    assert loop.made.decision("a").kept == {"n": held}, "no trainer is preempted because of the edit"


def test_what_is_left_by_pods_of_before_an_edit_is_what_others_get(loop):
    loop.made.on_event("Node", node("n", cpu="8"))
    for index in range(3):
        loop.made.on_event("Pod", trainer("a", index, "n"))
    loop.made.set_demand("a", demand("a", 1, 3, trainer=asking(cpu="2")))
    loop.made.set_demand("b", demand("b", 1, 9))
    loop.plan()
    assert (loop.trainers("a"), loop.trainers("b")) == (3, 5)


# --- The configuration ---

REFUSED = {
    "an unknown key": "dryRuns: true\n",
    "a negative cool-down": "coolDown: -5s\n",
    "a wrong type": "movesPerCycle: many\n",
    "a wrong bound": "cycle: 0s\n",
    "not YAML": "cycle: [5s\n",
    "a list": "- dryRun: true\n",
    "a text": "dryRun\n",
    "empty": "",
    "too large": "#" * 300_000,
    "not text": b"\xff\xfe",
    "missing": None,
}


def write(path, text):
    if text is None:
        path.unlink()
    elif isinstance(text, bytes):
        path.write_bytes(text)
    else:
        path.write_text(text)


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_configuration_leaves_the_former_in_force_and_is_reported(tmp_path, name, caplog):
    loop = Loop(tmp_path, "debounce: 10ms\nmovesPerCycle: 3\n")
    loop.made.set_demand("a", demand("a", 1, 9))
    loop.plan()
    assert (loop.valid, loop.acts) == (True, True)
    loop.enqueued.clear()
    write(loop.file, REFUSED[name])
    for _ in range(4):
        loop.plan()
    assert (loop.made.config.moves_per_cycle, loop.made.acts, loop.made.is_unconfigured) == (3, True, False)
    assert (loop.valid, loop.acts) == (False, True)
    assert loop.enqueued == ["a"], "its status reports it, once"
    assert loop.made.problem.startswith(str(loop.file))
    assert loop.made.problem.endswith("; the previous configuration stays in force")
    assert loop.made.problem.startswith(loop.last_plan.problem)
    assert loop.last_plan.problem
    assert warnings(caplog) == [loop.made.problem], "once"
    loop.enqueued.clear()
    write(loop.file, "debounce: 10ms\nmovesPerCycle: 4\n")
    loop.plan()
    assert (loop.made.problem, loop.made.config.moves_per_cycle, loop.valid) == ("", 4, True)
    assert loop.enqueued == ["a"]


@pytest.mark.parametrize("name", REFUSED)
def test_until_a_configuration_was_taken_nothing_is_planned(tmp_path, name, caplog):
    """The autoscaler plans nothing before it has read a configuration: the unreadable one may forbid what the defaults do."""
    loop = Loop(tmp_path, "")
    write(loop.file, REFUSED[name])
    loop.made = loop.again()
    loop.made.on_event("Node", node("n"))
    loop.made.set_demand("a", demand("a", 1, 9))
    loop.look()
    assert (loop.made.is_unconfigured, loop.trainers("a"), loop.valid, loop.acts) == (True, None, False, False)
    assert loop.made.problem.endswith("; nothing is changed until it is corrected")
    assert warnings(caplog)[-1] == loop.made.problem
    write(loop.file, "debounce: 10ms\n")
    loop.plan()
    assert (loop.made.is_unconfigured, loop.trainers("a"), loop.valid, loop.acts) == (False, 4, True, True)


def test_the_configuration_hook_gets_whether_plans_are_followed(loop):
    for text, acts in (("dryRun: true\n", False), ("enabled: false\n", False), ("{}\n", True)):
        loop.file.write_text(text)
        loop.look()
        assert (loop.valid, loop.acts) == (True, acts)


# --- PriorityClasses ---


def classed(made, name, value):
    made["spec"] |= {"priorityClassName": name, "priority": value}
    return made


def ranks(loop):
    """Plan for two jobs, of which only the one with the higher priority grows."""
    loop.made.on_event("Node", node("n"))
    for name, value in (("low", -8), ("high", -5)):
        loop.made.on_event("PriorityClass", {"metadata": {"name": name}, "value": value})
        loop.made.set_demand(name, demand(name, 1, 9, priority=-11), minimum=name)
    loop.plan()
    assert (loop.trainers("low"), loop.trainers("high")) == (1, 3)


@pytest.mark.parametrize("listed", [True, False])
def test_a_deleted_class_keeps_its_value(loop, listed):
    ranks(loop)
    if listed:
        loop.made.listed("PriorityClass", [], revision=5)
    else:
        loop.made.on_event("PriorityClass", {"metadata": {"name": "high"}, "value": -5}, deleted=True)
    loop.made.on_event("Node", node("m"))
    loop.plan()
    assert (loop.trainers("low"), loop.trainers("high")) == (1, 7)
    assert {each.name: each.priority for each in loop.last_plan.jobs} == {"high": -5, "low": -8}


def test_a_class_with_another_value_counts_at_once(loop):
    ranks(loop)
    loop.made.on_event("PriorityClass", {"metadata": {"name": "high"}, "value": -5}, deleted=True)
    loop.made.on_event("PriorityClass", {"metadata": {"name": "high"}, "value": -9})
    loop.plan()
    assert (loop.trainers("low"), loop.trainers("high")) == (3, 1)


def test_a_class_deleted_before_the_start_is_known_from_its_pods(loop):
    loop.made.on_event("Node", node("n"))
    loop.made.on_event("PriorityClass", {"metadata": {"name": "low"}, "value": -8})
    loop.made.on_event("Pod", classed(trainer("high", 0, "n"), "high", -5))
    for name in ("low", "high"):
        loop.made.set_demand(name, demand(name, 1, 9, priority=-11), minimum=name)
    loop.plan()
    assert (loop.trainers("low"), loop.trainers("high")) == (1, 3)
    loop.made.on_event("PriorityClass", {"metadata": {"name": "high"}, "value": -9})
    loop.plan()
    assert {each.name: each.priority for each in loop.last_plan.jobs} == {"high": -9, "low": -8}, (
        "its own word is better"
    )


def test_a_class_that_was_never_observed_ranks_last(loop):
    loop.made.on_event("Node", node("n"))
    loop.made.on_event("PriorityClass", {"metadata": {"name": "low"}, "value": -8})
    for name in ("low", "unknown"):
        loop.made.set_demand(name, demand(name, 1, 9, priority=-11), minimum=name)
    loop.plan()
    assert (loop.trainers("low"), loop.trainers("unknown")) == (3, 1)


# --- Clocks ---


def test_durations_are_measured_by_the_monotonic_clock():
    assert inspect.signature(Autoscaler).parameters["clock"].default is time.monotonic


def test_no_wall_clock_decides_anything(loop, monkeypatch):
    loop.made.on_event("Node", node("n"))
    loop.made.set_demand("a", demand("a", 1, 9))
    monkeypatch.setattr(time, "time", lambda: -1e9)
    loop.plan()
    monkeypatch.setattr(time, "time", lambda: 1e12)
    loop.plan()
    assert loop.trainers("a") == 4


@pytest.mark.parametrize("since", [0.0, -1e12, 4e9, 1e18, float("inf")])
def test_a_job_of_the_past_or_the_future_gets_its_share(loop, since):
    loop.made.on_event("Node", node("n"))
    loop.made.set_demand("a", demand("a", 1, 9, since=since))
    loop.made.set_demand("b", demand("b", 1, 9, since=1_700_000_000.0))
    loop.plan()
    assert (loop.trainers("a"), loop.trainers("b")) == (2, 2)


# --- Jobs that repeatedly lose their room ---


def test_a_job_that_ran_stably_has_a_short_back_off_the_next_time(loop):
    """Each loss of its room doubles a job's back-off; 600 s with room reset it."""
    for name in "nm":
        loop.made.on_event("Node", node(name))
    loop.made.set_demand("a", demand("a", 8, 8))
    revision = 1
    for rests in (30, 60, 120):
        revision = fall(loop, revision)
        revision = rise(loop, revision, rests)
    loop.clock.now += 599
    loop.plan()
    revision = fall(loop, revision)
    revision = rise(loop, revision, 240)
    loop.clock.now += 601
    loop.plan()
    revision = fall(loop, revision)
    rise(loop, revision, 30)


def fall(loop, revision):
    """Run the job's pods on two nodes, then delete one node until the job is requeued."""
    for index in range(8):
        loop.made.on_event("Pod", trainer("a", index, "nm"[index % 2], revision=revision))
    loop.plan()
    assert loop.trainers("a") == 8
    loop.made.on_event("Node", node("m", revision=revision), deleted=True)
    loop.plan()
    loop.clock.now += 11
    loop.plan()
    assert loop.trainers("a") == 0
    for index in range(8):
        loop.made.on_event("Pod", trainer("a", index, "nm"[index % 2], revision=revision + 1), deleted=True)
    return revision + 2


def rise(loop, revision, rests):
    """Add the node again; check that the job is admitted only after a back-off of ``rests`` seconds."""
    loop.made.on_event("Node", node("m", revision=revision))
    loop.plan()
    loop.clock.now += rests - 2
    loop.plan()
    assert (loop.trainers("a"), loop.made.decision("a").reason) == (
        0,
        "its minimum found no room; in back-off before it is admitted again",
    )
    loop.clock.now += 3
    loop.plan()
    assert loop.trainers("a") == 8
    for index in range(8):
        loop.made.on_event("Pod", trainer("a", index, "nm"[index % 2], revision=revision))
    loop.plan()
    return revision + 1


def test_pods_of_an_unreadable_template_count_as_zero_and_are_reported(loop, caplog):
    loop.made.on_event("Node", node("n"))
    loop.made.set_demand("a", demand("a", 1, 2, trainer=asking(cpu="much")))
    loop.made.set_demand("b", demand("b", 1, 9, trainer=pod()))
    loop.plan()
    assert (loop.trainers("a"), loop.trainers("b")) == (2, 4)
    assert warnings(caplog)[0].startswith("TrainingJob d/a: spec.containers[0].resources.requests.cpu: 'much' is not")
