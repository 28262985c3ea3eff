"""Tables of observations and the status that is computed from them."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from datetime import timedelta

import pytest

from shoal.api.status import Condition, Reason, State, Status
from shoal.operator.core.reconcile import Ended, Observed, ServerPod
from shoal.operator.core.scaling import TrainerPod
from shoal.operator.resources.pods import master_pod, trainer_pod
from shoal.operator.status.conditions import SILENT_AFTER, STALLED_AFTER, PodProblem, status_of
from shoal.operator.status.facts import Facts
from shoal.operator.status.writer import pause_seconds
from tests.operator.jobs import IDENTITY, job
from tests.operator.looks import (
    ACCOUNT,
    KNOWN,
    MASTERS,
    NAMES,
    NOW,
    RAN,
    SECOND,
    WELL,
    compute_status,
    in_short,
    published,
    said,
    servers,
    trainers,
)

# --- A table ---


def these(**named):
    return named


def these_ready(pods):
    return Facts(placed=NAMES, ready=frozenset(pods))


SUSPENDED = job(suspend=True)
YES, NO, DARK = "True", "False", "Unknown"
UNDONE = Ended("Complete")
FAILED_BY_US = Ended("Failed", "DeadlineExceeded: 3600 s are over")
CASES = {
    "nothing is made": (these(seen=Observed(), facts=Facts(), desired=2), "Pending", "PodsPending",
                        these(Scheduled=NO, Running=NO, Progressing=DARK)),
    "in line": (these(seen=Observed(), desired=0, facts=Facts(reason="cpu is short")), "Queued", "Queued",
                these(Scheduled=NO, Running=NO)),
    "made and not placed": (these(seen=replace(WELL, trainers=trainers(2, ready=False, works=False), published=None),
                                 facts=Facts(placed=frozenset(), ready=frozenset())), "Pending", "PodsPending",
                            these(Scheduled=DARK, Running=NO)),
    "no room": (these(seen=replace(WELL, trainers=trainers(2, ready=False, works=False)), facts=Facts(ready=NAMES - {"flights-trainer-1"}),
                     problems=[PodProblem("trainer", "flights-trainer-1", "Unschedulable", "0/3 nodes")]),
                "Pending", "Unschedulable", these(Scheduled=NO, Running=NO)),
    "images come": (these(seen=replace(WELL, trainers=trainers(2, ready=False, works=False), published=None),
                         facts=Facts(placed=NAMES, ready=frozenset())), "Starting", "PodsStarting",
                    these(Scheduled=YES, Running=NO)),
    "no image comes": (these(seen=replace(WELL, trainers=trainers(2, ready=False, works=False)), facts=KNOWN,
                            problems=[PodProblem("trainer", "flights-trainer-0", "ErrImagePull", "no such host")]),
                       "Starting", "ImagePullFailed", these(Scheduled=YES, Running=NO)),
    "it trains": (these(), "Running", "TrainersReady", these(Accepted=YES, Scheduled=YES, Running=YES, Progressing=YES)),
    "it trains, and little is known": (these(facts=Facts()), "Running", "TrainersReady", these(Scheduled=YES, Progressing=YES)),
    "nothing committed": (these(seen=replace(WELL, published=published(samples=0, moved=0.0, stall_reason="scripts start"))),
                          "Running", "TrainersReady", these(Running=YES, Progressing=NO)),
    "it stalls": (these(seen=replace(WELL, published=published(moved=(NOW - STALLED_AFTER - SECOND).timestamp(), stall_reason="evaluates"))),
                  "Running", "TrainersReady", these(Running=YES, Progressing=NO)),
    "the master is away": (these(before=RAN, facts=Facts(placed=NAMES, ready=NAMES - {"flights-master-a"})),
                           "Running", "MasterAway", these(Running=DARK, Progressing=DARK)),
    "the master's node is lost": (these(before=RAN, seen=replace(WELL, masters=(replace(MASTERS[0], lost=True),))),
                                  "Running", "NodeLost", these(Running=DARK, Progressing=DARK)),
    "the master is away, and a server": (these(before=RAN, facts=these_ready(NAMES - {"flights-master-a", "flights-pserver-1"})),
                                         "Starting", "ServersAway", these(Running=NO)),
    "the master is away, and trainers": (
        these(before=RAN, seen=replace(WELL, trainers=trainers(2, ready=False)), facts=these_ready({"flights-pserver-0", "flights-pserver-1"})),
        "Starting", "PodsStarting", these(Running=NO)),
    "the master has not come yet": (these(facts=these_ready(NAMES - {"flights-master-a"})), "Starting", "PodsStarting",
                                    these(Scheduled=YES, Running=NO)),
    "nobody knows of the servers": (these(seen=replace(WELL, published=None), facts=Facts(placed=NAMES)), "Starting", "PodsStarting",
                                    these(Running=NO)),
    "the last snapshots are written": (these(seen=replace(WELL, published=published(state="Saving", stall_reason="snapshots", moved=0.0))),
                                       "Running", "TrainersReady", these(Progressing=YES)),
    "a server is away": (these(before=RAN, facts=Facts(placed=NAMES, ready=NAMES - {"flights-pserver-1"})),
                         "Starting", "ServersAway", these(Running=NO)),
    "trainers are away": (these(before=RAN, seen=replace(WELL, trainers=trainers(1))), "Pending", "PodsPending",
                          these(Scheduled=NO, Running=NO)),
    "etcd is away": (these(before=RAN, facts=replace(KNOWN, etcd=False)), "Running", "TrainersReady",
                     these(Running=YES, Progressing=DARK)),
    "etcd is away and all is forgotten": (
        these(before=RAN, seen=replace(WELL, published=None, trainers=trainers(3, works=False)), facts=replace(KNOWN, etcd=False)),
        "Running", "MasterAway", these(Running=DARK, Progressing=DARK)),
    "it is to be suspended": (these(of=SUSPENDED), "Suspending", "PodsLeaving", these(Suspended=NO, Running=NO, Progressing=NO)),
    "it is suspended": (these(of=SUSPENDED, seen=Observed(published=published())), "Suspended", "SuspendRequested",
                        these(Suspended=YES, Scheduled=NO, Running=NO, Progressing=NO)),
    "its model is being written": (these(desired=0, seen=replace(WELL, trainers=trainers(1), ended=UNDONE)), "Running", "TrainersReady",
                                   these(Scheduled=YES, Running=YES, Progressing=YES)),
    "its model is being written by who needs no master any more": (
        these(before=RAN, seen=replace(WELL, trainers=trainers(3, works=False), published=published(state="Complete", trainers=[], servers=[]), ended=UNDONE)),
        "Running", "TrainersReady", these(Scheduled=YES, Running=YES, Progressing=YES)),
    "nobody writes its model": (these(seen=replace(WELL, trainers=trainers(1, ready=False, works=False), ended=UNDONE)),
                                "Starting", "PodsStarting", these(Running=NO, Progressing=NO)),
    "complete": (these(seen=replace(WELL, trainers=trainers(1, ended=True), ended=UNDONE, saved=True)),
                 "Complete", "AllSamplesCommitted", these(Complete=YES, Scheduled=NO, Running=NO, Progressing=NO)),
    "complete, and then suspended": (these(of=SUSPENDED, seen=Observed(ended=UNDONE, saved=True)),
                                     "Complete", "AllSamplesCommitted", these(Complete=YES, Suspended=None)),
    "failed by the operator": (these(seen=replace(WELL, ended=FAILED_BY_US)), "Failed", "DeadlineExceeded", these(Failed=YES, Running=NO)),
    "failed by its script": (these(seen=replace(WELL, ended=Ended("Failed", "it cannot go on"))), "Failed", "ScriptFailed", these(Failed=YES)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_state_and_what_decides_it_when(name):
    seen, state, reason, conditions = CASES[name]
    status = compute_status(**seen)
    assert (status.state, status.reason) == (state, reason)
    found = {of: each.status for of, each in said(status).items()}
    assert {of: found.get(of) for of in conditions} == conditions
    assert {state for _, state, *_ in CASES.values()} == set(State), "the table is whole"
    ends = {"Complete", "Failed"} & found.keys()
    assert ends == {state} & {"Complete", "Failed"}
    assert all(each.observed_generation == 1 for each in status.conditions)
    assert {each.last_transition_time for each in status.conditions} == {NOW}


def test_a_job_is_placed_when_every_pod_that_it_needs_is():
    young = replace(WELL, trainers=trainers(2, ready=False, works=False), published=None)
    needed = NAMES - {"flights-trainer-2", "flights-trainer-3"}
    odd = [PodProblem("trainer", "flights-trainer-0", "Odd")]
    assert in_short(compute_status(young, facts=Facts(placed=needed, ready=frozenset())))["Scheduled"][0] == "True"
    for name in needed:
        facts = Facts(placed=needed - {name}, ready=frozenset())
        assert in_short(compute_status(young, facts=facts, problems=odd))["Scheduled"] == ("Unknown", "PodsPending")


def test_what_is_missing_is_named():
    status = compute_status(Observed(), facts=Facts(ready=frozenset()))
    assert said(status)["Scheduled"].message == "not created yet: 2 trainers, 2 parameter servers, 1 master"
    assert said(status)["Running"].message == "not ready: 2 trainers, 2 parameter servers, 1 master"
    left = replace(WELL, servers=(), masters=())
    assert said(compute_status(left, of=SUSPENDED))["Suspended"].message == "remaining: 3 trainers"


# --- A job that is not accepted ---


def test_of_a_refused_spec_nothing_else_is_claimed():
    status = compute_status(Observed(), refused="UnknownPriority: no priority 'bath'")
    assert in_short(status) == {"Accepted": ("False", "UnknownPriority")}
    assert said(status)["Accepted"].message == "no priority 'bath'"
    assert status.to_mapping().keys() == {"observedGeneration", "state", "reason", "conditions"}
    assert status.state == State.PENDING


def test_a_spec_that_cannot_be_read_needs_no_job():
    status = status_of(
        None, generation=1, seen=WELL, desired=0, problems=[], refused="spec: what?", now=NOW, before=RAN
    )
    assert in_short(status) == {"Accepted": ("False", "InvalidSpec")}
    assert said(status)["Accepted"].message == "spec: what?"


def test_a_job_that_runs_and_is_refused_is_not_called_pending_and_keeps_its_history():
    ran = compute_status(facts=replace(KNOWN, failures=2))
    status = compute_status(before=ran, refused="no", generation=2)
    assert (status.state, status.start_time, status.failures) == (None, NOW, 2)
    assert status.trainers is status.progress is None
    end = compute_status(replace(WELL, ended=UNDONE, saved=True))
    refused = compute_status(before=end, refused="no", generation=2)
    assert (refused.state, refused.progress, refused.completion_time) == (State.COMPLETE, end.progress, NOW)
    assert in_short(compute_status(before=status, generation=3))["Accepted"] == ("True", "Valid")


# --- Pod problems ---


@pytest.mark.parametrize(
    ("own", "words", "of", "reason"),
    [
        ("Unschedulable", "0/3 nodes are available", "Scheduled", "Unschedulable"),
        ("FailedCreate", "exceeded quota: cpu", "Scheduled", "QuotaExceeded"),
        ("Forbidden", "violates PodSecurity", "Scheduled", "PodsRefused"),
        ("ImagePullBackOff", "no such host", "Running", "ImagePullFailed"),
        ("CreateContainerConfigError", 'secret "s" not found', "Running", "ContainerCannotStart"),
        ("CrashLoopBackOff", "exit code 3", "Running", "CrashLoop"),
        ("OOMKilled", "", "Running", "OutOfMemory"),
    ],
)
def test_a_pod_problem_has_the_pods_own_reason(own, words, of, reason):
    found = PodProblem("trainer", "flights-trainer-1", own, words)
    placed = NAMES - {"flights-trainer-1"} if of == "Scheduled" else NAMES
    short = replace(WELL, trainers=trainers(1))
    if of == "Running":
        short = replace(WELL, trainers=(*trainers(1), TrainerPod(index=1, uid="x")))
    condition = said(compute_status(short, problems=[found], facts=replace(KNOWN, placed=placed)))[of]
    assert (condition.status, condition.reason) == ("False", reason)
    assert condition.message.endswith(f"flights-trainer-1: {own}" + (f": {words}" if words else ""))

    enough = said(compute_status(problems=[replace(found, pod="flights-trainer-9")]))[of]
    assert enough.status == "True"
    assert own in enough.message


def test_an_unknown_problem_decides_nothing_and_is_shown():
    status = compute_status(
        replace(WELL, trainers=trainers(2, works=False)), problems=[PodProblem("trainer", "a", "Odd", "x" * 10_000)]
    )
    assert said(status)["Running"].reason == "PodsStarting"
    assert "a: Odd: xxx" in said(status)["Running"].message
    assert len(said(status)["Running"].message) < 1000


def test_the_first_problem_does_not_depend_on_their_order():
    found = [PodProblem("trainer", f"flights-trainer-{n}", "ErrImagePull", "x") for n in (10, 9, 11)]
    found.append(PodProblem("master", "flights-master-abcdefgh", "CrashLoopBackOff", "y"))
    messages = {said(compute_status(problems=each))["Running"].message for each in itertools.permutations(found)}
    assert messages == {"flights-master-abcdefgh: CrashLoopBackOff: y; flights-trainer-9: ErrImagePull: x (and 2 more)"}


# --- Counts, times, allocation ---


def test_a_server_too_many_is_none():
    """A StatefulSet adopts any pod with a name of its scheme; such a pod is not counted as a server."""
    more = ServerPod(name="flights-pserver-7", uid="s7")
    facts = replace(KNOWN, ready=NAMES | {more.name})
    unheard = replace(WELL, published=None)
    assert compute_status(replace(unheard, servers=(*servers(), more)), facts=facts).servers.text == "2/2"
    status = compute_status(replace(unheard, servers=(*servers(1), more)), facts=facts)
    assert status.servers.text == "1/2"
    assert "1 parameter server" in said(status)["Running"].message


def test_a_process_is_ready_by_kubelet_and_master():
    pods = (*trainers(2), TrainerPod(index=2, uid="a", ready=True), TrainerPod(index=3, uid="b", works=True),
            TrainerPod(index=4, uid="c", ready=True, works=True, lost=True),
            TrainerPod(index=5, uid="d", ready=True, works=True, deleting=True))  # fmt: skip
    leaving = (*servers(1), *servers(2, deleting=True)[1:])
    assert compute_status(replace(WELL, servers=leaving)).servers.text == "1/2"
    status = compute_status(replace(WELL, trainers=pods, published=published(servers=[1])), desired=4)
    assert (status.trainers.text, status.trainers.range, status.servers.text) == ("2/4", "2-4", "1/2")
    assert status.master.ready


def test_without_a_status_of_its_pod_the_master_is_absent():
    assert compute_status(facts=Facts()).master is None
    assert compute_status(replace(WELL, masters=()), facts=Facts()).master.ready is False


def test_the_selector_finds_the_trainers():
    labels = trainer_pod(job(), IDENTITY, 0)["metadata"]["labels"]
    wanted = dict(each.split("=") for each in compute_status().selector.split(","))
    assert wanted.items() <= labels.items()
    assert not wanted.items() <= master_pod(job(), IDENTITY)["metadata"]["labels"].items()


def test_a_suspended_or_ended_job_has_no_desired_pods():
    for status in (compute_status(of=SUSPENDED), compute_status(replace(WELL, ended=FAILED_BY_US))):
        assert (status.trainers.desired, status.servers.desired, status.allocation) == (0, 0, None)
        assert status.progress.rate is status.progress.estimated_end is None
    assert compute_status(Observed(), of=SUSPENDED).master is None


@pytest.mark.parametrize(
    ("spec", "wanted", "why", "shown"),
    [({}, 3, "", None), ({}, 4, "", "at spec.trainer.maxReplicas"), ({}, 3, "no room for cpu 1", "no room for cpu 1"),
     ({"trainer": {"minReplicas": 2, "maxReplicas": 4, "replicas": 3}}, 3, "", "pinned by spec.trainer.replicas")],
)  # fmt: skip
def test_the_allocation_has_the_reason_for_no_more(spec, wanted, why, shown):
    allocation = compute_status(of=job(**spec), desired=wanted, facts=replace(KNOWN, reason=why)).allocation
    assert (allocation.desired, allocation.ready, allocation.message) == (wanted, 3, shown)
    assert compute_status(desired=2).allocation.ready == 2, "a trainer that is about to leave does not count"


def test_times_are_of_what_happened_first_or_last():
    first = compute_status()
    assert (first.start_time, first.last_scale_time, first.completion_time) == (NOW, None, None)
    more = compute_status(before=first, desired=4, now=NOW + SECOND)
    assert (more.start_time, more.last_scale_time) == (NOW, NOW + SECOND)
    facts = replace(KNOWN, account=ACCOUNT)
    assert compute_status(before=more, desired=4, now=NOW + 2 * SECOND, facts=facts).account is None
    end = compute_status(replace(WELL, ended=UNDONE, saved=True), before=more, now=NOW + 3 * SECOND, facts=facts)
    assert (end.completion_time, end.last_scale_time, end.account) == (NOW + 3 * SECOND, NOW + SECOND, ACCOUNT)
    later = compute_status(Observed(), before=end, now=NOW + 9 * SECOND, facts=Facts())
    assert (later.state, later.completion_time, later.account) == (State.COMPLETE, NOW + 3 * SECOND, ACCOUNT)
    assert later.progress.percent == "50%", "as reported last"


def test_a_failed_job_has_no_completion_and_keeps_its_failures():
    status = compute_status(replace(WELL, ended=FAILED_BY_US), facts=replace(KNOWN, failures=7, account=ACCOUNT))
    assert (status.completion_time, status.failures, status.account) == (None, 7, ACCOUNT)
    assert compute_status(before=status).failures == 7


def test_the_first_end_is_final():
    complete, failed = replace(WELL, ended=UNDONE, saved=True), replace(WELL, ended=FAILED_BY_US)
    for first, second in ((complete, failed), (failed, complete)):
        end = compute_status(first)
        later = compute_status(second, before=end, generation=2, now=NOW + SECOND)
        assert (later.state, later.reason) == (end.state, end.reason)
        assert {"Complete", "Failed"} & said(later).keys() == {end.state}
        assert said(later)[end.state] == said(end)[end.state], "it was observed for the spec of then"


def test_only_a_job_that_was_suspended_is_resumed():
    assert "Suspended" not in said(compute_status())
    assert in_short(compute_status(before=compute_status(of=SUSPENDED)))["Suspended"] == ("False", "Resumed")


def test_a_stale_spec_changes_nothing():
    before = compute_status(generation=5)
    assert compute_status(Observed(), generation=4, before=before) is before


# --- Progress ---


def test_progress_is_as_the_master_reports():
    assert compute_status().to_mapping()["progress"] == {
        "epoch": 2, "epochs": 3, "text": "2/3", "samples": 1500, "expected": 3000, "percent": "50%", "rate": 10.0,
        "lastStepTime": "2026-03-04T05:06:06Z", "estimatedEnd": "2026-03-04T05:08:36Z",
    }  # fmt: skip


def test_what_the_master_does_not_know_is_absent():
    blank = published(
        state="Starting", epochs=0, epoch=0, expected=0, samples=0, rate=0.0, moved=0.0, stall_reason="waits"
    )
    status = compute_status(replace(WELL, published=blank))
    assert status.to_mapping()["progress"] == {"samples": 0, "message": "waits"}
    assert (said(status)["Progressing"].reason, said(status)["Progressing"].message) == ("NotBegun", "waits")
    assert compute_status(replace(WELL, published=None)).progress is None
    wild = compute_status(replace(WELL, published=published(samples=-1, expected=2**70, epoch=7))).progress
    assert (wild.samples, wild.expected, wild.text) == (0, 2**63 - 1, "3/3")


OLD = {
    "etcd is away": (WELL, {"etcd": False}, "EtcdUnreachable"),
    "a former master spoke": (WELL, {"generation": 2}, "NoNews"),
    "the master is not ready": (WELL, {"ready": NAMES - {"flights-master-a"}}, "NoNews"),
    "it is silent": (
        replace(WELL, published=published(moved=1.0)),
        {"reported_at": NOW - SILENT_AFTER - SECOND},
        "NoNews",
    ),
}


@pytest.mark.parametrize("name", OLD)
def test_values_of_the_present_are_absent_when(name):
    seen, known, reason = OLD[name]
    status = compute_status(seen, facts=replace(KNOWN, **known))
    assert in_short(status)["Progressing"] == ("Unknown", reason)
    assert (status.progress.samples, status.progress.text) == (1500, "2/3")
    assert status.progress.rate is status.progress.estimated_end is status.progress.message is None


def test_an_unreachable_etcd_removes_only_values_of_the_present():
    seen = replace(WELL, published=None)
    status = compute_status(seen, before=compute_status(), facts=replace(KNOWN, etcd=False))
    assert (status.progress.percent, status.progress.rate) == ("50%", None)
    assert compute_status(seen, before=compute_status()).progress is None, "it was asked, and has nothing"


def test_a_master_s_clock_is_not_compared_with_others():
    """A master's clock may be hours off, so it is compared with no other; a new operator starts from the last status."""
    for skew in (-3 * 3600, 3 * 3600):
        seen = replace(WELL, published=published(moved=NOW.timestamp() + skew))
        status = compute_status(seen, facts=replace(KNOWN, moved=NOW - SECOND))
        assert in_short(status)["Progressing"] == ("True", "SamplesCommitted")
        assert (status.progress.last_step_time, status.progress.rate) == (NOW - SECOND, 10.0)
        assert status.progress.estimated_end == NOW + 149 * SECOND
    before = compute_status(facts=replace(KNOWN, moved=NOW - STALLED_AFTER - SECOND))
    assert in_short(before)["Progressing"] == ("False", "Stalled")
    begun = replace(KNOWN, moved=NOW)
    assert in_short(compute_status(before=before, facts=begun))["Progressing"] == ("False", "Stalled")
    more = replace(WELL, published=published(samples=1501))
    assert in_short(compute_status(more, before=before, facts=begun))["Progressing"] == ("True", "SamplesCommitted")


