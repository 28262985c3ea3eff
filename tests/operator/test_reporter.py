"""What of a status is written: the merge patch that makes one the other."""

from hypothesis import given
from hypothesis import strategies as st

from shoal.operator.reporter import difference
from shoal.operator.troubles import troubles_of

leaves = st.integers(0, 2) | st.lists(st.integers(0, 2), max_size=2)
mappings = st.recursive(st.dictionaries(st.sampled_from("abc"), leaves, max_size=3),
                        lambda below: st.dictionaries(st.sampled_from("abc"), leaves | below, max_size=3), max_leaves=6)  # fmt: skip


def patched(target, patch):
    """RFC 7386, section 2."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = patched(result.get(key), value)
    return result


@given(mappings, mappings)
def test_a_patch_makes_one_the_other(before, after):
    assert patched(before, difference(before, after)) == after


@given(mappings)
def test_nothing_new_is_no_patch(one):
    assert difference(one, one) == {}


def test_what_is_wrong_with_a_pod_is_told_in_its_own_words():
    pod = {
        "metadata": {"name": "j-trainer-0", "labels": {"shoal.dev/role": "trainer"}},
        "status": {
            "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}],
            "containerStatuses": [
                {"name": "trainer", "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
                 "lastState": {"terminated": {"reason": "OOMKilled"}}},
                {"name": "log", "state": {"waiting": {"reason": "ContainerCreating"}}},
            ],
        },
    }  # fmt: skip
    assert [(each.reason, each.message) for each in troubles_of(pod)] == [
        ("Unschedulable", "0/3 nodes"),
        ("OOMKilled", "container trainer used more memory than its limit"),
    ]
    assert list(troubles_of({"metadata": {"name": "x"}})) == []
