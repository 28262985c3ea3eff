"""An etcd with authentication, and one user per job."""

from __future__ import annotations

import threading

import pytest

from shoal.store import (
    ALL_JOBS,
    OPERATOR_KEY,
    Credentials,
    Delete,
    JobKeys,
    Put,
    Store,
    StoreRefusedError,
    Tls,
)
from shoal.store._stubs import rpc
from shoal.store.connection import Connector, prefix_end
from tests.etcds import eventually

ROOT = Credentials("root", "root-word")
KEYS = JobKeys("default", "flights", "uid-1")
OTHER = JobKeys("default", "flights", "uid-10")
JOB = Credentials(KEYS.user, "job-word")


def sign_in(etcd, credentials=ROOT, prefix=""):
    return Store.connect(etcd.endpoint, prefix=prefix, credentials=credentials)


@pytest.fixture
def root(etcd):
    """An administrator's connection to an etcd that has one job's user and was restarted since."""
    Store.protect(etcd.endpoint, password=ROOT.password)
    with sign_in(etcd) as root:
        root.accounts.ensure(JOB.username, JOB.password, prefix=KEYS.prefix)
        root.transact([], [Put(key, b"secret") for key in (KEYS.desired, OTHER.desired, OPERATOR_KEY)])
        etcd.restart()
        yield root


def test_clients_without_a_password_are_refused(root, etcd):
    with pytest.raises(StoreRefusedError):
        Store.connect(etcd.endpoint, prefix="")
    Store.protect(etcd.endpoint, password=ROOT.password)  # again
    with pytest.raises(StoreRefusedError, match="authentication failed"):
        Store.protect(etcd.endpoint, password="another-word")
    assert root.get(KEYS.desired).value == b"secret"


def test_a_job_reads_writes_and_watches_its_own_keys(root, etcd):
    events = []
    with sign_in(etcd, JOB, KEYS.prefix) as job:
        job.watch(KEYS.prefix, from_revision=None, on_events=events.extend, on_reset=lambda *_: events.append("begun"))
        eventually(lambda: events == ["begun"], what="the watch")
        assert job.transact([], [Put(KEYS.progress, b"1")]).succeeded
        eventually(lambda: len(events) == 2, what="the event")
        assert [pair.key for pair in job.get_prefix(KEYS.prefix).pairs] == [KEYS.desired, KEYS.progress]
        assert job.transact([], [Delete(KEYS.prefix, prefix=True)]).succeeded


FOREIGN = [OTHER.desired, OPERATOR_KEY, ALL_JOBS, "/shoal/v1/jobs/default/flights/uid-1", "/", "\0"]


def test_a_job_reads_and_writes_nothing_else(root, etcd):
    with sign_in(etcd, JOB, KEYS.prefix) as job:
        job._prefix = ""  # the store would refuse these keys itself; here etcd has to
        for key in FOREIGN:
            for attempt in (
                job.get,
                job.get_prefix,
                lambda key: job.transact([], [Put(key, b"forged")]),
                lambda key: job.transact([], [Put(KEYS.progress, b""), Delete(key)]),
                lambda key: job.transact([], [Delete(key, prefix=True)]),
            ):
                with pytest.raises(StoreRefusedError, match="permission denied"):
                    attempt(key)
    assert {pair.value for pair in root.get_prefix("").pairs} == {b"secret"}


def answers(connection, start, end, until):
    """Yield the responses of a watch from revision 1, up to the one for which ``until`` is true."""
    create = rpc.WatchCreateRequest(key=start.encode(), range_end=end, start_revision=1)
    finished = threading.Event()

    def requests():
        yield rpc.WatchRequest(create_request=create)
        finished.wait(20)

    call = connection.watch(requests())
    try:
        while True:
            answer = connection.next_of(call)
            yield answer
            if until(answer):
                return
    finally:
        finished.set()
        call.cancel()


def test_a_job_watches_nothing_else(root, etcd):
    connection = _connection(etcd, JOB)
    for key in FOREIGN:
        for end in (b"", prefix_end(key.encode())):
            (answer,) = answers(connection, key, end, lambda answer: answer.canceled)
            assert not answer.events, key
    connection.close()


def test_a_job_cannot_watch_the_operator_s_key_from_its_own_key_on(root, etcd):
    """A watch without an end stays within the job's own keys; many versions of etcd let it include keys the user may not read."""
    root.transact([], [Put(OPERATOR_KEY, b"again"), Put(KEYS.desired, b"last")])
    connection = _connection(etcd, JOB)
    seen = []
    last = lambda answer: answer.canceled or any(event.kv.value == b"last" for event in answer.events)  # noqa: E731
    for answer in answers(connection, KEYS.prefix, b"\0", last):
        seen += [event.kv.key.decode() for event in answer.events]
    connection.close()
    assert OPERATOR_KEY not in seen


def test_a_job_may_not_administer_users(root, etcd):
    with sign_in(etcd, JOB, KEYS.prefix) as job:
        for attempt in (
            lambda: job.accounts.ensure(JOB.username, "x", prefix="/"),
            lambda: job.accounts.remove("root"),
            job.accounts.users,
        ):
            with pytest.raises(StoreRefusedError, match="permission denied"):
                attempt()


