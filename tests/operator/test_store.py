"""What the operator knows, from events that come late, twice, or not at all."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.operator.reconcile import Ended
from shoal.operator.store import APPLIED, ClusterStore
from shoal.store import JobKeys, Published, Wanted

KEYS = JobKeys("default", "j", "u")


def pod(name="j-trainer-0", *, uid="p", role="trainer", index=0, of="u", phase="Running", ready=True, node="n",
        deleting=False, template="t"):  # fmt: skip
    labels = {
        "shoal.dev/uid": of,
        "shoal.dev/role": role,
        "shoal.dev/index": str(index),
        "shoal.dev/template": template,
    }
    metadata = {"name": name, "uid": uid, "labels": labels} | ({"deletionTimestamp": "now"} if deleting else {})
    conditions = [{"type": "Ready", "status": str(ready)}]
    return {
        "kind": "Pod", "metadata": metadata, "spec": {"nodeName": node},
        "status": {"phase": phase, "conditions": conditions},
    }  # fmt: skip


def node(name="n", *, taint=False, ready="True"):
    taints = [{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}] if taint else []
    return {
        "metadata": {"name": name}, "spec": {"taints": taints},
        "status": {"conditions": [{"type": "Ready", "status": ready}]},
    }  # fmt: skip


def thing(kind, name, *, applied=None, of="u"):
    metadata = {"name": name, "labels": {"shoal.dev/uid": of}} | (
        {"annotations": {APPLIED: applied}} if applied else {}
    )
    return {"kind": kind, "metadata": metadata}


def published(**changed):
    made = Published(generation=1, state="Running", epoch=0, epochs=3, samples=0, expected=9, rate=0.0, moved=0.0,
                     trainers=[0], servers=[0], served=True, why="")  # fmt: skip
    return msgspec.json.encode(msgspec.structs.replace(made, **changed))


def seen(store, template="t"):
    return store.observed("u", template=template)


@pytest.fixture
def store():
    return ClusterStore()


def test_a_trainer_works_when_the_master_has_it(store):
    store.object_changed(pod())
    assert (seen(store).trainers[0].ready, seen(store).trainers[0].works) == (True, False)
    assert store.record_changed(KEYS.progress, published(trainers=[0])) == {"u"}
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
def test_a_node_that_is_lost_and_comes_back(store, how):
    store.object_changed(pod())
    store.object_changed(pod("j-pserver-0", uid="s", role="pserver"))
    assert store.node_changed(node()) == set()
    assert store.node_changed(node(**how)) == {"u"}
    assert seen(store).trainers[0].lost
    assert seen(store).servers[0].lost
    assert store.node_changed(node(**how)) == set(), "said once"
    assert store.node_changed(node()) == {"u"}
    assert not seen(store).trainers[0].lost


def test_a_node_that_only_says_it_is_not_ready_is_not_lost(store):
    store.object_changed(pod())
    assert store.node_changed(node(ready="False")) == set()
    assert not seen(store).trainers[0].lost


def test_a_node_that_is_deleted(store):
    store.object_changed(pod())
    assert store.node_changed(node(), gone=True) == {"u"}
    assert seen(store).trainers[0].lost


def test_records_in_etcd(store):
    assert store.record_changed(KEYS.wanted, b'{"drain": [3], "colour": 1}') == {"u"}
    assert seen(store).wanted == Wanted(drain=[3])
    assert store.record_changed(KEYS.wanted, b"{") == set()
    assert seen(store).wanted == Wanted(drain=[3]), "what cannot be read changes nothing"
    assert store.record_changed(KEYS.wanted, None) == {"u"}
    assert seen(store).wanted is None
    assert store.record_changed(KEYS.tasks_of(0, 0), b"x") == set()
    assert store.record_changed("/elsewhere", b"x") == set()
    store.record_changed(KEYS.outcome, b'{"state": "Complete", "reason": "", "files": {}, "account": null}')
    assert seen(store).ended == Ended("Complete")
    store.object_changed(pod(phase="Succeeded"))
    assert seen(store).saved


def test_a_job_that_is_gone_leaves_nothing(store):
    store.job_changed({"metadata": {"uid": "u"}})
    store.object_changed(pod())
    assert store.orphans() == set()
    store.job_changed({"metadata": {"uid": "u"}}, gone=True)
    assert store.orphans() == set()
    store.object_changed(pod())
    assert store.orphans() == {"u"}, "a pod that outlived its job for a moment"


def test_what_bears_no_job_s_label_is_nobody_s(store):
    assert store.object_changed(pod(of="")) == set()


objects = st.one_of(
    st.builds(pod, name=st.sampled_from(["a", "b"]), uid=st.sampled_from("xy"), of=st.sampled_from("uv"), ready=st.booleans()),
    st.builds(thing, st.sampled_from(["Deployment", "Service"]), st.sampled_from("ab"), applied=st.sampled_from("12"), of=st.sampled_from("uv")),
    st.builds(thing, st.just("Secret"), st.sampled_from("ab"), of=st.sampled_from("uv")),
)  # fmt: skip


@given(st.lists(st.tuples(objects, st.booleans()), max_size=12), st.randoms(use_true_random=False))
def test_after_whatever_was_missed_a_whole_listing_is_the_truth(events, random):
    """Events of which some are lost and some repeated, then a listing of every kind: as if nothing had been missed."""
    truth: dict[tuple[str, str, str], dict] = {}
    store = ClusterStore()
    for manifest, gone in events:
        key = (manifest["kind"], manifest["metadata"]["name"], manifest["metadata"]["labels"]["shoal.dev/uid"])
        if gone:
            truth.pop(key, None)
        else:
            truth[key] = manifest
        for _ in range(random.choice((0, 1, 2))):
            store.object_changed(manifest, gone=gone)
    for kind in ("Pod", "Secret", "Deployment", "Service"):
        store.replace_all(kind, [each for (of, _, _), each in truth.items() if of == kind])
    fresh = ClusterStore()
    for manifest in truth.values():
        fresh.object_changed(manifest)
    for uid in "uv":
        assert store.observed(uid, template="t") == fresh.observed(uid, template="t")


def test_a_listing_names_the_jobs_that_lost_something(store):
    store.object_changed(pod())
    store.object_changed(thing("Secret", "s", of="v"))
    assert store.replace_all("Pod", []) == {"u"}
    assert store.replace_all("Secret", []) == {"v"}
    assert store.replace_all("Pod", [pod()]) == {"u"}
