"""The history of a job's size in its status: what is recorded, and who is named."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.api.status import Condition, ConditionType, HistoryEntry, Reason, Status, TrainersStatus
from shoal.operator.core.reconcile import Ended
from shoal.operator.core.size_request import size_request
from shoal.operator.status.facts import Facts
from shoal.operator.status.size_history import MOST_ENTRIES, history_after
from shoal.operator.status.writer import pause_seconds
from tests.operator.jobs import job
from tests.operator.looks import KNOWN, NOW, SECOND, WELL, compute_status
from tests.soak import examples

DECIDED = replace(KNOWN, planned=False, requested_by="kubectl")
PLANNED = replace(DECIDED, planned=True)


def sized(**trainer):
    return job(trainer={"minReplicas": 2, "maxReplicas": 4} | trainer)


def reported(of, desired, *, before=None, facts=DECIDED, now=NOW):
    """Return the last entry after this observation: before, after, cause and by; None: nothing was added."""
    before = before if before is not None else Status()
    found = history_after(before, of, desired, facts, now)
    return None if found == before.history else (found[-1].before, found[-1].after, found[-1].cause, found[-1].by)


def after(*changes, **more):
    """Build a status whose history has these changes: (before, after, cause)."""
    entries = [HistoryEntry(time=NOW, before=old, after=new, cause=cause) for old, new, cause in changes]
    return Status(history=entries, **more)


# --- What is recorded ---


@pytest.mark.parametrize(
    ("of", "desired", "facts", "entry"),
    [
        (sized(), 2, DECIDED, (0, 2, "at spec.trainer.minReplicas", "kubectl")),
        (sized(replicas=3), 3, DECIDED, (0, 3, "pinned by spec.trainer.replicas", "kubectl")),
        (sized(maxReplicas=2), 2, DECIDED, (0, 2, "at spec.trainer.maxReplicas", "kubectl")),
        (sized(), 3, replace(PLANNED, reason="no node has room for cpu 4"), (0, 3, "no node has room for cpu 4", "autoscaler")),
        (sized(), 4, PLANNED, (0, 4, "at spec.trainer.maxReplicas", "autoscaler")),
        (sized(replicas=3), 3, replace(PLANNED, reason="pinned at 3"), (0, 3, "pinned by spec.trainer.replicas", "kubectl")),
        (sized(), 2, replace(DECIDED, requested_by=""), (0, 2, "at spec.trainer.minReplicas", "")),
    ],
)  # fmt: skip
def test_the_first_number_is_recorded_with_its_cause_and_who_asked(of, desired, facts, entry):
    assert reported(of, desired, facts=facts) == entry


def test_a_pinned_job_without_room_was_changed_by_the_autoscaler():
    queued = replace(PLANNED, reason="waits for room for 3 trainers")
    before = after((0, 3, "pinned by spec.trainer.replicas"))
    assert reported(sized(replicas=3), 0, before=before, facts=queued) == (
        3,
        0,
        "waits for room for 3 trainers",
        "autoscaler",
    )


def test_suspending_and_resuming_are_recorded_as_such():
    running = after((0, 2, "at spec.trainer.minReplicas"))
    suspended = job(suspend=True)
    assert reported(suspended, 0, before=running) == (2, 0, "suspended", "kubectl")
    paused = after((0, 2, "at spec.trainer.minReplicas"), (2, 0, "suspended"))
    assert reported(suspended, 0, before=paused) is None
    assert reported(sized(), 2, before=paused) == (0, 2, "resumed", "kubectl")
    assert reported(sized(), 4, before=paused, facts=PLANNED) == (0, 4, "resumed", "kubectl")
    queued = after((2, 0, "waits for room"))
    assert reported(sized(), 2, before=queued, facts=PLANNED) == (0, 2, "at spec.trainer.minReplicas", "autoscaler")


def test_a_job_that_was_created_suspended_is_resumed_with_its_first_trainers():
    condition = Condition(type=ConditionType.SUSPENDED, status="False", reason=Reason.RESUMED, last_transition_time=NOW)
    assert reported(job(suspend=True), 0) is None
    assert reported(sized(), 2, before=Status(conditions=[condition])) == (0, 2, "resumed", "kubectl")


def test_a_number_that_is_not_decided_yet_is_not_recorded():
    before = after((0, 3, "x"), trainers=TrainersStatus(desired=3, min=2, max=4))
    waits = replace(KNOWN, planned=None, reason="waits for the autoscaler's next plan")
    assert reported(sized(), 4, before=before, facts=waits) is None
    assert reported(sized(), 3, before=before, facts=PLANNED) is None, "the number before is that of the last entry"


def test_the_status_of_an_operator_without_a_history_is_continued():
    before = Status(trainers=TrainersStatus(desired=3, min=2, max=4))
    assert reported(sized(), 3, before=before) is None
    assert reported(sized(replicas=4), 4, before=before) == (3, 4, "pinned by spec.trainer.replicas", "kubectl")


def test_a_change_is_written_at_once_and_needs_no_write_of_its_own():
    before = compute_status(facts=DECIDED, desired=2)
    later = compute_status(facts=DECIDED, desired=4, before=before, of=sized(replicas=4), now=NOW + SECOND)
    assert [each.after for each in later.history] == [2, 4]
    assert later.trainers.desired != before.trainers.desired
    assert pause_seconds(before, later) == 0.0


def test_an_ended_job_keeps_its_history():
    before = compute_status(facts=DECIDED, desired=3)
    for ended in (Ended("Failed", "DeadlineExceeded: late"), Ended("Complete")):
        seen = replace(WELL, ended=ended, saved=True)
        later = compute_status(seen, facts=DECIDED, desired=2, before=before)
        assert later.history == before.history != []
    assert compute_status(of=None, refused="InvalidSpec: no", before=before).history == before.history


def test_texts_are_clipped():
    (entry,) = history_after(Status(), sized(), 3, replace(PLANNED, reason="x" * 9999), NOW)
    assert len(entry.cause) == 200
    (entry,) = history_after(Status(), sized(), 3, replace(DECIDED, requested_by="x" * 9999), NOW)
    assert len(entry.by) == 128


FACTS = st.builds(
    Facts,
    planned=st.sampled_from([None, False, True]),
    requested_by=st.text(max_size=300),
    reason=st.text(max_size=300),
)
LOOKS = st.tuples(st.sampled_from([sized(), sized(replicas=3), job(suspend=True)]), st.integers(0, 4), FACTS)


@examples(60)
@given(st.lists(LOOKS, max_size=30), st.integers(0, 120))
def test_the_history_is_bounded_without_gaps_and_ends_with_the_decided_number(looks, old):
    status = after(*((number, number + 1, "x") for number in range(old)))
    for number, (of, wanted, facts) in enumerate(looks):
        desired = 0 if of.spec.suspend else wanted
        known = status.history[-1].after if status.history else 0
        found = history_after(status, of, desired, facts, NOW + number * SECOND)
        assert len(found) <= max(MOST_ENTRIES, len(status.history))
        added = found[-1:] if found != status.history else []
        assert bool(added) == (facts.planned is not None and known != desired)
        for each in added:
            assert (each.before, each.after) == (known, desired)
            assert each.cause
            assert facts.planned or each.by != "autoscaler" or facts.requested_by == "autoscaler"
        status = Status.from_mapping(Status(history=found).to_mapping())
        assert status.history == found
        assert history_after(status, of, desired, facts, NOW) == found
    entries = status.history[1:] if len(status.history) > old else []
    assert all(one.after == other.before for one, other in pairwise(entries))


# --- Who asked ---


def record(manager, *fields, time="2026-03-04T05:06:07Z", operation="Update", subresource=""):
    """Build an entry of managedFields with these fields: replicas, minReplicas, maxReplicas, suspend, image, note."""
    spec = {f"f:{name}": {} for name in fields if name in {"suspend", "image"}}
    trainer = {f"f:{name}": {} for name in fields if name.endswith("eplicas")}
    spec |= {"f:trainer": trainer} if trainer else {}
    made = {"manager": manager, "operation": operation, "apiVersion": "shoal.dev/v1alpha1", "fieldsType": "FieldsV1"}
    notes = {"f:metadata": {"f:annotations": {"f:note": {}}}} if "note" in fields else {}
    made |= {"time": time, "fieldsV1": ({"f:spec": spec} if spec else {}) | notes}
    return made | ({"subresource": subresource} if subresource else {})


def version(generation, *records, suspend=None, history=(), **trainer):
    spec = {"trainer": {"minReplicas": 2, "maxReplicas": 4} | trainer} | (
        {} if suspend is None else {"suspend": suspend}
    )
    status = {"history": [{"time": time, "before": 0, "after": 2} for time in history]}
    metadata = {"name": "j", "generation": generation, "managedFields": list(records)}
    return {"metadata": metadata, "spec": spec, "status": status}


CREATED = record("kubectl-client-side-apply", "minReplicas", "maxReplicas", "image")
SCALED = record("kubectl", "replicas", time="2026-03-04T06:00:00Z")
BY_SCALE = record("kubectl", "replicas", time=None, subresource="scale")
LATER = "2026-03-04T07:00:00Z"


def asked(*versions):
    found = None
    for each in versions:
        found = size_request(found, each)
    return found.by


FIRST = version(1, CREATED)
PINNED = version(2, CREATED, SCALED, replicas=3)


def test_the_creator_asked_for_the_first_size():
    assert asked(FIRST) == "kubectl-client-side-apply"


def test_the_owner_of_a_changed_field_asked_for_the_change():
    assert asked(FIRST, PINNED) == "kubectl"
    sdk = record("shoal-sdk", "replicas", time=LATER)
    assert asked(FIRST, PINNED, version(3, CREATED, sdk, replicas=4)) == "shoal-sdk"
    edit = record("kubectl-edit", "maxReplicas", time=LATER)
    assert asked(FIRST, PINNED, version(3, CREATED, SCALED, edit, replicas=3, maxReplicas=8)) == "kubectl-edit"
    assert asked(FIRST, version(2, CREATED, record("shoal-sdk", "suspend", time=LATER), suspend=True)) == "shoal-sdk"


def test_a_request_to_the_scale_subresource_is_recorded_without_a_time():
    sdk = record("shoal-sdk", "replicas", time=LATER)
    pinned = version(2, CREATED, sdk, replicas=3)
    assert asked(FIRST, pinned, version(3, CREATED, BY_SCALE, replicas=4)) == "kubectl"
    assert asked(version(3, BY_SCALE, replicas=4)) == "kubectl"
    assert asked(version(3, BY_SCALE, history=[LATER], replicas=4)) == "kubectl"


def test_a_pin_without_an_owner_was_set_by_the_scale_subresource():
    """The API server does not record `kubectl scale` of a job that had no pin."""
    assert asked(FIRST, version(2, CREATED, replicas=3)) == "scale"
    assert asked(version(2, CREATED, replicas=3)) == "scale"
    assert asked(version(2, CREATED, history=[LATER], replicas=3)) == "", "the pin may be older than the change"
    assert asked(FIRST, version(2, replicas=3)) == "", "nothing at all is recorded"


def test_a_second_change_by_the_same_manager_within_a_second_is_its_own():
    assert asked(FIRST, PINNED, version(3, CREATED, SCALED, replicas=4)) == "kubectl"


def test_who_removes_a_pin_is_named_if_the_request_set_something_too():
    applied = record("kubectl-client-side-apply", "minReplicas", "maxReplicas", "image", "note", time=LATER)
    assert asked(FIRST, PINNED, version(3, applied)) == "kubectl-client-side-apply"


def test_who_only_removes_a_pin_is_not_known():
    """The API server records nothing of such a request, and the records of others are of earlier changes."""
    assert asked(FIRST, PINNED, version(3, CREATED)) == ""
    all_in_one = record("shoal-sdk", "minReplicas", "maxReplicas", "replicas")
    rest = record("shoal-sdk", "minReplicas", "maxReplicas")
    assert asked(version(1, all_in_one, replicas=3), version(2, rest)) == ""


def test_changes_of_other_fields_and_of_the_status_name_nobody():
    image = record("kubectl-set", "image", time=LATER)
    status = record("shoal", "note", time=LATER, subresource="status")
    assert asked(FIRST, PINNED, version(3, CREATED, SCALED, image, replicas=3)) == "kubectl"
    assert asked(FIRST, PINNED, version(2, CREATED, SCALED, status, replicas=3)) == "kubectl"
    assert asked(version(1, status)) == ""


def test_a_late_event_of_an_earlier_version_changes_nothing():
    assert asked(FIRST, PINNED, FIRST) == "kubectl"


def test_an_operator_that_starts_takes_the_newest_record_of_the_size():
    assert asked(PINNED) == "kubectl"
    assert asked(version(5, CREATED, SCALED, record("kubectl-set", "image", time=LATER), replicas=3)) == "kubectl"
    earlier, same, later = "2026-03-04T05:30:00Z", "2026-03-04T06:00:00Z", LATER
    assert asked(version(2, CREATED, SCALED, history=[earlier], replicas=3)) == "kubectl"
    assert asked(version(2, CREATED, SCALED, history=[earlier, same], replicas=3)) == "kubectl"
    assert asked(version(2, CREATED, SCALED, history=[earlier, later])) == "", "the change is in the history already"


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"managedFields": None},
        {"managedFields": [{}]},
        {"managedFields": [{"manager": "m", "time": "soon", "fieldsV1": None}]},
    ],
)
def test_a_job_without_readable_records_names_nobody(metadata):
    assert asked({"metadata": {"name": "j", **metadata}}) == ""


RECORDS = st.lists(
    st.builds(
        record, st.sampled_from(["a", "b", "c"]), st.sampled_from(["replicas", "suspend", "image", "note"]),
        time=st.sampled_from(["2026-03-04T05:06:07Z", LATER, "x"]), subresource=st.sampled_from(["", "scale", "status"]),
    ),
    max_size=4,
)  # fmt: skip
VERSIONS = st.lists(
    st.builds(
        lambda generation, records, suspend, replicas: version(generation, *records, suspend=suspend, replicas=replicas),
        st.integers(1, 5), RECORDS, st.sampled_from([None, False, True]), st.sampled_from([None, 2, 3]),
    ),
    min_size=1, max_size=5,
)  # fmt: skip


@examples(100)
@given(VERSIONS)
def test_only_a_manager_of_the_job_is_named(versions):
    found = None
    for each in versions:
        before, found = found, size_request(found, each)
        named = {one["manager"] for one in each["metadata"]["managedFields"] if one.get("subresource") != "status"}
        unchanged = before is not None and found.by == before.by
        assert found.by in {"", "scale"} | named or unchanged
        assert size_request(found, each) == found