def test_made_sure_of_again_a_job_keeps_its_login_and_only_what_differs_changes(root, etcd):
    with sign_in(etcd, JOB, KEYS.prefix) as job:
        first = job._connection
        root.accounts.ensure(JOB.username, JOB.password, prefix=KEYS.prefix)
        job.get(KEYS.desired)
        assert job._connection is first, "it need not log in again"
    root.accounts.ensure(JOB.username, "new-word", prefix=OTHER.prefix)
    with pytest.raises(StoreRefusedError, match="authentication failed"):
        sign_in(etcd, JOB, OTHER.prefix)
    with sign_in(etcd, Credentials(JOB.username, "new-word"), OTHER.prefix) as job:
        assert job.get(OTHER.desired).value == b"secret"
        job._prefix = ""
        with pytest.raises(StoreRefusedError, match="permission denied"):
            job.get(KEYS.desired)


def test_foreign_roles_are_taken_from_a_user(root, etcd):
    connection = _connection(etcd, ROOT)
    connection.administer("UserGrantRole", rpc.AuthUserGrantRoleRequest(user=JOB.username, role="root"))
    connection.close()
    root.accounts.ensure(JOB.username, JOB.password, prefix=KEYS.prefix)
    with sign_in(etcd, JOB, KEYS.prefix) as job, pytest.raises(StoreRefusedError, match="permission denied"):
        job.accounts.users()


def test_what_a_cut_short_attempt_left_is_completed(root, etcd):
    connection = _connection(etcd, ROOT)
    connection.administer("UserAdd", rpc.AuthUserAddRequest(name="half", password="x"))
    connection.administer("RoleAdd", rpc.AuthRoleAddRequest(name="half"))
    root.accounts.ensure("half", "whole-word", prefix=OTHER.prefix)
    with sign_in(etcd, Credentials("half", "whole-word"), OTHER.prefix) as half:
        assert half.get(OTHER.desired).value == b"secret"
    connection.administer("RoleDelete", rpc.AuthRoleDeleteRequest(role="half"))
    connection.close()
    root.accounts.remove("half")
    assert "half" not in root.accounts.users()


def test_a_removed_user_is_refused_at_once_and_a_missing_one_is_no_error(root, etcd):
    with sign_in(etcd, JOB, KEYS.prefix) as job:
        assert root.accounts.users() == sorted([JOB.username, "root"])
        root.accounts.remove(JOB.username)
        with pytest.raises(StoreRefusedError):
            job.transact([], [Put(KEYS.desired, b"ghost")])
    root.accounts.remove(JOB.username)
    assert root.accounts.users() == ["root"]
    assert root.get(KEYS.desired).value == b"secret"


def test_no_prefix_is_no_right_to_everything(root):
    with pytest.raises(ValueError, match="every key"):
        root.accounts.ensure("nobody", "x", prefix="")


def test_an_interrupted_protection_is_completed(etcd):
    with Store.connect(etcd.endpoint, prefix="") as store:
        store.accounts._user("root", "older-word")
        assert store.accounts.users() == ["root"]
    Store.protect(etcd.endpoint, password=ROOT.password)
    with sign_in(etcd) as root:
        assert root.accounts.users() == ["root"]


# --- Credentials ---


def write(folder, **files):
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def test_credentials_are_files(tmp_path):
    read = Credentials.read(write(tmp_path, username="shoal/a/b/c\n", password="hidden-word\n"))
    assert read == Credentials("shoal/a/b/c", "hidden-word")
    assert "hidden-word" not in repr(read)
    assert Credentials.read(write(tmp_path, ca_crt="x")).tls == Tls(certificate_authority=tmp_path / "ca.crt")


def test_missing_or_empty_credentials_are_reported(tmp_path):
    with pytest.raises(StoreRefusedError, match=r"cannot be read.*username"):
        Credentials.read(tmp_path)
    with pytest.raises(StoreRefusedError, match="empty"):
        Credentials.read(write(tmp_path, username="u", password=" \n"))


# --- Keys ---


def test_groups_of_keys_are_found_by_leaps(store):
    names = [JobKeys("a", "x", "1"), JobKeys("a", "x", "10"), JobKeys("a-b", "x", "1"), JobKeys("b", "y.z", "2")]
    keys = [keys.tasks_of(0, number) for keys in names for number in range(3)]
    store._prefix = ""
    store.transact([], [Put(key, b"") for key in [*keys, ALL_JOBS + "stray", ALL_JOBS + "a/stray", OPERATOR_KEY]])
    assert store.get_groups(ALL_JOBS, parts=3) == sorted(each.prefix for each in names)
    assert store.get_groups(names[0].prefix, parts=3) == []


def test_a_job_s_user_is_known_by_its_name():
    assert JobKeys.of_user(KEYS.user) == KEYS
    for name in (
        "root",
        "default/flights/uid-1",
        "shoal/default/flights",
        "shoal/a/b/c/d",
        "shoal//b/c",
        "shoal/a/b/c ",
    ):
        assert JobKeys.of_user(name) is None


def _connection(etcd, credentials):
    return Connector((etcd.endpoint,), credentials.username, credentials.password).make()
