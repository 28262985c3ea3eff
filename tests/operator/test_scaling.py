"""The trainers follow the wanted number on a cluster where anything happens and the operator's view is stale."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shoal.operator.core.scaling import CreateTrainer, DeleteTrainer, ScalingDecision, TrainerPod, decide, too_low
from tests.soak import examples


def pod(index: int, **state) -> TrainerPod:
    return TrainerPod(index=index, uid=f"u{index}", **({"ready": True, "works": True} | state))


CASES = {
    "none yet": (2, [], [], ScalingDecision((), (CreateTrainer(0), CreateTrainer(1)), publish=False)),
    "as wanted": (2, [pod(0), pod(1)], [], ScalingDecision((), (), publish=False)),
    "the highest leaves, with its drain published first": (1, [pod(0), pod(1)], [], ScalingDecision((1,), (), publish=True)),
    "its drain is published already": (1, [pod(0), pod(1)], [1], ScalingDecision((1,), (), publish=False)),
    "it has left": (1, [pod(0), pod(1, works=False)], [1], ScalingDecision((1,), (DeleteTrainer(1, "u1"),), publish=False)),
    "it has ended": (1, [pod(0), pod(1, ended=True)], [1], ScalingDecision((), (DeleteTrainer(1, "u1"),), publish=True)),
    "one that does not work yet goes first": (1, [pod(0, works=False), pod(1)], [], ScalingDecision((0,), (DeleteTrainer(0, "u0"),), publish=True)),
    "desired again, but drained": (2, [pod(0), pod(1)], [1], ScalingDecision((1,), (), publish=False)),
    "its index is drained still": (2, [pod(0)], [1], ScalingDecision((), (), publish=True)),
    "its index is free": (2, [pod(0)], [], ScalingDecision((), (CreateTrainer(1),), publish=False)),
    "a hole is filled": (3, [pod(0), pod(2)], [], ScalingDecision((), (CreateTrainer(1),), publish=False)),
    "not above what is wanted": (2, [pod(1), pod(2)], [], ScalingDecision((), (), publish=False)),
    "a former pod is waited for": (2, [pod(0), pod(1, deleting=True)], [], ScalingDecision((), (), publish=False)),
    "of a lost node": (2, [pod(0), pod(1, lost=True)], [], ScalingDecision((), (DeleteTrainer(1, "u1", force=True),), publish=False)),
    "deleting on a lost node": (1, [pod(0, lost=True, deleting=True)], [], ScalingDecision((), (DeleteTrainer(0, "u0", force=True),), publish=False)),
    "an old template": (2, [pod(0, current=False), pod(1, current=False)], [], ScalingDecision((1,), (), publish=True)),
    "the new one works": (2, [pod(0, current=False), pod(1)], [], ScalingDecision((0,), (), publish=True)),
    "the new one does not work": (2, [pod(0, current=False), pod(1, works=False)], [], ScalingDecision((), (), publish=False)),
    "an old one that does not work": (2, [pod(0), pod(1, current=False, works=False)], [], ScalingDecision((1,), (DeleteTrainer(1, "u1"),), publish=True)),
    "on a cordoned node, one more comes": (2, [pod(0), pod(1, cordoned=True)], [], ScalingDecision((), (CreateTrainer(2),), publish=False)),
    "the one more does not work yet": (2, [pod(0), pod(1, cordoned=True), pod(2, works=False)], [], ScalingDecision((), (), publish=False)),
    "it works": (2, [pod(0), pod(1, cordoned=True), pod(2)], [], ScalingDecision((1,), (), publish=True)),
    "all are on cordoned nodes": (2, [pod(0, cordoned=True), pod(1, cordoned=True), pod(2)], [], ScalingDecision((1,), (), publish=True)),
    "one leaves a cordoned node already": (2, [pod(0, cordoned=True), pod(1, cordoned=True), pod(2)], [1], ScalingDecision((1,), (), publish=False)),
    "no trainer is rolled meanwhile": (2, [pod(0, cordoned=True), pod(1, current=False)], [], ScalingDecision((), (CreateTrainer(2),), publish=False)),
    "the surplus on a cordoned node leaves first": (1, [pod(0, cordoned=True), pod(1)], [], ScalingDecision((0,), (), publish=True)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_decision(case):
    desired, pods, drain, decision = CASES[case]
    assert decide(desired, pods, drain) == decision


def test_a_trainer_that_is_not_drained_in_time_is_deleted():
    assert decide(1, [pod(0), pod(1)], [1], overdue={1}).actions == (DeleteTrainer(1, "u1"),)
    assert decide(2, [pod(0), pod(1)], [], overdue={1}).actions == ()


def test_trainers_beyond_the_plan_of_their_node_leave_first():
    pods = [pod(0, node="a"), pod(1, node="b"), pod(2, node="b"), pod(3, node="a")]
    assert decide(3, pods, [], kept={"a": 2, "b": 1}).drain == (2,)
    assert decide(2, pods, [], kept={"b": 2}).drain == (0, 3)
    assert decide(3, pods, []).drain == (3,)


def test_a_trainer_without_a_node_leaves_before_those_that_are_kept():
    pods = [pod(0, node="a"), pod(1, ready=False, works=False), pod(2, node="a")]
    assert decide(2, pods, [], kept={"a": 2}).drain == (1,)
    # Where a trainer has to leave anyway, its replacement has been created already.
    assert decide(2, pods, [], kept={"a": 1}).drain == (2,)


def test_a_trainer_that_failed_since_the_plan_is_replaced_by_the_next_plan():
    pods = [pod(0, node="a"), pod(1, node="a", ended=True), pod(2, node="b", works=False)]
    old, new = {"a": 2, "b": 1}, {"a": 1, "b": 1}
    assert decide(3, pods[::2], [], kept=old).actions == ()
    assert decide(3, pods, [], kept=old).actions == (DeleteTrainer(1, "u1"),)
    assert decide(3, pods[::2], [], kept=new).actions == (CreateTrainer(1),)
    assert decide(3, pods[::2], []).actions == (CreateTrainer(1),), "without a plan at once"


def test_a_trainer_without_a_node_counts_as_one_of_the_new_ones():
    pods = [pod(0, node="a"), pod(1, ready=False, works=False)]
    assert decide(4, pods, [], kept={"a": 2}).actions == (CreateTrainer(2),)


RANKS = {
    "as they should be": ("ms", 1, 2, [], set()),
    "the minimum was raised": ("mss", 3, 3, [], {1, 2}),
    "by one": ("mss", 2, 3, [], {1}),
    "it was lowered": ("mmm", 1, 3, [], set()),
    "the first left": ("-s", 1, 1, [], set()),
    "the first of two left": ("-ss", 1, 2, [], {1}),
    "the first comes again": ("-ms", 2, 3, [], set()),
    "the first is drained": ("mss", 1, 1, [0], {1}),
}  # fmt: skip


@pytest.mark.parametrize("case", RANKS)
def test_trainers_of_too_low_priority(case):
    """Letters of a case: m: of the minimum; s: of the surplus; -: no pod."""
    ranks, fewest, desired, drain, low = RANKS[case]
    pods = [pod(index, priority=rank) for index, rank in enumerate(ranks) if rank != "-"]
    found = too_low(pods, minimum=fewest, desired=desired, drain=drain, surplus="s")
    assert found == {f"u{index}" for index in low}


@dataclass
class State:
    """The pods by index, and the drain list in etcd."""

    pods: dict[int, TrainerPod]
    drain: tuple[int, ...] = ()


class Cluster(RuleBasedStateMachine):
    """The operator acts on views that may be stale, and may be killed after any of its actions."""

    @initialize(desired=st.integers(1, 5))
    def begin(self, desired):
        self.uids = itertools.count()
        self.desired = desired
        self.now = State({})
        self.views = [State({})]
        self.template = 0
        self.templates: dict[str, int] = {}
        self.most_desired = desired
        self.first_seen = 0
        """Observations from before the last change of the desired number say nothing about how many there may be."""

    def seen(self) -> None:
        self.views.append(State({i: self.fresh(p) for i, p in self.now.pods.items()}, self.now.drain))

    def fresh(self, found: TrainerPod) -> TrainerPod:
        return replace(found, current=self.templates[found.uid] == self.template)

    # --- The operator ---

    @rule(age=st.integers(0, 3), until=st.integers(0, 6))
    def act(self, age, until):
        """Take an earlier state, decide, and carry out the first few actions."""
        self.seen()
        view = self.views[-1 - min(age, len(self.views) - 1)]
        self.carry_out(view, until)
        self.seen()

    def carry_out(self, view: State, until: int) -> bool:
        decision = decide(self.desired, list(view.pods.values()), view.drain)
        self.check(view, decision)
        acted = False
        if decision.publish and until > 0:
            self.now.drain = decision.drain
            acted = True
        for action in decision.actions[: max(0, until - 1)]:
            if isinstance(action, CreateTrainer):
                if action.index not in self.now.pods:  # else the API server reports that it exists
                    uid = f"u{next(self.uids)}"
                    self.templates[uid] = self.template
                    self.now.pods[action.index] = TrainerPod(index=action.index, uid=uid)
                    acted = True
            else:
                acted = self.delete(action) or acted
        return acted

    def check(self, view: State, decision: ScalingDecision) -> None:
        """Check what a decision must never do, given the view that it was made from."""
        alive = [found for found in view.pods.values() if not (found.ended or found.deleting or found.lost)]
        reported = {found.index for found in alive if found.index in view.drain}
        assert reported <= set(decision.drain), (
            "a trainer that was drained may be exiting: another one must not be drained instead"
        )
        new = {found.index for found in alive if found.works and found.index in set(decision.drain) - set(view.drain)}
        for action in decision.actions:
            if isinstance(action, CreateTrainer):
                assert action.index not in view.drain, "it would be drained as soon as it joins"
            elif not action.force:
                assert not view.pods[action.index].works, "working trainers are drained first"
        too_many = max(0, len(alive) - len(set(view.drain) & {found.index for found in alive}) - self.desired)
        if len(new) > too_many:
            staying = [found for found in alive if found.index not in decision.drain]
            assert len(new) == too_many + 1, "templates roll one at a time"
            assert all(found.works for found in staying), "the next one rolls when the one before has a successor"
            assert len(staying) == self.desired - 1
        else:
            idle = [found for found in alive if not found.works and found.index not in decision.drain]
            assert not new or not idle, "trainers that do not work yet are deleted first"

    def delete(self, action: DeleteTrainer) -> bool:
        there = self.now.pods.get(action.index)
        if there is None or there.uid != action.uid:  # a precondition
            return False
        if action.force:
            assert there.lost, "force is for what no kubelet answers for"
            del self.now.pods[action.index]
        else:
            self.now.pods[action.index] = replace(there, deleting=True)
        return True

    @rule(desired=st.integers(1, 5))
    def want(self, desired):
        self.desired = desired
        self.most_desired = max(self.most_desired, desired)

    @rule()
    def change_the_template(self):
        self.template += 1

    # --- The cluster, the master and failures ---

    def change(self, index, **state):
        if index in self.now.pods:
            self.now.pods[index] = replace(self.now.pods[index], **state)

    @rule(index=st.integers(0, 6))
    def a_pod_starts_and_joins(self, index):
        found = self.now.pods.get(index)
        if found is not None and not (found.ended or found.lost):
            self.change(index, ready=True)
            if index in self.now.drain or found.deleting:
                self.change(index, ended=True, ready=False, works=False)
            else:
                self.change(index, works=True)
        self.seen()

    @rule()
    def the_master_sends_away(self):
        for index in self.now.drain:
            found = self.now.pods.get(index)
            if found is not None and found.works:
                self.change(index, works=False, ready=False, ended=True)
        self.seen()

    @rule(index=st.integers(0, 6))
    def a_kubelet_finishes_a_deletion(self, index):
        found = self.now.pods.get(index)
        if found is not None and found.deleting and not found.lost:
            del self.now.pods[index]
        self.seen()

    @rule()
    def all_pods_start_and_join(self):
        for index in list(self.now.pods):
            self.a_pod_starts_and_joins(index)

    @rule(index=st.integers(0, 6), what=st.sampled_from(["ends", "is deleted", "is on a lost node"]))
    def a_bad_day(self, index, what):
        if what == "ends":
            self.change(index, ended=True, works=False, ready=False)
        elif what == "is deleted":
            self.change(index, deleting=True)
        else:
            self.change(index, lost=True, works=False)
        self.seen()

    # --- Invariants ---

    @invariant()
    def there_are_never_more_than_were_ever_wanted(self):
        if hasattr(self, "now"):
            assert len(self.now.pods) <= self.most_desired
            assert all(index < self.most_desired for index in self.now.pods)

    def teardown(self):
        """Without further changes the wanted trainers are all at work on the current template."""
        if not hasattr(self, "now"):
            return
        for _ in range(200):
            for index in list(self.now.pods):
                self.the_master_sends_away()
                self.a_pod_starts_and_joins(index)
                self.a_kubelet_finishes_a_deletion(index)
            self.seen()
            working = sum(found.works for found in self.now.pods.values())
            if not self.carry_out(self.views[-1], 100):
                break
            after = sum(f.works and not f.deleting for f in self.now.pods.values())
            assert after >= min(self.desired, working) - 1, "no more than one at a time by the operator's own hand"
        else:
            raise AssertionError(f"it never comes to rest: {self.now}")
        assert len(self.now.pods) == self.desired
        assert all(found.works for found in self.now.pods.values())
        assert {self.templates[found.uid] for found in self.now.pods.values()} == {self.template}
        assert self.now.drain == ()


TestCluster = Cluster.TestCase
TestCluster.settings = examples(100, stateful_step_count=40)
