"""Secrets that only a job's own processes may know, on a real etcd."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from shoal.operator import manager
from shoal.operator.etcd.secrets import DerivedSecrets, Users
from shoal.store import EVERYTHING, OPERATOR_KEY, Credentials, JobKeys, Put, Store, StoreRefusedError, Tls
from tests.etcds import run_etcd

ROOT = Credentials("root", "root-word")
KEYS = JobKeys("default", "flights", "uid-1")
OTHER = JobKeys("default", "flights", "uid-2")


@pytest.fixture
def etcd(tmp_path):
    with run_etcd(tmp_path) as etcd:
        yield etcd


@pytest.fixture
def store(etcd):
    with Store.connect(etcd.endpoint, prefix=EVERYTHING) as store:
        yield store


def test_the_next_operator_derives_the_same_and_another_etcd_s_something_else(store):
    first, second = DerivedSecrets.open(store, None), DerivedSecrets.open(store, None)
    assert first.secrets(KEYS) == second.secrets(KEYS)
    store.transact([], [Put(OPERATOR_KEY, bytes(32))])
    assert DerivedSecrets.open(store, None).secrets(KEYS) != first.secrets(KEYS)


def test_nothing_that_is_derived_is_anything_else_that_is_derived():
    guarded = DerivedSecrets(key=b"k" * 32, guarded=True, authority="pem")
    found = [
        guarded.secrets(KEYS)["token"]["token"], guarded.secrets(OTHER)["token"]["token"],
        guarded.password(KEYS.uid), guarded.password(OTHER.uid), *guarded.versions.values(),
    ]  # fmt: skip
    assert all(one not in other for one, other in itertools.permutations(found, 2))
    assert guarded.secrets(KEYS)["etcd"] == {
        "username": KEYS.user, "password": guarded.password(KEYS.uid), "ca.crt": "pem",
    }  # fmt: skip


def test_without_users_in_etcd_there_is_no_secret_for_it():
    assert set(DerivedSecrets(key=b"k" * 32).secrets(KEYS)) == {"token"}


def test_the_version_changes_with_what_the_secrets_are_made_of():
    versions = [
        DerivedSecrets(key=key, guarded=guarded, authority=authority).versions
        for key in (b"a" * 32, b"b" * 32)
        for guarded in (True, False)
        for authority in ("", "pem")
    ]
    assert len({each["etcd"] for each in versions}) == len(versions)
    assert len({each["token"] for each in versions}) == 2, "etcd's certificate replaces no trainer"


def test_no_repr_has_the_key():
    assert "aaaa" not in repr(DerivedSecrets(key=b"a" * 32, authority="aaaa"))


def test_an_invalid_root_key_is_reported_and_not_replaced(store):
    store.transact([], [Put(OPERATOR_KEY, b"short")])
    with pytest.raises(StoreRefusedError, match="should hold 32 bytes"):
        DerivedSecrets.open(store, None)
    assert store.get(OPERATOR_KEY).value == b"short"


def test_an_unreadable_authority_is_reported(store, tmp_path):
    tls = Tls(certificate_authority=tmp_path / "none.crt")
    with pytest.raises(StoreRefusedError, match=r"none\.crt"):
        DerivedSecrets.open(store, Credentials("root", "x", tls=tls))


def test_a_job_s_user_is_ensured_once(etcd):
    Store.protect(etcd.endpoint, password=ROOT.password)
    with Store.connect(etcd.endpoint, prefix=EVERYTHING, credentials=ROOT) as root:
        users = Users(root.accounts)
        users.admit(KEYS, "word")
        with Store.connect(etcd.endpoint, prefix=KEYS.prefix, credentials=Credentials(KEYS.user, "word")) as job:
            assert job.transact([], [Put(KEYS.progress, b"1")]).succeeded
        # A user that exists at start-up is trusted once; afterwards the operator checks it and repairs a removal.
        later = Users(root.accounts)
        root.accounts.remove(KEYS.user)
        later.admit(KEYS, "word")
        assert root.accounts.users() == ["root"]
        later.admit(KEYS, "word")
        assert sorted(root.accounts.users()) == ["root", KEYS.user]


async def reached(operator: manager.Operator, protect) -> Store:
    """Return the operator's connection to etcd, whose users are created once the operator has found that it has none."""
    reaching = asyncio.create_task(operator._reach_etcd(ROOT))
    while "has not completed" not in operator.readiness_problem():  # noqa: ASYNC110 - there is no other signal
        await asyncio.sleep(0.01)
    await asyncio.to_thread(protect)
    return await reaching


def test_an_operator_waits_for_a_set_up_that_is_on_its_way(etcd, monkeypatch):
    monkeypatch.setattr(manager, "_AGAIN_SECONDS", 0.05)
    operator = manager.Operator(manager.OperatorSettings(etcd=etcd.endpoint), on_lost=pytest.fail)
    store = asyncio.run(reached(operator, lambda: Store.protect(etcd.endpoint, password=ROOT.password)))
    with store:
        assert store.accounts.users() == ["root"]
