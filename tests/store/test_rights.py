"""One etcd user per job, limited to its prefix."""

from __future__ import annotations

import pytest

from shoal.store import Credentials, Put, Store, StoreRefusedError
from tests.etcds import eventually

PREFIX = "/shoal/job/"
PASSWORD = "hidden-word"


@pytest.fixture
def guarded(etcd):
    """An etcd with authentication enabled, and one job's user."""
    Store.protect(etcd.endpoint, password=PASSWORD)
    with Store.connect(etcd.endpoint, prefix="", credentials=Credentials("root", PASSWORD)) as root:
        root.accounts.ensure("job", PASSWORD, prefix=PREFIX)
    return etcd


def test_a_user_works_within_its_prefix_through_restarts(guarded):
    events, problems = [], []
    with Store.connect(
        guarded.endpoint, prefix=PREFIX, credentials=Credentials("job", PASSWORD), on_error=problems.append
    ) as store:
        store.watch(PREFIX, from_revision=2, on_events=events.extend, on_reset=lambda listing, reason: None)
        for number in range(3):
            store.transact([], [Put(f"{PREFIX}{number}", b"")])
            eventually(lambda number=number: len(events) == number + 1, what="the event")
            # A restart invalidates the tokens.
            guarded.restart()
        assert len(store.get_prefix(PREFIX).pairs) == 3
    assert PASSWORD not in str(problems)


def test_what_lies_outside_is_refused(guarded):
    with pytest.raises(StoreRefusedError, match="permission denied"):
        Store.connect(guarded.endpoint, prefix="/shoal/other/", credentials=Credentials("job", PASSWORD))
    with pytest.raises(StoreRefusedError, match="authentication failed") as refused:
        Store.connect(guarded.endpoint, prefix=PREFIX, credentials=Credentials("job", "guess"))
    assert "guess" not in str(refused.value)
    with pytest.raises(StoreRefusedError):
        Store.connect(guarded.endpoint, prefix=PREFIX)
