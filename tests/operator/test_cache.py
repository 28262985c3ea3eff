"""The cache's contents after events that are late, duplicate, or lost."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.operator.cache.cache import APPLIED, NEWS_SECONDS, Cache
from shoal.operator.core.reconcile import Ended
from shoal.store import DesiredState, JobKeys, ReportedScore, ReportedState

KEYS = JobKeys("default", "j", "u")


def pod(name="j-trainer-0", *, uid="p", role="trainer", index=0, of="u", phase="Running", ready=True, node="n",
        deleting=False, template="t", revision="1"):  # fmt: skip
    labels = {
        "shoal.dev/uid": of,
        "shoal.dev/job": "j",
        "shoal.dev/role": role,
        "shoal.dev/index": str(index),
        "shoal.dev/template": template,
    }
    owner = {
        "trainer": {"kind": "TrainingJob", "uid": of},
        "pserver": {"kind": "StatefulSet", "name": "j-pserver", "uid": "x"},
        "master": {"kind": "ReplicaSet", "name": "j-master-5d", "uid": "y"},
    }[role]
    metadata = {"name": name, "namespace": "default", "uid": uid, "labels": labels, "resourceVersion": revision,
                "ownerReferences": [owner | {"controller": True}]}  # fmt: skip
    metadata |= {"deletionTimestamp": "now"} if deleting else {}
    conditions = [{"type": "Ready", "status": str(ready)}]
    return {
        "kind": "Pod", "metadata": metadata, "spec": {"nodeName": node},
        "status": {"phase": phase, "conditions": conditions},
    }  # fmt: skip


def owned_by(owner, made):
    return {**made, "metadata": made["metadata"] | {"ownerReferences": [owner | {"controller": True}]}}


def node(name="n", *, taint=False, ready="True"):
    taints = [{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}] if taint else []
    return {
        "metadata": {"name": name}, "spec": {"taints": taints},
        "status": {"conditions": [{"type": "Ready", "status": ready}]},
    }  # fmt: skip


def thing(kind, name, *, applied=None, of="u", owner=None, namespace="default", revision="1"):
    owned = {"kind": "TrainingJob", "uid": owner or of, "controller": True}
    metadata = {"name": name, "namespace": namespace, "labels": {"shoal.dev/uid": of, "shoal.dev/job": "j"},
                "ownerReferences": [owned], "resourceVersion": revision}  # fmt: skip
    return {"kind": kind, "metadata": metadata | ({"annotations": {APPLIED: applied}} if applied else {})}


def job(uid="u", name="j", revision="1"):
    return {"metadata": {"uid": uid, "name": name, "namespace": "default", "resourceVersion": revision}}


def published(**changed):
    made = ReportedState(generation=1, state="Running", epoch=0, epochs=3, samples=0, expected=9, rate=0.0, moved=0.0,
                     trainers=[0], servers=[0], served=True, stall_reason="")  # fmt: skip
    return msgspec.json.encode(msgspec.structs.replace(made, **changed))


def seen(store, template="t"):
    return store.observed("u", template=template)


@pytest.fixture
def store():
    made = Cache()
    made.job_changed(job())
    return made


def test_a_trainer_works_when_the_master_has_it(store):
    store.object_changed(pod())
    assert (seen(store).trainers[0].ready, seen(store).trainers[0].works) == (True, False)
    assert store.record_changed(KEYS.progress, published(trainers=[0])) == {"u": 0}
    assert seen(store).trainers[0].works
    store.object_changed(pod(phase="Succeeded", ready=False))
    assert (seen(store).trainers[0].ended, seen(store).trainers[0].works) == (True, False)


@pytest.mark.parametrize(
    ("changed", "attribute", "value"),
    [
        ({"deleting": True}, "deleting", True),
        ({"phase": "Failed"}, "ended", True),
        ({"template": "old"}, "current", False),
        ({"ready": False}, "ready", False),
    ],
)
def test_states_of_a_pod(store, changed, attribute, value):
    store.object_changed(pod(**changed))
    assert getattr(seen(store).trainers[0], attribute) is value


@pytest.mark.parametrize("how", [{"taint": True}, {"ready": "Unknown"}])
def test_a_node_that_is_lost_and_returns(store, how):
    store.object_changed(pod())
    store.object_changed(pod("j-pserver-0", uid="s", role="pserver"))
    assert store.node_changed(node()) == set()
    assert store.node_changed(node(**how)) == {"u"}
    assert seen(store).trainers[0].lost
    assert seen(store).servers[0].lost
    assert store.node_changed(node(**how)) == set(), "reported once"
    assert store.node_changed(node()) == {"u"}
    assert not seen(store).trainers[0].lost


def test_a_node_that_is_only_not_ready_is_not_lost(store):
    store.object_changed(pod())
    assert store.node_changed(node(ready="False")) == set()
    assert not seen(store).trainers[0].lost


def test_a_node_that_is_deleted(store):
    store.object_changed(pod())
    assert store.node_changed(node(), deleted=True) == {"u"}
    assert seen(store).trainers[0].lost


def test_a_node_deleted_unseen_is_lost_but_none_newer_than_the_listing(store):
    store.object_changed(pod(revision="5"))
    store.object_changed(pod("j-trainer-1", uid="q", index=1, node="new", revision="9"))
    assert store.forget_missing("Node", [node("n")], revision=7) == set()
    assert store.forget_missing("Node", [], revision=7) == {"u"}
    assert [each.lost for each in store.observed("u", template="t").trainers] == [True, False]


def test_records_in_etcd(store):
    assert store.record_changed(KEYS.desired, b'{"drain": [3], "colour": 1}') == {"u": 0}
    assert seen(store).desired == DesiredState(drain=[3])
    assert store.record_changed(KEYS.desired, b"{") == {"u": 0}, "it is reported"
    assert store.record_changed(KEYS.desired, b"[") == {}, "once"
    assert seen(store).desired == DesiredState(drain=[3]), "what cannot be read changes nothing"
    assert store.record_changed(KEYS.desired, None) == {"u": 0}
    assert seen(store).desired is None
    assert store.record_changed(KEYS.tasks_of(0, 0), b"x") == {}
    assert store.record_changed("/elsewhere", b"x") == {}
    store.record_changed(KEYS.outcome, b'{"state": "Complete", "reason": "", "files": {}, "account": null}')
    assert seen(store).ended == Ended("Complete")
    store.object_changed(pod(phase="Succeeded"))
    assert seen(store).saved


def test_progress_alone_can_wait(store):
    store.record_changed(KEYS.progress, published(moved=1.0))
    assert store.record_changed(KEYS.progress, published(moved=2.0, samples=5, rate=1.5)) == {"u": NEWS_SECONDS}
    assert store.record_changed(KEYS.progress, published(moved=2.0, samples=5, rate=1.5)) == {}
    assert store.record_changed(KEYS.progress, published(moved=2.0, samples=5, trainers=[0, 1])) == {"u": 0}
    assert store.record_changed(KEYS.progress, published(moved=2.0, samples=5, stall_reason="waits")) == {"u": 0}


def test_records_missing_after_a_gap_are_removed(store):
    store.record_changed(KEYS.desired, b'{"drain": [3]}')
    store.record_changed(KEYS.progress, published())
    assert store.records_replaced({KEYS.progress: published()}) == {"u": 0}
    assert (seen(store).desired, seen(store).published.trainers) == (None, [0])


def test_a_successor_waits_until_nothing_is_left_of_its_predecessor(store):
    store.object_changed(pod())
    store.object_changed(thing("PersistentVolumeClaim", "shoal-snapshots-j-pserver-0", owner="statefulset"))
    store.job_changed(job(), deleted=True)
    store.job_changed(job("v"))
    left = ["PersistentVolumeClaim shoal-snapshots-j-pserver-0", "Pod j-trainer-0"]
    assert store.predecessors("v") == left
    assert store.object_changed(pod(), deleted=True) == {"u", "v"}, "the message names the pod that it waits for"
    assert store.predecessors("v") == left[:1]
    assert store.object_changed(thing("PersistentVolumeClaim", "shoal-snapshots-j-pserver-0"), deleted=True) == {
        "u",
        "v",
    }
    assert store.predecessors("v") == []


def test_no_job_waits_for_a_job_of_another_name(store):
    store.object_changed(pod())
    store.job_changed(job("v", "other"))
    assert store.predecessors("v") == store.predecessors("u") == []


@pytest.mark.parametrize(
    "forged",
    [
        pod("evil", role="pserver"),
        pod("j-pserver-", role="pserver"),
        pod("evil", role="master"),
        owned_by({"kind": "StatefulSet", "name": "other-pserver"}, pod("j-pserver-7", role="pserver")),
        owned_by({"kind": "ReplicaSet", "name": "j-trainer-5d"}, pod("j-master-5d-x", role="master")),
        pod("j-trainer-1") | {"spec": {}},
        pod("x"),
        pod(index="x"),
        pod(index="-1", name="j-trainer--1"),
        {**pod(), "metadata": pod()["metadata"] | {"namespace": "other"}},
        {**pod(), "metadata": pod()["metadata"] | {"ownerReferences": []}},
        {**pod(), "metadata": pod()["metadata"] | {"ownerReferences": [{"kind": "TrainingJob", "uid": "v", "controller": True}]}},
        {**pod(), "metadata": pod()["metadata"] | {"ownerReferences": [{"kind": "TrainingJob", "uid": "u"}]}},
        {**pod("j-pserver-0", role="pserver"), "metadata": pod("j-pserver-0", role="pserver")["metadata"] | {"ownerReferences": [{"kind": "Job", "uid": "u", "controller": True}]}},
    ],
)  # fmt: skip
def test_a_pod_with_forged_labels_is_no_pod_of_the_job(store, forged):
    store.object_changed(forged)
    assert (seen(store).trainers, seen(store).servers, seen(store).masters) == ((), (), ())
    assert store.facts("u").ready == frozenset()


def test_a_pod_of_each_role_is_known(store):
    for name, role in (("j-trainer-0", "trainer"), ("j-pserver-1", "pserver"), ("j-master-5d-x", "master")):
        store.object_changed(pod(name, role=role))
    assert store.facts("u").ready == {"j-trainer-0", "j-pserver-1", "j-master-5d-x"}


def test_no_job_waits_for_an_object_that_only_has_a_label(store):
    orphan = pod("x", of="v")
    store.object_changed({**orphan, "metadata": orphan["metadata"] | {"ownerReferences": []}})
    assert store.predecessors("u") == []


def test_an_object_of_another_owner_was_not_applied(store):
    store.object_changed(thing("Service", "s", applied="1", owner="v"))
    store.object_changed(thing("Service", "t", applied="1", namespace="other"))
    store.object_changed(thing("Service", "mine", applied="1"))
    assert seen(store).applied == {("Service", "mine"): "1"}


def test_an_object_without_a_job_s_label_belongs_to_no_job(store):
    assert store.object_changed(pod(of="")) == set()


objects = st.one_of(
    st.builds(pod, name=st.sampled_from(["j-trainer-0", "b"]), uid=st.sampled_from("xy"), of=st.sampled_from("uv"), ready=st.booleans()),
    st.builds(thing, st.sampled_from(["Deployment", "Service"]), st.sampled_from("ab"), applied=st.sampled_from("12"), of=st.sampled_from("uv")),
)  # fmt: skip


@given(st.lists(st.tuples(objects, st.booleans()), max_size=12), st.randoms(use_true_random=False))
def test_after_deletions_that_were_missed_a_whole_listing_is_the_truth(events, random):
    """After duplicate events and lost deletions, a listing of every kind makes the cache correct."""
    truth: dict[tuple[str, str, str], dict] = {}
    store, fresh = Cache(), Cache()
    for uid in "uv":
        store.job_changed(job(uid))
        fresh.job_changed(job(uid))
    for revision, (plain, deleted) in enumerate(events):
        manifest = {**plain, "metadata": plain["metadata"] | {"resourceVersion": str(revision)}}
        key = (manifest["kind"], manifest["metadata"]["name"], manifest["metadata"]["labels"]["shoal.dev/uid"])
        if deleted:
            truth.pop(key, None)
        else:
            truth[key] = manifest
        for _ in range(random.choice((0, 1, 2) if deleted else (1, 2))):
            store.object_changed(manifest, deleted=deleted)
    for kind in ("Pod", "Deployment", "Service"):
        store.forget_missing(kind, [each for (of, _, _), each in truth.items() if of == kind], revision=len(events))
    for manifest in truth.values():
        fresh.object_changed(manifest)
    for uid in "uv":
        assert store.observed(uid, template="t") == fresh.observed(uid, template="t")


def test_an_object_changed_after_a_listing_is_kept(store):
    store.object_changed(pod(revision="8"))
    assert store.forget_missing("Pod", [], revision=7) == set()
    assert store.forget_missing("Pod", [], revision=9, namespace="other") == set()
    assert len(seen(store).trainers) == 1
    assert store.forget_missing("Pod", [], revision=9) == {"u"}
    assert seen(store).trainers == ()


def test_a_job_missing_in_a_listing_is_removed(store):
    store.job_changed(job("v", "other", revision="8"))
    assert store.forget_missing("TrainingJob", [], revision=7) == {"u"}
    assert set(store.jobs) == {"v"}


def test_an_event_without_a_change_concerns_no_job(store):
    assert store.object_changed(pod()) == {"u"}
    assert store.object_changed(pod(revision="2")) == set()
    assert store.object_changed(pod(revision="3", ready=False)) == {"u"}
    deployment = thing("Deployment", "j-master", applied="h")
    assert store.object_changed(deployment) == {"u"}
    assert store.object_changed(deployment | {"status": {"replicas": 1}}) == set()
    assert store.object_changed(thing("Deployment", "j-master", applied="other")) == {"u"}
    assert store.job_changed(job(revision="2") | {"status": {"state": "Running"}}) == set()
    assert store.jobs["u"]["status"] == {"state": "Running"}
    assert store.job_changed(job(revision="3") | {"spec": {"epochs": 2}}) == {"u"}
    assert store.job_changed(job(revision="4"), deleted=True) == {"u"}


def test_added_changed_and_deleted_pods_are_summarized_again(store):
    def reported():
        return [(each.name, each.ended) for each in store.pods("u")]

    assert reported() == []
    store.object_changed(pod())
    assert reported() == [("j-trainer-0", False)]
    store.object_changed(pod(phase="Failed"))
    store.object_changed(pod("j-trainer-1", index=1, uid="p1"))
    assert sorted(reported()) == [("j-trainer-0", True), ("j-trainer-1", False)]
    store.object_changed(pod(), deleted=True)
    assert reported() == [("j-trainer-1", False)]
    store.forget_missing("Pod", [], revision=9)
    assert reported() == []


def test_an_answer_is_known_before_the_watch_brings_it(store):
    store.response_received(pod(revision="7"))
    assert [each.uid for each in seen(store).trainers] == ["p"]
    store.response_received(thing("ConfigMap", "j-job", applied="new", revision="9"))
    assert store.object_changed(thing("ConfigMap", "j-job", applied="old", revision="8")) == set(), "from before"
    assert seen(store).applied == {("ConfigMap", "j-job"): "new"}
    assert store.object_changed(thing("ConfigMap", "j-job", applied="new", revision="9")) == set()
    assert store.object_changed(thing("ConfigMap", "j-job", applied="old", revision="8")) == {"u"}, "of another etcd"
    assert store.object_changed(pod(revision="7", deleting=True)) == {"u"}
    assert store.object_changed(pod(revision="8"), deleted=True) == {"u"}
    assert seen(store).trainers == ()


def test_a_late_response_changes_nothing(store):
    store.object_changed(pod(revision="8", ready=False))
    store.response_received(pod(revision="7"))
    assert [each.ready for each in seen(store).trainers] == [False]
    store.object_changed(pod(revision="9"), deleted=True)
    store.response_received(pod(revision="7"))
    assert seen(store).trainers == (), "it was created and deleted already"
    store.response_received(pod(uid="another", revision="11"))
    assert [each.uid for each in seen(store).trainers] == ["another"]


def test_logged_values_alone_cause_no_sync_at_once(store):
    store.record_changed(KEYS.progress, published())
    scores = [ReportedScore(0, {"score": 0.5})]
    assert store.record_changed(KEYS.progress, published(values={"loss": 0.5}, scores=scores)) == {"u": NEWS_SECONDS}
    assert seen(store).published.values == {"loss": 0.5}


def test_each_new_record_is_passed_on_once():
    passed = []
    store = Cache(on_record=lambda uid, record: passed.append((uid, record)))
    store.job_changed(job())
    for _ in range(2):
        store.record_changed(KEYS.progress, published(values={"loss": 0.5}))
    store.record_changed(KEYS.outcome, msgspec.json.encode(Ended("Complete")))
    store.record_changed(KEYS.outcome, b"no record")
    store.record_changed(KEYS.outcome, None)
    assert [(uid, type(record)) for uid, record in passed] == [("u", ReportedState), ("u", Ended)]
    assert passed[0][1].values == {"loss": 0.5}


def test_who_changed_the_size_is_kept_and_not_the_record_of_all_fields(store):
    entry = {"manager": "kubectl", "operation": "Update", "subresource": "scale", "time": "2026-03-04T05:06:07Z",
             "fieldsV1": {"f:spec": {"f:trainer": {"f:replicas": {}}}}}  # fmt: skip
    scaled = job(revision="2")
    scaled["metadata"] |= {"generation": 2, "managedFields": [entry]}
    scaled["spec"] = {"trainer": {"replicas": 3}}
    assert store.job_changed(scaled) == {"u"}
    assert store.facts("u").requested_by == "kubectl"
    assert "managedFields" not in store.jobs["u"]["metadata"]
    store.job_changed(scaled, deleted=True)
    assert store.facts("u").requested_by == ""