def test_a_master_with_a_reason_is_not_silent():
    still = replace(WELL, published=published(moved=(NOW - 20 * SECOND).timestamp(), stall_reason="a long task"))
    status = compute_status(still, facts=replace(KNOWN, reported_at=NOW - timedelta(hours=1)))
    assert in_short(status)["Progressing"] == ("True", "SamplesCommitted")
    assert status.progress.message == "a long task"


@pytest.mark.parametrize(
    "more",
    [{"rate": 0.0}, {"rate": math.nan}, {"rate": math.inf}, {"rate": 5e-324},
     {"samples": 3000, "moved": NOW.timestamp() + 5}, {"samples": 4000}, {"rate": 1.7e308}],
)  # fmt: skip
def test_no_end_is_estimated_from(more):
    assert compute_status(replace(WELL, published=published(**more))).progress.estimated_end is None


# --- When the status is written ---


def test_progress_is_written_every_fifteen_seconds_numbers_every_other_and_all_else_at_once():
    before = compute_status()
    assert (
        pause_seconds(before, compute_status(replace(WELL, published=published(samples=1600)), before=before)) == 15.0
    )
    less = replace(KNOWN, ready=NAMES - {"flights-pserver-1"})
    assert pause_seconds(before, compute_status(before=before, facts=less)) <= 2.0
    assert pause_seconds(before, compute_status(before=before, desired=4)) == 0.0
    assert pause_seconds(before, compute_status(before=before, generation=2)) == 0.0


