"""Leader election: judged from a Lease alone, with clocks that disagree, among candidates that pause and resume at any time."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import example, given
from hypothesis import strategies as st

from shoal.operator.leader_election import Candidate, Times, new_identity
from tests.soak import examples

STAMP = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
TIMES = Times()


def judged(candidate, lease, now):
    return candidate.next_lease(lease, now=now, stamp=STAMP)


def test_a_missing_lease_is_created():
    spec = judged(Candidate("a", TIMES), None, 5.0)["spec"]
    assert spec == {
        "holderIdentity": "a", "leaseDurationSeconds": 15, "leaseTransitions": 0,
        "acquireTime": "2026-01-02T03:04:05.000678Z", "renewTime": "2026-01-02T03:04:05.000678Z",
    }  # fmt: skip


def test_one_that_was_given_up_is_taken_at_once():
    lease = {"metadata": {"resourceVersion": "7"}, "spec": {"leaseTransitions": 3, "renewTime": "x"}}
    after = judged(Candidate("a", TIMES), lease, 5.0)
    assert (after["metadata"], after["spec"]["leaseTransitions"]) == ({"resourceVersion": "7"}, 4)


def test_a_dead_holder_keeps_it_for_its_own_duration_and_its_clock_is_ignored():
    candidate = Candidate("a", TIMES)
    lease = {"spec": {"holderIdentity": "b", "leaseDurationSeconds": 40, "renewTime": "1999-01-01T00:00:00.000000Z"}}
    assert judged(candidate, lease, 100.0) is None
    assert judged(candidate, lease, 139.9) is None
    assert judged(candidate, lease, 140.0)["spec"]["holderIdentity"] == "a"


def test_each_renewal_restarts_the_duration():
    candidate = Candidate("a", TIMES)
    for second in range(100):
        lease = {"spec": {"holderIdentity": "b", "renewTime": f"{second}"}}
        assert judged(candidate, lease, float(second)) is None
    assert judged(candidate, lease, 113.9) is None
    assert judged(candidate, lease, 114.0) is not None


def test_one_that_was_deleted_is_its_holder_s_for_as_long_as_a_new_one_would_be():
    candidate = Candidate("a", TIMES)
    judged(candidate, {"spec": {"holderIdentity": "b"}}, 100.0)
    assert judged(candidate, None, 112.0) is None
    assert judged(candidate, None, 126.9) is None
    assert judged(candidate, None, 127.0) is not None


def test_a_renewal_keeps_what_it_does_not_know():
    lease = {"spec": {"holderIdentity": "a", "acquireTime": "then", "leaseTransitions": 2, "strategy": "s"}}
    spec = judged(Candidate("a", TIMES), lease, 1.0)["spec"]
    assert (spec["acquireTime"], spec["leaseTransitions"], spec["strategy"]) == ("then", 2, "s")


def test_a_process_is_another_one_each_time():
    assert new_identity() != new_identity()


class Server:
    """A Lease with the API server's optimistic locking: a write needs the version that was read."""

    def __init__(self):
        self.lease, self.version = None, 0

    def write(self, after):
        read = int((after.get("metadata") or {}).get("resourceVersion", 0))
        if read != (self.version if self.lease is not None else 0):
            return False
        self.version += 1
        self.lease = {"metadata": {"resourceVersion": str(self.version)}, "spec": after["spec"]}
        return True


class Process:
    """A candidate with its own clock, driven as the election's I/O drives it."""

    def __init__(self, server, name, *, rate, offset):
        self.candidate = Candidate(name, TIMES)
        self.server, self.rate, self.offset = server, rate, offset
        self.number = 0
        self.read = None

    def clock(self, time):
        return self.offset + self.rate * time

    def may_act(self, time):
        return self.candidate.left(self.clock(time)) > 0

    def ask(self, time):
        self.read = (self.server.lease, self.clock(time))

    def answer(self, time):
        """Judge the Lease that was read, and write the result, some time after the read began."""
        if self.read is None:
            return
        (lease, began), self.read = self.read, None
        self.number += 1
        stamp = STAMP.replace(microsecond=self.number % 10**6)
        after = self.candidate.next_lease(lease, now=self.clock(time), stamp=stamp)
        if after is not None and self.server.write(after):
            self.candidate.lease_written(self.server.lease, began=began, now=self.clock(time))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["turn", "turn", "ask", "answer", "delete"]),
        st.integers(0, 2),
        st.sampled_from([0.0, 0.0, 1.0, 5.0, 9.0, 13.5, 14.5]),
    ),
    max_size=40,
)
RATES = st.lists(st.sampled_from([0.85, 1.0, 1.15]), min_size=3, max_size=3)
OFFSETS = st.lists(st.sampled_from([0.0, 1e3, 1e6]), min_size=3, max_size=3)


@examples(400)
@given(STEPS, RATES, OFFSETS)
@example([("turn", 0, 0.0), ("turn", 1, 0.0), ("turn", 1, 14.5)], [0.85, 1.15, 1.0], [0.0, 0.0, 0.0])
@example(
    [("turn", 0, 0.0), ("turn", 1, 0.0), ("turn", 2, 0.0), ("delete", 0, 0.0), ("turn", 2, 0.0), ("turn", 0, 9.0),
     ("delete", 0, 9.0), ("turn", 2, 0.0)], [0.85, 0.85, 0.85], [0.0, 0.0, 0.0],
)  # fmt: skip
def test_there_are_never_two_that_may_act(steps, rates, offsets):
    server = Server()
    all_ = [Process(server, name, rate=rate, offset=at) for name, rate, at in zip("abc", rates, offsets, strict=True)]
    known, time = set(), 0.0
    for what, who, pause in steps:
        time += pause
        if what in {"ask", "turn"}:
            all_[who].ask(time)
            known.add(who)
        if what in {"answer", "turn"}:
            all_[who].answer(time)
        if (
            what == "delete"
            and len(known) == 3
            and all(each.candidate.holder == all_[0].candidate.holder for each in all_)
        ):
            # Deleted by hand while all candidates know the leader; a candidate that starts later cannot know it.
            server.lease = None
        assert sum(each.may_act(time) for each in all_) <= 1
