"""Compare snapshot retention with the literal wording of rule 10."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.pserver.snapshots.retention import StoredFile, deletable

slots = st.frozensets(st.integers(0, 3), max_size=4)
histories = st.lists(slots, max_size=9).map(
    lambda held: [StoredFile(f"f{index}", mine) for index, mine in enumerate(held)]
)


def naive(files, keep, pinned, released) -> list[str]:
    """List the unpinned files of which each slot is in ``keep`` newer files or was released."""
    found = []
    for index, file in enumerate(files):
        safe = True
        for slot in file.slots:
            newer = len([other for other in files[index + 1 :] if slot in other.slots])
            safe = safe and (newer >= keep or (slot, file.name) in released)
        if safe and file.name not in pinned:
            found.append(file.name)
    return found


@given(histories, st.integers(1, 3), st.data())
def test_is_the_rule_as_written(files: list[StoredFile], keep: int, data: st.DataObject) -> None:
    names = [file.name for file in files]
    pinned = data.draw(st.sets(st.sampled_from(names))) if names else set()
    pairs = list(itertools.product(range(4), names))
    released = data.draw(st.sets(st.sampled_from(pairs))) if pairs else set()
    assert deletable(files, keep=keep, pinned=pinned, released=released) == naive(files, keep, pinned, released)


@given(histories, st.integers(1, 3))
def test_without_a_release_by_the_master_every_slot_keeps_its_newest_files(files: list[StoredFile], keep: int) -> None:
    deleted = set(deletable(files, keep=keep))
    for slot in range(4):
        holding = [file.name for file in files if slot in file.slots]
        assert not deleted & set(holding[-keep:])


def test_a_slot_that_moved_away_keeps_its_last_files() -> None:
    both, one = frozenset({0, 1}), frozenset({0})
    files = [StoredFile("a", both), StoredFile("b", both), StoredFile("c", one), StoredFile("d", one)]
    assert deletable(files, keep=2) == []
    assert deletable(files, keep=2, released={(1, "a")}) == ["a"]
    assert deletable(files, keep=2, released={(1, "a"), (1, "b")}) == ["a", "b"]
    assert deletable(files, keep=2, released={(1, "a"), (1, "b")}, pinned={"a"}) == ["b"]


def test_at_least_one_file_is_kept() -> None:
    with pytest.raises(ValueError, match="keep is 0"):
        deletable([], keep=0)
