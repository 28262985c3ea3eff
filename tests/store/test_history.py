from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.store.history import Header, HistoryVerdict, KnownWrite, Seen, compare_history

headers = st.builds(Header, st.integers(1, 2), st.integers(0, 50), st.integers(1, 3))


@given(headers, headers)
def test_a_header_convicts_doubts_or_agrees(first, second):
    seen = Seen().with_answer(first, None)
    verdict = compare_history(seen, second)
    if second.cluster_id != first.cluster_id or second.revision < first.revision:
        assert verdict is HistoryVerdict.FORGOT
    elif second.term != first.term:
        assert verdict is HistoryVerdict.DOUBT
    else:
        assert verdict is HistoryVerdict.SAME


@given(st.lists(st.integers(1, 50), min_size=1))
def test_answers_that_overtake_each_other_never_lower_what_was_seen(revisions):
    seen = Seen()
    for revision in revisions:
        seen = seen.with_answer(Header(1, revision, 1), KnownWrite(b"k", b"v", revision))
    assert seen.header.revision == seen.known_write.revision == max(revisions)


@given(headers)
def test_the_first_answer_is_accepted(header):
    assert compare_history(Seen(), header) is HistoryVerdict.SAME


def test_a_new_history_has_nothing_of_the_old_one():
    seen = Seen().with_answer(Header(1, 9, 1), KnownWrite(b"k", b"v", 9)).forgotten(Header(1, 3, 1), None)
    assert (seen.losses, seen.header.revision, seen.known_write) == (1, 3, None)
