"""The fields of an object that the cache keeps are all that its readers use."""

from __future__ import annotations

from hypothesis import given

from shoal.operator.cache.pod_summary import PodSummary
from shoal.operator.resources.object_fields import is_pod_of, without_unread_fields
from tests.operator.strange import UID, pods
from tests.soak import examples


@examples(300)
@given(pods())
def test_all_fields_of_a_pod_that_a_sync_reads_are_kept(pod):
    """The cache's slimmed pod gives the same summary as the whole pod; the tests of its readers use whole pods."""
    kept = without_unread_fields(pod)
    assert PodSummary.of(kept) == PodSummary.of(pod)
    assert is_pod_of(kept, "j", UID) == is_pod_of(pod, "j", UID)
    assert without_unread_fields({**kept, "kind": "Pod"}) == kept
