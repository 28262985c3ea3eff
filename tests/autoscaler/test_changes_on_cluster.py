"""The autoscaler on a real control plane while the cluster changes and operators are killed."""

from __future__ import annotations

import json
import signal

import pytest

from tests.autoscaler.worlds_on_cluster import (
    ONE_CPU,
    SMALL,
    TWO_NODES,
    allocation,
    apply,
    evicted,
    trainers,
    web,
    webs,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]


@pytest.fixture
def patient(cluster):
    """A PriorityClass of ordinary pods for which the scheduler preempts no pod."""
    made = {
        "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "patient"},
        "value": 0, "preemptionPolicy": "Never", "description": "waits for room",
    }  # fmt: skip
    cluster.kubectl("apply", "-f", "-", input=json.dumps(made))
    return {"priorityClassName": "patient"}


def at_nodes(job):
    """Return, by node, the number of running trainers that are not being deleted."""
    found = {}
    for pod in job.all_pods("trainer"):
        if "deletionTimestamp" not in pod["metadata"] and pod["status"].get("phase") == "Running":
            node = pod["spec"]["nodeName"]
            found[node] = found.get(node, 0) + 1
    return found


def run(world, count):
    world.until(lambda: len(webs(world)) == count, f"{count} web pods")


@pytest.mark.parametrize("preempts", [True, False])
def test_bursts_leave_as_many_as_there_is_room_for(world, patient, preempts):
    more = {} if preempts else patient
    apply(world.j, 2, 20)
    trainers(world.j, TWO_NODES)
    for count in (4, 1, 6, 0, 5, 3):
        web(world, count, **more)
    run(world, 3)
    trainers(world.j, TWO_NODES - 3)
    web(world, 6, **more)
    run(world, 6)
    trainers(world.j, 2)
    web(world, 0, **more)
    trainers(world.j, TWO_NODES)


def test_a_short_lived_pod_costs_what_it_needs_and_no_more(world, patient):
    apply(world.j, 2, 20)
    trainers(world.j, TWO_NODES)
    for _ in range(3):
        web(world, 1, **patient)
        run(world, 1)
        assert len(world.j.pods("trainer")) >= TWO_NODES - 2, "one was preempted; another may not be recreated yet"
        web(world, 0, **patient)
        run(world, 0)
    trainers(world.j, TWO_NODES)


def test_for_a_pod_that_fits_nowhere_no_trainer_is_preempted(world):
    apply(world.j, 2, 20)
    trainers(world.j, TWO_NODES)
    before = world.j.pod_uids("trainer")
    five = {"requests": {"cpu": "5"}}
    world.apply(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "large"},
         "spec": {"containers": [{"name": "large", "image": "large", "resources": five}]}}
    )  # fmt: skip
    world.until(lambda: _unschedulable(world, "large"), "the scheduler's word")
    # A smaller pod that is created later gets its room nevertheless, and it alone costs a trainer.
    web(world, 1)
    run(world, 1)
    trainers(world.j, TWO_NODES - 1)
    deleted = before - world.j.pod_uids("trainer")
    world.until(lambda: deleted <= evicted(world), "events that show that only the scheduler evicted them")


def _unschedulable(world, name):
    (pod,) = [each for each in world.list("Pod") if each["metadata"]["name"] == name]
    return any(each.get("reason") == "Unschedulable" for each in pod["status"].get("conditions", []))


def test_a_node_is_drained_and_uncordoned(world):
    claims = world.claims(1) | {"resources": SMALL}
    world.j.apply(
        trainer={"minReplicas": 2, "maxReplicas": 20, "resources": ONE_CPU},
        parameterServer=claims,
        master={"resources": SMALL},
    )
    trainers(world.j, TWO_NODES)
    stays = next(node for node in world.nodes if not _has_servers(world, node))
    goes = next(node for node in world.nodes if node != stays)
    # The servers and the master are drained too, and a trainer is preempted to make room for them.
    world.cluster.kubectl(
        "drain", goes, "--force", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s",
        "--pod-selector=shoal.dev/job=j",
    )  # fmt: skip
    world.j.until(lambda: at_nodes(world.j) == {stays: 4}, "all at the other node")
    world.j.state("Running")
    world.cluster.kubectl("uncordon", goes)
    trainers(world.j, TWO_NODES)
    assert at_nodes(world.j) == {stays: 4, goes: 4}


def _has_servers(world, node):
    return any(pod["spec"].get("nodeName") == node for pod in world.j.all_pods("pserver"))


def test_a_node_is_deleted_and_another_one_is_added(world):
    apply(world.j, 2, 20)
    trainers(world.j, TWO_NODES)
    deleted, stays = world.nodes
    world.cluster.kubectl("delete", "node", deleted)
    world.j.until(lambda: at_nodes(world.j) == {stays: 4}, "those of the other node")
    world.j.until(lambda: allocation(world.j).get("desired") == 4, "a plan that knows it")
    world.nodes += world.cluster.add_nodes(1, cpu="8", memory="16Gi", prefix="new")
    trainers(world.j, 4 + 8)
    world.j.state("Running")


def test_an_operator_killed_while_it_makes_room_is_succeeded_by_one_that_continues(world, patient):
    _begins_to_make_room(world, patient)
    world.end(signal.SIGKILL)
    world.masters.slow.clear()
    world.start()
    _has_made_room(world)


def test_the_standby_continues_when_the_leader_is_killed_while_it_makes_room(world, patient):
    world.until(lambda: "leading as" in world.log(), "the first one to lead")
    world.second.start()
    try:
        world.until(lambda: "standing by" in world.second.log(), "the second one to wait")
        _begins_to_make_room(world, patient)
        world.end(signal.SIGKILL)
        world.masters.slow.clear()
        _has_made_room(world)
        assert "leading as" in world.second.log()
        world.start()
    finally:
        assert world.second.end() == 0


def _begins_to_make_room(world, patient):
    apply(world.j, 2, 20)
    trainers(world.j, TWO_NODES)
    uid = world.j.uid
    # A trainer that the master does not know is deleted instead of drained.
    world.until(lambda: len(world.masters.members(uid)) == TWO_NODES, "the master to know all")
    world.masters.slow.add(uid)
    web(world, 3, **patient)
    world.until(lambda: world.masters.desired_drain(uid), "a drain request")


def _has_made_room(world):
    run(world, 3)
    trainers(world.j, TWO_NODES - 3)
    assert [reason for reason, _ in world.j.events() if reason == "TrainerLost"] == []


def test_trainers_refused_by_a_scheduler_rule_are_not_requested_repeatedly(world):
    """The scheduler refuses a second pod on the same node; the planner does not know pod anti-affinity."""
    apart = {
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "apart"}}}
            ]
        }
    }
    template = {"metadata": {"labels": {"app": "apart"}}, "spec": {"affinity": apart}}
    world.j.apply(
        trainer={"minReplicas": 1, "maxReplicas": 9, "resources": ONE_CPU, "template": template},
        parameterServer={"replicas": 1, "resources": SMALL, "emptyDir": {}},
        master={"resources": SMALL},
    )
    world.j.until(
        lambda: "the scheduler finds no node for more than 2" in allocation(world.j).get("message", ""), "its cap"
    )
    trainers(world.j, 2)
    # Another job gets the room that this job cannot use.
    other = world.job("other")
    apply(other, 1, 20)
    trainers(other, TWO_NODES - 2)
