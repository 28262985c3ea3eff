"""Properties of every status, whatever is observed and whatever was observed before."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from hypothesis import given
from hypothesis import strategies as st

from shoal.api.crd import crd
from shoal.api.status import REASONS, ConditionType, ProgressStatus, Reason, Status
from shoal.operator.core.reconcile import Ended, Observed
from shoal.operator.core.scaling import TrainerPod
from shoal.operator.status.conditions import PodProblem
from shoal.operator.status.facts import Facts
from tests.operator.jobs import job
from tests.operator.looks import (
    ACCOUNT,
    MASTERS,
    NAMES,
    NOW,
    SECOND,
    WELL,
    compute_status,
    published,
    said,
    servers,
)
from tests.soak import examples

SUSPENDED = job(suspend=True)
ENDS = [Ended("Complete"), Ended("Complete"), Ended("Failed", "DeadlineExceeded: late"), Ended("Failed", "x")]
BOOL = st.booleans()
FEW = st.integers(0, 4)
TIMES = st.integers(-60, 60).map(lambda seconds: NOW + seconds * SECOND)


def often(usual, *rare):
    """Generate mostly the usual value, so that not every field is unusual at once."""
    return st.sampled_from([*[st.just(usual)] * 8, *rare]).flatmap(lambda each: each)


TRAINERS = st.lists(
    st.builds(TrainerPod, index=FEW, uid=st.just("t"), ended=BOOL, deleting=BOOL, lost=BOOL, ready=BOOL, works=BOOL),
    unique_by=lambda pod: pod.index, max_size=4,
).map(tuple)  # fmt: skip
NUMBERS = st.one_of(st.sampled_from([0, 1, 9999, -1, 2**70]), st.integers(0, 3000))
PUBLISHED = st.builds(
    published, generation=st.integers(1, 2), state=st.sampled_from(["Starting", "Running", "Saving", "Complete", "?"]),
    epoch=NUMBERS, epochs=NUMBERS, samples=NUMBERS, expected=NUMBERS, rate=st.floats(), stall_reason=st.sampled_from(["", "waits"]),
    moved=st.one_of(TIMES.map(datetime.timestamp), st.just(0.0)), servers=often([0, 1], st.sampled_from([[], [0]])),
)  # fmt: skip
SEEN = st.builds(
    Observed,
    trainers=often(WELL.trainers, TRAINERS, TRAINERS, st.just(())),
    saved=BOOL,
    servers=often(WELL.servers, st.builds(servers, count=st.integers(0, 2), lost=BOOL), st.just(())),
    masters=often(MASTERS, st.just(()), st.just((replace(MASTERS[0], lost=True),))),
    published=often(WELL.published, st.none(), PUBLISHED, PUBLISHED),
    ended=often(None, st.sampled_from(ENDS)),
)
SOME_NAMES = often(NAMES, st.none(), st.sets(st.sampled_from(sorted(NAMES))).map(frozenset))
FACTS = st.builds(
    Facts, etcd=often(True, st.just(False)), placed=SOME_NAMES, ready=SOME_NAMES, generation=st.none() | st.integers(1, 2),
    reported_at=often(NOW, st.none(), TIMES), moved=often(NOW - SECOND, st.none(), TIMES), account=st.sampled_from([None, ACCOUNT]), failures=st.none() | FEW, reason=st.just("w"),
    planned=st.sampled_from([None, False, True]), requested_by=st.sampled_from(["", "kubectl"]),
    autoscaled=st.sampled_from([None, (Reason.FOLLOWING, ""), (Reason.CONFIG_REFUSED, "line 1"), (Reason.CONFIG_REFUSED, "line 2")]),
)  # fmt: skip
PROBLEM = st.builds(
    PodProblem, st.sampled_from(["master", "trainer", "?"]), st.sampled_from(sorted(NAMES)),
    st.sampled_from(["Unschedulable", "ErrImagePull", "OOMKilled", "Odd"]), st.sampled_from(["", "exceeded quota: x"]),
)  # fmt: skip
LOOKS = st.fixed_dictionaries(
    {
        "seen": often(WELL, SEEN, SEEN, SEEN, SEEN, SEEN, SEEN, st.just(Observed())), "of": often(job(), st.just(SUSPENDED)),
        "generation": often(2, st.integers(1, 3)), "desired": often(3, FEW), "problems": st.lists(PROBLEM, max_size=2),
        "refused": often("", st.sampled_from(["InvalidTemplate: no", "no"])), "now": TIMES, "facts": FACTS,
    }
)  # fmt: skip
ANY = st.lists(LOOKS, min_size=1, max_size=5)


def whatever(test):
    return examples(100)(given(ANY)(test))


def story(looks):
    """Yield each status of a sequence with the one before it and the observation that it was computed from."""
    before = Status()
    for look in looks:
        after = compute_status(before=before, **look)
        yield before, look, after
        before = after


@whatever
def test_the_same_observation_changes_nothing(looks):
    for _, look, after in story(looks):
        assert compute_status(before=after, **look) == after


@whatever
def test_a_transition_is_a_flip_and_moves_forward_only(looks):
    for before, look, after in story(looks):
        old, new = said(before), said(after)
        for of in old.keys() & new.keys():
            flipped = old[of].status != new[of].status
            assert new[of].last_transition_time >= old[of].last_transition_time
            assert flipped or new[of].last_transition_time == old[of].last_transition_time
            assert not flipped or new[of].last_transition_time == max(look["now"], old[of].last_transition_time)
        assert {each.reason for each in new.values()} <= set(Reason)
        assert all(each.reason in REASONS[ConditionType(of)] for of, each in new.items())
        assert after.reason in {each.reason for each in new.values()}


@whatever
def test_an_end_is_final_and_only_one(looks):
    for before, _, after in story(looks):
        ends = [each for each in after.conditions if each.type in {"Complete", "Failed"}]
        assert [each.status for each in ends] == ["True"] * len(ends)
        assert len(ends) <= 1
        assert [each for each in before.conditions if each.type in {"Complete", "Failed"}] in ([], ends)
        assert (after.state in {"Complete", "Failed"}) == bool(ends)
        assert not ends or after.state == ends[0].type
        assert (after.completion_time is not None) == (after.state == "Complete")


@whatever
def test_counts_and_conditions_never_contradict_each_other(looks):
    for before, look, after in story(looks):
        if after is before:  # an old view of the spec
            continue
        found = {of: each.status for of, each in said(after).items()}
        percent = after.progress.percent if after.progress is not None else None
        assert percent is None or 0 <= int(percent.removesuffix("%")) <= 100
        if found.get("Running") == "True":
            assert found["Accepted"] == "True" or look["refused"], "what was accepted before goes on"
            assert found["Scheduled"] == "True" or look["desired"] < 2
            assert after.start_time is not None
            assert after.trainers.ready >= (1 if look["seen"].ended is not None else 2)
            assert after.servers.ready == 2
        assert found.get("Suspended") != "True" or found["Running"] == found["Progressing"] == "False"
        if found.get("Progressing") == "Unknown":
            progress = after.progress or ProgressStatus()
            assert progress.rate is progress.estimated_end is None


SCHEMA = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}


def known(value, schema, path="status"):
    """Check that every field is in the definition, has its type and is within its bounds."""
    assert isinstance(value, TYPES[schema["type"]]), path
    if isinstance(value, dict):
        assert value.keys() <= schema["properties"].keys(), path
        assert set(schema.get("required", ())) <= value.keys(), path
        for name, below in value.items():
            known(below, schema["properties"][name], f"{path}.{name}")
    elif isinstance(value, list):
        for each in value:
            known(each, schema["items"], f"{path}[]")
    else:
        assert value in schema.get("enum", [value]), path
        assert isinstance(value, str | float) or -(2**63) <= value < 2**63, path


@whatever
def test_what_is_written_is_known_to_the_definition_and_read_again_the_same(looks):
    for _, _, after in story(looks):
        written = after.to_mapping()
        known(written, SCHEMA)
        assert Status.from_mapping(written) == after
