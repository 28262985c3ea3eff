"""Two operators and one Lease on a real control plane: one acts, and whatever happens to it, the other takes over."""

from __future__ import annotations

import json
import re
import signal
from datetime import datetime

import pytest

from tests.etcds import run_etcd
from tests.operator.standin import Masters
from tests.operator.team import Team
from tests.operator.world import define

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]


@pytest.fixture
def team(control_plane, add_nodes, namespace, tmp_path):
    define(control_plane)
    add_nodes(3)
    with run_etcd(tmp_path / "etcd") as etcd:
        made = Team(control_plane, namespace, etcd, tmp_path)
        try:
            with Masters(made.api, etcd.endpoint, namespace) as made.masters:
                yield made
        finally:
            made.close()


@pytest.fixture
def at_work(team):
    """Start two operators and a job with two trainers, which the leader has created."""
    team.join("a"), team.join("b")
    team.j.apply()
    team.j.at_work([0, 1])
    leader = team.leader("a", "b")
    other = team.members["b" if leader.name == "a" else "a"]
    assert (leader.writes > 0, other.writes, other.leads) == (True, 0, False)
    return leader, other


def test_a_killed_leader_is_succeeded_and_changes_meanwhile_are_applied(team, at_work):
    leader, other = at_work
    assert team.lease()["holderIdentity"] in leader.log.read_text()
    leader.end(signal.SIGKILL)
    team.scale(4)
    team.j.at_work([0, 1, 2, 3])
    assert other.leads
    assert team.lease()["leaseTransitions"] == 1
    assert re.search(r"standing by as \S+: \S+ leads", other.log.read_text())
    assert re.search(r"leading as \S+", other.log.read_text())


def test_a_leader_that_was_stopped_for_longer_than_its_lease_does_not_act_any_more(team, at_work):
    leader, other = at_work
    leader.process.send_signal(signal.SIGSTOP)
    before = leader.writes
    team.until(lambda: other.leads, "the other one to lead")
    # Work for the old leader, if it could act: trainers to drain, and one to create.
    team.scale(3)
    team.j.at_work([0, 1, 2])
    team.cluster.kubectl("delete", "pod", "j-trainer-1", "-n", team.namespace, "--force", "--grace-period=0")
    leader.process.send_signal(signal.SIGCONT)
    assert leader.process.wait(60) == 3
    assert leader.writes == before
    assert re.search(r"the Lease \S+ is lost: .*exit code 3", leader.log.read_text())
    team.j.at_work([0, 1, 2])


def test_a_terminated_leader_hands_over_before_its_lease_expires(team, at_work):
    leader, other = at_work
    before = team.lease()
    assert leader.end() == 0
    team.until(lambda: other.leads, "the other one to lead")
    after = team.lease()
    renewed, taken = (datetime.fromisoformat(each) for each in (before["renewTime"], after["acquireTime"]))
    print("from a renewal of the old leader's to the take-over:", taken - renewed)
    assert (taken - renewed).total_seconds() < after["leaseDurationSeconds"]
    team.scale(3)
    team.j.at_work([0, 1, 2])
    assert other.end() == 0
    assert "holderIdentity" not in team.lease()


def test_a_terminated_standby_leaves_the_lease_alone(team, at_work):
    leader, other = at_work
    before = team.lease()["holderIdentity"]
    assert other.end() == 0
    assert team.lease()["holderIdentity"] == before
    assert leader.leads


def test_a_lease_in_another_name_ends_the_leader_at_once(team, at_work):
    leader, _ = at_work
    patch = json.dumps({"spec": {"holderIdentity": "somebody"}})
    team.cluster.kubectl("patch", "lease", "shoal", "--type=merge", "-p", patch, "-n", team.namespace)
    assert leader.process.wait(60) == 3
    assert "somebody holds it" in leader.log.read_text()


def test_a_deleted_lease_is_recreated_by_its_holder(team, at_work):
    leader, other = at_work
    before = team.lease()["holderIdentity"]
    team.cluster.kubectl("delete", "lease", "shoal", "-n", team.namespace)
    team.until(lambda: team.cluster.get("leases", "-n", team.namespace)["items"], "the Lease to be made again")
    assert team.lease()["holderIdentity"] == before
    team.scale(3)
    team.j.at_work([0, 1, 2])
    assert (leader.leads, other.leads, other.writes) == (True, False, 0)


def test_endpoints_report_the_state_and_nothing_else(team, at_work):
    leader, other = at_work
    assert leader.ask("/healthz") == other.ask("/healthz") == (200, "ok\n")
    assert leader.ask("/readyz") == other.ask("/readyz") == (200, "ok\n")
    assert leader.ask("/nothing")[0] == 404
    team.j.state("Running")
    team.until(lambda: leader.metric("shoal_jobs", state="Running") == 1, "the count of jobs")
    assert leader.metric("shoal_operator_etcd_up") == 1
    assert leader.metric("shoal_operator_sync_seconds_count", outcome="done") > 0
    assert leader.metric("shoal_operator_api_requests_total", verb="create", kind="Pod", code="201") >= 2
    assert leader.metric("shoal_operator_watch_events_total", kind="Pod") > 0
    assert other.metric("shoal_operator_watch_events_total", kind="Pod") > 0
    assert other.metric("shoal_operator_sync_seconds_count") == 0
    text = leader.ask("/metrics")[1]
    assert not re.search(r"[{,](job|instance|namespace|pod)=", text)
    for line in text.splitlines():
        assert line.startswith(("# ", "shoal_", "process_")), line