def test_how_many_are_ready_is_no_news_that_cannot_wait():
    idle = TrainerPod(index=2, uid="t2", ready=True, works=False)
    before = compute_status(replace(WELL, trainers=(*trainers(2), idle)))
    after = compute_status(replace(WELL, trainers=trainers(3)), before=before)
    assert (before.trainers.ready, after.trainers.ready) == (2, 3)
    assert before.state == after.state
    assert pause_seconds(before, after) == 2.0


def test_a_status_by_another_hand_is_put_right():
    twice = [Condition(type=of, status="True", reason="X", last_transition_time=NOW) for of in ("Failed", "Complete", "Running", "Running")]  # fmt: skip
    after = compute_status(before=Status(conditions=twice))
    assert sum(each.type in {"Complete", "Failed"} for each in after.conditions) == 1
    assert len(said(after)) == len(after.conditions)


# --- The autoscaler ---


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("Following", "True"),
        ("Pinned", "False"),
        ("Disabled", "False"),
        ("DryRun", "False"),
        ("ConfigRefused", "False"),
    ],
)
def test_whether_a_job_follows_the_autoscaler(reason, status):
    found = said(compute_status(facts=replace(KNOWN, autoscaled=(Reason(reason), "w" * 2000))))["Autoscaled"]
    assert (found.status, found.reason, len(found.message)) == (status, reason, 1000)


def test_autoscaled_is_absent_without_an_autoscaler_and_for_a_stopped_job():
    assert "Autoscaled" not in said(compute_status())
    known = replace(KNOWN, autoscaled=(Reason.FOLLOWING, ""))
    assert "Autoscaled" not in said(compute_status(of=SUSPENDED, facts=known))
    assert "Autoscaled" not in said(compute_status(seen=replace(WELL, ended=FAILED_BY_US), facts=known))
    assert "Autoscaled" not in said(compute_status(refused="InvalidTemplate: no", facts=known))


def test_that_a_configuration_is_refused_decides_no_state_and_is_written_at_once_and_once():
    well = compute_status(facts=replace(KNOWN, autoscaled=(Reason.FOLLOWING, "")))
    known = replace(KNOWN, autoscaled=(Reason.CONFIG_REFUSED, "line 1: dryRuns: unknown field"))
    refused = compute_status(before=well, facts=known, now=NOW + SECOND)
    assert (refused.state, refused.reason) == (well.state, well.reason)
    assert pause_seconds(well, refused) == 0.0
    assert said(refused)["Autoscaled"].last_transition_time == NOW + SECOND
    assert compute_status(before=refused, facts=known, now=NOW + 9 * SECOND) == refused
