"""One job on a cluster reaches a stable state from any state: pure, with stale views and an operator that is killed."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass, field, replace

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shoal.api import from_mapping
from shoal.operator.core.reconcile import (
    Apply,
    CreatePod,
    DeletePod,
    Ended,
    MakeSecrets,
    Observed,
    PlannedNodes,
    PublishDesired,
    ServerPod,
    in_pods,
    reconcile,
)
from shoal.operator.core.scaling import TrainerPod
from shoal.operator.resources.manifests import JobManifests, applied_hash
from shoal.operator.resources.pods import JobIdentity
from shoal.store import DesiredState
from tests.soak import examples

IDENTITY = JobIdentity(uid="0123", etcd="etcd:2379", classes=("servers", "minimum", "surplus"))


def job(*, low=1, high=3, suspend=False, image="train:1", servers=2, claims=True):
    spec = {
        "image": image, "command": ["python", "train.py"], "suspend": suspend,
        "trainer": {"minReplicas": low, "maxReplicas": high},
        "parameterServer": {"replicas": servers} | ({} if claims else {"emptyDir": {}}),
    }  # fmt: skip
    return from_mapping(
        {"apiVersion": "shoal.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "j"}, "spec": spec}
    )


@dataclass
class State:
    """State of the cluster and of etcd."""

    applied: dict[tuple[str, str], str] = field(default_factory=dict)
    replicas: dict[str, int] = field(default_factory=dict)
    secrets: bool = False
    trainers: dict[int, TrainerPod] = field(default_factory=dict)
    templates: dict[str, str] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)
    servers: dict[str, ServerPod] = field(default_factory=dict)
    masters: dict[str, ServerPod] = field(default_factory=dict)
    desired: DesiredState | None = None
    ended: Ended | None = None
    saved: bool = False


class Job(RuleBasedStateMachine):
    """State machine of one job: operator, users, controllers, kubelets and master act in any order."""

    @initialize(claims=st.booleans())
    def begin(self, claims):
        self.uids = itertools.count()
        self.job = job(claims=claims)
        self.trainers = 1
        self.now = State()
        self.views = [copy.deepcopy(self.now)]
        self.most = 3

    def look(self):
        self.views.append(copy.deepcopy(self.now))

    def observed(self, state: State) -> Observed:
        current = JobManifests(self.job, IDENTITY).template
        return Observed(
            applied=state.applied,
            secrets=state.secrets,
            trainers=tuple(
                replace(p, current=state.templates[p.uid] == current, priority=state.classes[p.uid])
                for p in state.trainers.values()
            ),
            saved=state.saved,
            servers=tuple(state.servers.values()),
            masters=tuple(state.masters.values()),
            desired=state.desired,
            ended=state.ended,
        )

    # --- The operator ---

    @rule(age=st.sampled_from([0, 0, 0, 1, 2]), until=st.sampled_from([1, 3, 8, 9, 10, 100, 100, 100]))
    def act(self, age, until):
        self.look()
        self.carry_out(self.views[-1 - min(age, len(self.views) - 1)], until)
        self.look()

    def carry_out(self, view: State, until: int) -> int:
        actions = reconcile(self.job, IDENTITY, self.observed(view), trainers=self.trainers)
        if self.job.spec.suspend or (view.ended is not None and view.ended.state == "Failed"):
            assert not any(isinstance(action, CreatePod) for action in actions)
        for action in actions[:until]:
            self.one(action)
        return len(actions)

    def one(self, action):
        now = self.now
        match action:
            case MakeSecrets():
                now.secrets = True
            case Apply(manifest):
                kind, name = manifest["kind"], manifest["metadata"]["name"]
                now.applied[kind, name] = applied_hash(manifest)
                if kind in {"Deployment", "StatefulSet"}:
                    assert now.secrets, "pods would wait for their Secrets"
                    now.replicas[kind] = manifest["spec"]["replicas"]
            case CreatePod(manifest):
                assert now.secrets
                index = int(manifest["metadata"]["labels"]["shoal.dev/index"])
                if index not in now.trainers:
                    uid = f"u{next(self.uids)}"
                    now.trainers[index] = TrainerPod(index=index, uid=uid)
                    now.templates[uid] = manifest["metadata"]["labels"]["shoal.dev/template"]
                    now.classes[uid] = manifest["spec"]["priorityClassName"]
            case DeletePod(name, uid, force):
                self.delete(name, uid, force=force)
            case PublishDesired(desired):
                now.desired = desired

    def delete(self, name, uid, *, force):
        now = self.now
        for pods in (now.servers, now.masters):
            if name in pods and pods[name].uid == uid:
                assert force
                assert pods[name].lost, "servers belong to their StatefulSet, the master to its Deployment"
                del pods[name]
        index = int(name.rpartition("-")[2])
        found = now.trainers.get(index)
        if name.startswith("j-trainer") and found is not None and found.uid == uid:
            if force:
                del now.trainers[index]
            else:
                now.trainers[index] = replace(found, deleting=True)

    # --- The users ---

    @rule(low=st.integers(1, 2), more=st.integers(0, 2))
    def bounds(self, low, more):
        trainer = self.job.spec.trainer.model_copy(update={"min_replicas": low, "max_replicas": low + more})
        self.job = self.job.model_copy(update={"spec": self.job.spec.model_copy(update={"trainer": trainer})})
        self.trainers = low
        self.most = max(self.most, low + more)

    @rule(data=st.data())
    def the_autoscaler(self, data):
        self.trainers = data.draw(st.integers(self.job.spec.trainer.min_replicas, self.job.spec.trainer.most))

    @rule(suspend=st.booleans())
    def suspend(self, suspend):
        self.job = self.job.model_copy(update={"spec": self.job.spec.model_copy(update={"suspend": suspend})})

    @rule(image=st.sampled_from(["train:1", "train:2"]))
    def image(self, image):
        self.job = self.job.model_copy(update={"spec": self.job.spec.model_copy(update={"image": image})})

    # --- The cluster ---

    @rule()
    def controllers_and_kubelets(self):
        now = self.now
        for index, found in list(now.trainers.items()):
            if found.lost:
                continue
            if found.deleting:
                del now.trainers[index]
            elif not found.ended:
                now.trainers[index] = replace(found, ready=True)
        self.scaled(now.servers, now.replicas.get("StatefulSet", 0), "j-pserver")
        self.scaled(now.masters, now.replicas.get("Deployment", 0), "j-master")
        self.look()

    def scaled(self, pods, replicas, prefix):
        for number in range(replicas):
            pods.setdefault(f"{prefix}-{number}", ServerPod(name=f"{prefix}-{number}", uid=f"s{next(self.uids)}"))
        for name in [name for name in pods if int(name.rpartition("-")[2]) >= replicas and not pods[name].lost]:
            del pods[name]

    @rule()
    def the_master(self):
        now = self.now
        if not now.masters:
            return
        desired = now.desired or DesiredState()
        for index, found in list(now.trainers.items()):
            if found.ended or found.lost or not found.ready:
                continue
            finished = now.ended is not None
            if desired.leaves(index) or found.deleting or finished:
                now.saved = now.saved or (finished and now.ended.state == "Complete" and len(now.servers) > 0)
                now.trainers[index] = replace(found, ended=True, works=False, ready=False)
            else:
                now.trainers[index] = replace(found, works=len(now.servers) > 0)
        self.look()

    @rule(times=st.integers(1, 3))
    def all_goes_well(self, times):
        for _ in range(times):
            self.act(0, 100)
            self.controllers_and_kubelets()
            self.the_master()

    @rule(state=st.sampled_from(["Complete", "Failed"]))
    def the_job_ends(self, state):
        if any(found.works for found in self.now.trainers.values()) and self.now.ended is None:
            self.now.ended = Ended(state)
        self.look()

    @rule(
        index=st.integers(0, 4),
        what=st.sampled_from(["ends", "is deleted", "is lost", "its server is lost", "the master is lost"]),
    )
    def a_bad_day(self, index, what):
        now = self.now
        found = now.trainers.get(index)
        name = f"j-pserver-{index}"
        if what == "its server is lost" and name in now.servers:
            now.servers[name] = replace(now.servers[name], lost=True, deleting=True)
        elif what == "the master is lost" and now.masters:
            now.masters["j-master-0"] = replace(now.masters["j-master-0"], lost=True, deleting=True)
        elif found is not None and not found.ended:
            changed = {"ends": {"ended": True}, "is deleted": {"deleting": True}, "is lost": {"lost": True}}.get(
                what, {}
            )
            now.trainers[index] = replace(found, works=False, ready=False, **changed)
        self.look()

    # --- Invariants ---

    @invariant()
    def never_more_trainers_than_were_ever_wanted(self):
        if hasattr(self, "now"):
            assert len(self.now.trainers) <= self.most

    @invariant()
    def servers_stay_while_trainers_work(self):
        if hasattr(self, "now") and any(found.works for found in self.now.trainers.values()):
            assert self.now.replicas["StatefulSet"] == 2
            assert self.now.replicas["Deployment"] == 1

    def teardown(self):
        """Without further changes the job reaches a stable state, in which reconcile returns no actions."""
        if not hasattr(self, "now"):
            return
        for _ in range(150):
            self.controllers_and_kubelets()
            self.the_master()
            left = self.carry_out(self.views[-1], 100)
            self.look()
            if not left:
                self.controllers_and_kubelets()
                self.the_master()
                if not self.carry_out(self.views[-1], 100):
                    break
        else:
            raise AssertionError(f"it never comes to rest: {self.now}")
        now = self.now
        alive = [found for found in now.trainers.values() if not found.ended]
        unwritten = now.ended is None or (now.ended.state == "Complete" and not now.saved)
        kept = in_pods(self.job) and unwritten and now.replicas.get("StatefulSet", 0) > 0
        if now.ended is not None or self.job.spec.suspend:
            assert alive == []
            assert (len(now.servers), len(now.masters)) == ((2, 1) if kept else (0, 0))
            written = now.saved or self.job.spec.suspend
            assert now.ended is None or now.ended.state == "Failed" or written, "the model was written"
        else:
            assert len(alive) == len(now.trainers) == self.trainers
            assert all(found.works for found in alive)
            assert {now.templates[found.uid] for found in alive} == {JobManifests(self.job, IDENTITY).template}
            # A job's only trainer keeps a priority that is too low: until its replacement was ready, no trainer would work.
            fewest = self.job.spec.trainer.min_replicas if len(alive) > 1 else 0
            assert [now.classes[found.uid] for found in alive].count("minimum") >= fewest, (
                "they are the last to give way"
            )


TestJob = Job.TestCase
TestJob.settings = examples(60, stateful_step_count=30)


def test_a_queued_job_creates_nothing_and_deletes_its_pods():
    assert reconcile(job(), IDENTITY, Observed(), trainers=0, waits=True) == []
    there = Observed(secrets=True, trainers=(TrainerPod(index=0, uid="u", ready=True, works=True),))
    assert reconcile(job(), IDENTITY, there, trainers=0, waits=True) == [
        PublishDesired(DesiredState(drain=[0], suspend=True))
    ]
    # Without claims the snapshots would be deleted with the servers' pods.
    kept = reconcile(job(claims=False), IDENTITY, there, trainers=0, waits=True)
    assert [each for each in kept if not isinstance(each, Apply)] == [PublishDesired(DesiredState(drain=[0]))]
    assert {
        each.manifest["spec"]["replicas"]
        for each in kept
        if isinstance(each, Apply) and "replicas" in each.manifest.get("spec", {})
    } == {1, 2}
    resumed = reconcile(job(), IDENTITY, Observed(desired=DesiredState(suspend=True)), trainers=1)
    assert [each for each in resumed if isinstance(each, PublishDesired | CreatePod)] == [
        PublishDesired(DesiredState())
    ]


def test_a_suspended_job_keeps_no_pod_that_waits_for_its_successor():
    ended = TrainerPod(index=0, uid="u", ended=True)
    there = Observed(
        secrets=True, trainers=(ended,), desired=DesiredState(suspend=True), applied={("Service", "j-master"): ""}
    )
    of = job(suspend=True)
    assert DeletePod("j-trainer-0", "u") in reconcile(of, IDENTITY, there, trainers=1, backing_off={0})
    running = reconcile(job(), IDENTITY, replace(there, desired=None), trainers=1, backing_off={0})
    assert not any(isinstance(each, DeletePod | CreatePod) for each in running)


def test_one_that_has_no_room_yet_is_not_missed_among_the_fewest():
    """No surplus trainer is drained for one of the minimum while a planned pod has no room; else all would be drained in turn."""
    there = [TrainerPod(index=at, uid=f"u{at}", ready=True, works=True, priority="surplus", node="a") for at in (1, 2)]
    seen = Observed(secrets=True, trainers=tuple(there))

    def reported(later):
        places = PlannedNodes(kept={"a": 2}, later=later)
        actions = reconcile(job(low=1), IDENTITY, seen, trainers=2, places=places)
        return [each.desired.drain for each in actions if isinstance(each, PublishDesired)]

    assert reported(later=1) == []
    assert reported(later=0) == [[1]], "no pod is coming: one of the two is replaced by one of higher priority"
