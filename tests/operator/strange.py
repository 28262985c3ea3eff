"""Pods as an API server may return them: every field that is read may be present or absent, in any combination."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

UID = "u"
TIMES = st.one_of(
    st.none(),
    st.datetimes().map(lambda moment: f"{moment.isoformat(timespec='seconds')}Z"),
    st.sampled_from([
        "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59",
        "9999999-01-01T00:00:00Z", "2026-01-01", "2026-01-01T00:00:00", "now", "", "NaN", 1e300, -1, True, [], {},
    ]),
)  # fmt: skip
NODES = st.sampled_from(["", "a", "b"])
WORDS = st.sampled_from(["", "Error", "OOMKilled", "CrashLoopBackOff", "Unschedulable", "no room"])


def _ended() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {},
        optional={
            "finishedAt": TIMES, "startedAt": TIMES, "reason": WORDS, "message": WORDS,
            "containerID": st.sampled_from(["x", "y"]), "exitCode": st.sampled_from([0, 1, 78, 137, 2**31 - 1]),
        },
    )  # fmt: skip


def _containers(role: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    waiting = st.fixed_dictionaries({}, optional={"reason": WORDS, "message": WORDS})
    state = st.one_of(
        st.builds(lambda of: {"terminated": of}, _ended()), st.builds(lambda of: {"waiting": of}, waiting)
    )
    one = st.fixed_dictionaries(
        {"name": st.sampled_from([role, "log"])}, optional={"state": state, "lastState": state, "ready": st.booleans()}
    )
    return st.lists(one, max_size=3)


@st.composite
def pods(draw: st.DrawFn) -> dict[str, Any]:
    """Generate a pod of job ``j`` with uid ``u``."""
    role = draw(st.sampled_from(["trainer", "pserver", "master"]))
    index = draw(st.integers(0, 3))
    name = f"j-{role}-{index}"
    owner = {
        "trainer": {"kind": "TrainingJob", "uid": UID, "name": "j"},
        "pserver": {"kind": "StatefulSet", "name": "j-pserver", "uid": "x"},
        "master": {"kind": "ReplicaSet", "name": "j-master-5d", "uid": "y"},
    }[role]
    labels = {"uid": UID, "job": "j", "role": role, "index": str(index), "template": "t"}
    condition = st.fixed_dictionaries(
        {"type": st.sampled_from(["Ready", "PodScheduled"]), "status": st.sampled_from(["True", "False", "Unknown"])},
        optional={"reason": WORDS, "message": WORDS, "lastTransitionTime": TIMES},
    )
    term = {"weight": 100, "preference": {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]}}
    affinity = st.fixed_dictionaries(
        {},
        optional={
            "podAffinity": st.just({"x": 1}),
            "nodeAffinity": st.fixed_dictionaries(
                {},
                optional={
                    "requiredDuringSchedulingIgnoredDuringExecution": st.just({"nodeSelectorTerms": []}),
                    "preferredDuringSchedulingIgnoredDuringExecution": st.lists(st.just(term), max_size=2),
                },
            ),
        },
    )
    spec = st.fixed_dictionaries(
        {"containers": st.just([{"name": role, "image": "i"}])},
        optional={"nodeName": NODES, "priorityClassName": st.just("c"), "priority": st.just(-5), "affinity": affinity},
    )
    status = st.fixed_dictionaries(
        {"phase": st.sampled_from(["Pending", "Running", "Succeeded", "Failed", "Unknown"])},
        optional={
            "conditions": st.lists(condition, max_size=3), "containerStatuses": _containers(role),
            "initContainerStatuses": _containers(role), "startTime": TIMES, "reason": WORDS, "message": WORDS,
        },
    )  # fmt: skip
    metadata = {
        "name": name, "namespace": "default", "uid": draw(st.sampled_from(["p", "q"])), "resourceVersion": "1",
        "labels": {f"shoal.dev/{key}": value for key, value in labels.items()},
        "ownerReferences": [owner | {"controller": True}], "creationTimestamp": draw(TIMES), "annotations": {"n": "x"},
    }  # fmt: skip
    deleted = draw(st.booleans())
    return {
        "kind": "Pod",
        "metadata": metadata | ({"deletionTimestamp": draw(TIMES)} if deleted else {}),
        "spec": draw(spec),
        "status": draw(status),
    }
