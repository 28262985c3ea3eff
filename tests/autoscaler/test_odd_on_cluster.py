"""Invalid or unusual input on a real control plane: refused configurations, deleted classes, edits of running jobs."""

from __future__ import annotations

import signal

import pytest

from tests.autoscaler.worlds_on_cluster import (
    ONE_CPU,
    TWO_NODES,
    allocation,
    apply,
    configure,
    metrics,
    trainers,
    web,
    webs,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

ODD = ("odd-servers", "odd-minimum", "odd-surplus")
PRIORITIES = "priorities: [{name: odd, servers: odd-servers, minimum: odd-minimum, surplus: odd-surplus}]\n"


def tells(world, **wanted):
    """Wait until the autoscaler's metrics have these values."""

    def matches():
        found = metrics(world)
        return all(found.get(f"shoal_autoscaler_{name}") == value for name, value in wanted.items())

    try:
        world.until(matches, f"metrics {wanted}")
    except BaseException:
        print(metrics(world))
        raise


def make_class(world, name, value):
    kind = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass"}
    world.apply({**kind, "metadata": {"name": name}, "value": value, "preemptionPolicy": "Never"})


@pytest.fixture
def classes(world):
    """PriorityClasses that belong to the test alone, so that the test may delete them."""
    for name, value in zip(ODD, (-2, -4, -9), strict=True):
        make_class(world, name, value)
    yield ODD
    world.kubectl("delete", "priorityclass", *ODD, "--ignore-not-found")


# --- The configuration ---


def test_a_refused_configuration_is_in_log_metric_and_condition_and_the_former_one_stays(world):
    apply(world.j, 2, 20)
    trainers(world.j, TWO_NODES)
    world.j.state("Running")
    world.j.has_condition("Autoscaled", "True", "Following")
    tells(world, config_valid=1, acts=1, jobs=1, jobs_queued=0, trainers=TWO_NODES, trainers_given=TWO_NODES, nodes=2,
          nodes_usable=2, claims=0, victims=0, plans_failed_total=0, unread=0)  # fmt: skip
    assert metrics(world)["shoal_autoscaler_plan_seconds_count"] > 0
    world.config.write_text("coolDown: -5s\n")
    words = "line 1: coolDown: '-5s' is not a duration"
    world.j.has_condition("Autoscaled", "False", "ConfigRefused", words)
    since = world.j.condition("Autoscaled")["lastTransitionTime"]
    assert world.j.condition("Autoscaled")["message"].endswith("; the previous configuration stays in force")
    assert world.j.status()["state"] == "Running"
    tells(world, config_valid=0, acts=1)
    web(world, 4)
    world.until(lambda: len(webs(world)) == 4, "four pods")
    trainers(world.j, 4)
    assert world.j.condition("Autoscaled")["lastTransitionTime"] == since
    assert world.log().count(words) == 1
    configure(world, "coolDown: 0s\n")
    world.j.has_condition("Autoscaled", "True", "Following")
    tells(world, config_valid=1)


def test_an_operator_that_begins_with_a_configuration_that_it_cannot_take_changes_nothing(world):
    other = world.job("other")
    configure(world, "coolDown: 0s\nnodeSelector: {kubernetes.io/os: linux}\n")
    for name in world.nodes:
        world.cluster.kubectl("label", "node", name, "kubernetes.io/os=linux", "--overwrite")
    apply(world.j, 2, 20)
    trainers(world.j, TWO_NODES)
    world.j.state("Running")
    before = world.j.pod_uids()
    world.end(signal.SIGKILL)
    world.config.write_text("coolDowns: 0s\n")
    world.start()
    world.j.has_condition("Autoscaled", "False", "ConfigRefused", "unknown field; did you mean coolDown?")
    assert world.j.condition("Autoscaled")["message"].endswith("; nothing is changed until it is corrected")
    apply(other, 1, 20)
    other.has_condition("Autoscaled", "False", "ConfigRefused")
    tells(world, config_valid=0, acts=0)
    assert (world.j.pod_uids(), other.all_pods()) == (before, [])
    assert (allocation(world.j)["desired"], world.j.status()["state"]) == (TWO_NODES, "Running")
    other.delete()
    world.config.write_text("coolDown: 0s\nnodeSelector: {kubernetes.io/os: linux}\n")
    world.j.has_condition("Autoscaled", "True", "Following")
    tells(world, config_valid=1, acts=1, trainers_given=TWO_NODES)
    assert world.j.pod_uids() == before, "no pod was recreated"
    apply(other, 1, 20)
    other.until(lambda: len(other.pods("trainer")) == 4, "its share")


def test_the_condition_has_the_reason_for_not_following(world):
    apply(world.j, 1, 4, trainer={"replicas": 2})
    world.j.has_condition("Autoscaled", "False", "Pinned")
    world.j.patch({"trainer": {"replicas": None}})
    world.j.has_condition("Autoscaled", "True", "Following")
    configure(world, "dryRun: true\n")
    world.j.has_condition("Autoscaled", "False", "DryRun")
    tells(world, config_valid=1, acts=0)
    configure(world, "enabled: false\n")
    world.j.has_condition("Autoscaled", "False", "Disabled")
    world.j.patch({"suspend": True})
    world.j.state("Suspended")
    assert world.j.condition("Autoscaled") == {}


# --- PriorityClasses ---


def test_a_deleted_class_stops_no_trainer_and_the_refusal_of_new_pods_is_reported(world, classes):
    configure(world, PRIORITIES)
    apply(world.j, 2, 20)
    trainers(world.j, TWO_NODES)
    world.j.state("Running")
    before = {pod["metadata"]["uid"]: pod["spec"]["priority"] for pod in world.j.all_pods()}
    assert sorted(set(before.values())) == [-9, -4, -2]
    world.kubectl("delete", "priorityclass", *classes)
    world.nodes += world.cluster.add_nodes(1, cpu="4", memory="16Gi", prefix="more")
    words = "no PriorityClass with name odd-surplus was found"
    world.j.has_condition("Scheduled", "True", "PodsPlaced", words)
    assert allocation(world.j)["desired"] == TWO_NODES + 4
    world.end(signal.SIGKILL)
    world.start()
    world.until(lambda: metrics(world).get("shoal_autoscaler_trainers_given") == TWO_NODES + 4, "a plan")
    world.j.has_condition("Scheduled", "True", "PodsPlaced", words)
    assert {pod["metadata"]["uid"]: pod["spec"]["priority"] for pod in world.j.all_pods()} == before
    assert world.j.status()["state"] == "Running"
    for name, value in zip(classes, (-2, -4, -7), strict=True):
        make_class(world, name, value)
    trainers(world.j, TWO_NODES + 4)
    after = {pod["metadata"]["uid"]: pod["spec"]["priority"] for pod in world.j.all_pods()}
    assert before.items() <= after.items(), "the former pods keep theirs"
    assert {after[uid] for uid in after.keys() - before.keys()} == {-7}


def test_a_job_without_its_class_reports_that_and_starts_when_it_exists(world, classes):
    world.kubectl("delete", "priorityclass", "odd-minimum")
    configure(world, PRIORITIES)
    apply(world.j, 2, 4)
    world.j.has_condition("Scheduled", "False", "PodsRefused", "no PriorityClass with name odd-minimum was found")
    make_class(world, "odd-minimum", -4)
    trainers(world.j, 4)


# --- Edits of running jobs ---


def test_an_edit_of_the_requests_rolls_through_one_by_one(world):
    apply(world.j, 2, 20)
    trainers(world.j, TWO_NODES)
    seen, asked = [], []

    def rolled():
        pods = world.j.all_pods("trainer")
        alive = [
            pod
            for pod in pods
            if "deletionTimestamp" not in pod["metadata"] and pod["status"].get("phase") == "Running"
        ]
        seen.append(len(alive))
        asked[:] = [pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] for pod in alive]
        return asked == ["2"] * 4

    two = {"requests": {"cpu": "2", "memory": "64Mi"}}
    world.j.patch({"trainer": {"resources": two}})
    world.j.until(rolled, "all of the new kind")
    trainers(world.j, 4)
    assert min(seen) >= 3, seen
    world.j.until(lambda: allocation(world.j).get("message") == "no node has room for cpu 2, memory 64Mi", "its reason")
    world.j.patch({"trainer": {"resources": ONE_CPU}})
    trainers(world.j, TWO_NODES)


def test_a_lowered_maximum_removes_the_surplus(world):
    apply(world.j, 2, 20)
    trainers(world.j, TWO_NODES)
    before = world.j.pod_uids("trainer")
    world.j.patch({"trainer": {"maxReplicas": 3}})
    trainers(world.j, 3)
    assert world.j.pod_uids("trainer") <= before
    world.j.until(lambda: allocation(world.j).get("message") == "at max 3", "its reason")
    assert world.j.status()["trainers"]["range"] == "2-3"


def test_trainers_that_ask_for_nothing_are_as_many_as_a_node_takes(world):
    apply(world.j, 2, 20, trainer={"resources": {}})
    trainers(world.j, 20)
    world.j.until(lambda: allocation(world.j).get("message") == "at max 20", "its reason")
