"""One etcd user per job, limited to its prefix."""

from __future__ import annotations

import pytest

from shoal.store import Put, Store, StoreRefusedError
from shoal.store._stubs import grpc, rpc
from shoal.store.connection import prefix_end
from tests.etcds import eventually

PREFIX = "/shoal/job/"
PASSWORD = "hidden-word"


@pytest.fixture
def guarded(etcd):
    """An etcd that asks who is there."""
    with grpc.insecure_channel("unix:" + etcd.endpoint.removeprefix("unix://")) as channel:
        auth = rpc.AuthStub(channel)
        for user, role, prefix in (("root", "root", b""), ("job", "job", PREFIX.encode())):
            auth.UserAdd(rpc.AuthUserAddRequest(name=user, password=PASSWORD))
            auth.RoleAdd(rpc.AuthRoleAddRequest(name=role))
            grant = {"permType": 2, "key": prefix, "range_end": prefix_end(prefix)}
            if prefix:
                auth.RoleGrantPermission(rpc.AuthRoleGrantPermissionRequest(name=role, perm=grant))
            auth.UserGrantRole(rpc.AuthUserGrantRoleRequest(user=user, role=role))
        auth.AuthEnable(rpc.AuthEnableRequest())
    return etcd


def test_a_user_works_within_its_prefix_through_restarts(guarded):
    events, troubles = [], []
    with Store.connect(
        guarded.endpoint, prefix=PREFIX, username="job", password=PASSWORD, on_trouble=troubles.append
    ) as store:
        store.watch(PREFIX, from_revision=2, on_events=events.extend, on_reset=lambda listing, reason: None)
        for number in range(3):
            store.transact([], [Put(f"{PREFIX}{number}", b"")])
            eventually(lambda number=number: len(events) == number + 1, what="the event")
            # Its tokens die with it.
            guarded.restart()
        assert len(store.get_prefix(PREFIX).pairs) == 3
    assert PASSWORD not in str(troubles)


def test_what_lies_outside_is_refused(guarded):
    with pytest.raises(StoreRefusedError, match="permission denied"):
        Store.connect(guarded.endpoint, prefix="/shoal/other/", username="job", password=PASSWORD)
    with pytest.raises(StoreRefusedError, match="authentication failed") as refused:
        Store.connect(guarded.endpoint, prefix=PREFIX, username="job", password="guess")
    assert "guess" not in str(refused.value)
    with pytest.raises(StoreRefusedError):
        Store.connect(guarded.endpoint, prefix=PREFIX)
