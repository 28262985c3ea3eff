"""A whole job on an etcd with authentication: its master may access the job's own keys and nothing else."""

from __future__ import annotations

import time

import msgspec
import pytest

from shoal.master.state.records import Outcome
from shoal.store import Credentials, Store
from tests.exactly_once.test_counting import check
from tests.realjob import RealJob

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

ROOT = Credentials("root", "root-word")


class GuardedJob(RealJob):
    """A job whose master has its own etcd user."""

    password = "job-word"

    def __enter__(self):
        self.etcd.start()
        Store.protect(self.etcd.endpoint, password=ROOT.password)
        with self.store(ROOT, prefix="") as root:
            root.accounts.ensure(self.keys.user, "job-word", prefix=self.keys.prefix)
        folder = self.folder / "credentials"
        folder.mkdir()
        (folder / "username").write_text(self.keys.user)
        (folder / "password").write_text(self.password)
        return super().__enter__()

    def store(self, credentials, prefix):
        return Store.connect(self.etcd.endpoint, prefix=prefix, credentials=credentials)

    def _arguments(self, role, index):
        more = ["--etcd-credentials", str(self.folder / "credentials")] if role == "master" else []
        return [*super()._arguments(role, index), *more]

    def outcome(self):
        with self.store(Credentials(self.keys.user, "job-word"), prefix=self.keys.prefix) as store:
            found = store.get(self.keys.outcome)
        return msgspec.json.decode(found.value, type=Outcome)


def test_a_master_with_a_user_of_its_own_leads_and_commits_through_kills(zygote, tmp_path):
    with GuardedJob(zygote, tmp_path / "j", epochs=3, variables={"COUNT_PAUSE": "0.01"}) as job:
        while "epoch 2 of" not in job.log("master", 0):
            job.supervise()
            time.sleep(0.02)  # polling interval of the supervisor
        job.etcd.restart()
        job.kill("master", 0)
        job.run_to_the_end(seconds=120)
        check(job)


class StrangersJob(GuardedJob):
    """A job whose master has the wrong password."""

    password = "a-guess"


def test_a_master_that_etcd_refuses_logs_the_reason(zygote, tmp_path):
    job = StrangersJob(zygote, tmp_path / "j")
    with pytest.raises(AssertionError, match="authentication failed"), job:
        job.run_to_the_end(seconds=60)
    assert "a-guess" not in job.log("master", 0)
