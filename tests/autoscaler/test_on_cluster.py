"""The autoscaler on a real control plane with hollow nodes: jobs and pods follow its plans."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from tests.autoscaler.worlds_on_cluster import (
    ONE_CPU,
    SMALL,
    TWO_NODES,
    allocation,
    apply,
    configure,
    evicted,
    trainers,
    web,
    webs,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]


def test_a_job_grows_into_the_free_room_and_reports_why_no_further(world):
    apply(world.j, 2, 20)
    trainers(world.j, TWO_NODES)
    world.j.until(lambda: allocation(world.j).get("message") == "no node has room for cpu 1, memory 64Mi", "its reason")
    assert allocation(world.j)["desired"] == TWO_NODES
    world.nodes += world.cluster.add_nodes(1, cpu="4", memory="16Gi", prefix="more")
    trainers(world.j, TWO_NODES + 4)
    world.j.has_event("Scaled", f"-> {TWO_NODES + 4}: no node has room for cpu 1, memory 64Mi")


def shoal_plan(world, namespace, *options):
    """Run the command ``shoal plan`` as a user does."""
    command = [sys.executable, "-m", "shoal.cli", "plan", "-n", namespace, *options]
    environment = {**os.environ, "KUBECONFIG": str(world.cluster.kubeconfig), "COLUMNS": "120"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_plan_is_published(world):
    missing = shoal_plan(world, "default")
    assert missing.returncode == 1
    assert "error: no plan in namespace default: its operator may run elsewhere" in missing.stderr
    apply(world.j, 2, 20)
    trainers(world.j, TWO_NODES)

    def job():
        reported = shoal_plan(world, world.namespace, "-o", "json")
        return json.loads(reported.stdout)["jobs"][0] if reported.returncode == 0 and '"j"' in reported.stdout else {}

    world.until(lambda: job().get("trainers") == TWO_NODES, "the plan")
    assert (job()["given"], job()["max"], job()["reason"]) == (TWO_NODES, 20, "NoRoom")
    lines = shoal_plan(world, world.namespace).stdout.splitlines()
    assert lines[0].endswith("2 of 2 nodes accept pods")
    assert lines[1].split() == ["JOB", "PRIORITY", "TRAINERS", "GIVEN", "RANGE", "WHY", "NOT", "MORE"]
    assert lines[2].split(maxsplit=5)[1:5] == ["-6", "8", "8", "2-20"]
    assert lines[2].endswith("no node has room for cpu 1, memory 64Mi")


def test_two_jobs_share_and_the_remaining_one_gets_all(world):
    other = world.job("other")
    apply(world.j, 1, 20)
    trainers(world.j, TWO_NODES)
    apply(other, 1, 20)
    other.until(lambda: len(other.pods("trainer")) == 4, "its share")
    world.j.until(lambda: len(world.j.pods("trainer", ready=False)) == 4, "the rest")
    other.delete()
    trainers(world.j, TWO_NODES)


def test_ordinary_pods_get_their_room_and_it_is_used_again_when_they_go(world):
    apply(world.j, 2, 20)
    trainers(world.j, TWO_NODES)
    web(world, 4)
    world.until(lambda: len(webs(world)) == 4, "four pods")
    trainers(world.j, 4)
    web(world, 0)
    trainers(world.j, TWO_NODES)


def test_a_job_that_does_not_fit_waits_with_nothing_until_it_does(world):
    apply(world.j, 9, 9)
    world.j.state("Queued")
    condition = world.j.condition("Scheduled")
    assert (condition["reason"], condition["message"]) == (
        "Queued", "needs 9 x cpu 1, memory 64Mi plus 2 other pods, the cluster has room for 8 at best: too little cpu",
    )  # fmt: skip
    assert world.j.all_pods() == []
    world.nodes += world.cluster.add_nodes(1, cpu="4", memory="16Gi", prefix="more")
    trainers(world.j, 9)
    world.j.state("Running")


def test_servers_share_a_node_where_that_leaves_room_for_a_trainer(world):
    """The servers share a node; the scheduler alone would put one on each node, and one trainer fewer would fit."""
    two = {"requests": {"cpu": "2", "memory": "64Mi"}}
    world.j.apply(
        trainer={"minReplicas": 1, "maxReplicas": 9, "resources": two},
        parameterServer={"replicas": 2, "resources": ONE_CPU, "emptyDir": {}},
        master={"resources": SMALL},
    )
    trainers(world.j, 3)
    assert len({pod["spec"].get("nodeName") for pod in world.j.all_pods("pserver")}) == 1


def test_a_pin_is_set_and_removed(world):
    apply(world.j, 1, 20, trainer={"replicas": 3})
    trainers(world.j, 3)
    world.j.until(lambda: allocation(world.j).get("message") == "pinned at 3", "its reason")
    world.j.patch({"trainer": {"replicas": None}})
    trainers(world.j, TWO_NODES)


def test_suspended_it_leaves_its_room_to_others(world):
    other = world.job("other")
    apply(world.j, 1, 20)
    apply(other, 1, 20)
    world.j.until(lambda: len(world.j.pods("trainer")) >= 3 and len(other.pods("trainer")) >= 3, "both at work")
    world.j.patch({"suspend": True})
    world.j.state("Suspended")
    # Its servers and its master keep running, because the model is in the servers' pods.
    trainers(other, TWO_NODES)
    world.j.patch({"suspend": False})
    world.j.until(lambda: len(world.j.pods("trainer")) >= 3, "its share again")


def test_no_trainer_is_placed_on_a_cordoned_node(world):
    world.cluster.kubectl("cordon", world.nodes[0])
    apply(world.j, 1, 20)
    trainers(world.j, 4)
    assert {pod["spec"]["nodeName"] for pod in world.j.all_pods("trainer")} == {world.nodes[1]}
    world.cluster.kubectl("uncordon", world.nodes[0])
    trainers(world.j, TWO_NODES)


def test_trainers_go_to_the_nodes_that_they_may_use(world):
    configure(world, "nodeSelector: {pool: training}\n")
    world.cluster.kubectl("label", "node", world.nodes[1], "pool=training")
    apply(world.j, 1, 20)
    trainers(world.j, 4)
    assert {pod["spec"]["nodeName"] for pod in world.j.all_pods("trainer")} == {world.nodes[1]}


def test_head_room_is_kept_for_the_recent_arrivals(world):
    configure(world, "headRoom: 1\n")
    web(world, 3)
    world.until(lambda: len(webs(world)) == 3, "three pods")
    web(world, 0)
    apply(world.j, 1, 20)
    trainers(world.j, TWO_NODES - 3)
    web(world, 3)
    world.until(lambda: len(webs(world)) == 3, "three pods again")


def test_an_unknown_priority_is_refused_with_the_known_ones(world):
    apply(world.j, 1, 2, priority="urgent")
    world.j.has_condition("Accepted", "False", "UnknownPriority", "known: default")
    assert world.j.made() == []


def test_a_killed_operator_continues_from_the_running_pods(world):
    apply(world.j, 2, 20)
    trainers(world.j, TWO_NODES)
    before = world.j.pod_uids("trainer")
    world.end(signal.SIGKILL)
    world.start()
    world.until(lambda: world.log().count("leading as") == 2, "its successor to lead")
    web(world, 2)
    world.until(lambda: len(webs(world)) == 2, "two pods")
    trainers(world.j, TWO_NODES - 2)
    # The scheduler sometimes evicts two trainers for one pod; the operator then fills the room of the second one again.
    deleted = before - world.j.pod_uids("trainer")
    world.until(lambda: deleted <= evicted(world), "events that show that only the scheduler evicted them")
    assert not [reason for reason, _ in world.j.events() if reason == "Queued"], "it never stood in line"


def test_a_job_created_while_no_operator_ran_is_never_queued(world):
    world.end()
    apply(world.j, 2, 20)
    created = datetime.fromisoformat(world.j.found["metadata"]["creationTimestamp"])
    world.until(lambda: datetime.now(UTC) - created > timedelta(seconds=7), "some time to pass")
    world.start()
    trainers(world.j, TWO_NODES)
    assert not [reason for reason, _ in world.j.events() if reason == "Queued"]


def test_a_configuration_changes_while_it_runs_and_a_bad_one_does_not(world):
    configure(world, "dryRun: true\n")
    apply(world.j, 2, 20)
    trainers(world.j, 2)
    world.config.write_text("dryRuns: false\n")
    world.until(lambda: "unknown field" in world.log(), "what is wrong")
    trainers(world.j, 2)
    world.config.write_text("dryRun: false\n")
    trainers(world.j, TWO_NODES)
