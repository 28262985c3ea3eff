"""The state that the operator desires reaches the trainers through etcd and the master, and no sample is lost."""

from __future__ import annotations

import math
import time

import msgspec
import pytest

from shoal.store import DesiredState, Put, ReportedState, Store
from tests.exactly_once.test_counting import check
from tests.realjob import RealJob

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


class Operator:
    """Writes the desired state and reads the reported state, as the operator does."""

    def __init__(self, job: RealJob) -> None:
        self.job = job
        self.store = Store.connect(job.etcd.endpoint, prefix=job.keys.prefix)

    def set_desired(self, **desired) -> None:
        self.raw(msgspec.json.encode(DesiredState(**desired)))

    def raw(self, value: bytes) -> None:
        assert self.store.transact([], [Put(self.job.keys.desired, value)]).succeeded

    def reported(self) -> ReportedState | None:
        found = self.store.get(self.job.keys.progress)
        return msgspec.json.decode(found.value, type=ReportedState) if found is not None else None

    def until(self, found, *, seconds: float = 60.0) -> ReportedState:
        """Supervise until the master reports a state for which ``found`` is true."""
        end = time.monotonic() + seconds
        while True:
            self.job.supervise()
            reported = self.reported()
            if reported is not None and found(reported):
                return reported
            assert time.monotonic() < end, (reported, self.job.last_lines())
            time.sleep(0.02)  # polling interval of the supervisor


@pytest.fixture
def operator(zygote, tmp_path):
    with RealJob(zygote, tmp_path / "j", epochs=12, trainers=3, variables={"COUNT_PAUSE": "0.01"}) as job:
        made = Operator(job)
        yield made
        made.store.close()


def test_trainers_are_drained_one_by_one_and_rejoin(operator):
    job = operator.job
    operator.until(lambda reported: reported.trainers == [0, 1, 2] and reported.samples > 0)
    operator.set_desired(drain=[1])
    operator.until(lambda reported: reported.trainers == [0, 2])
    assert job.children["trainer", 1].returncode == 0
    job.join(1)  # the trainer is still to be drained: it must not train
    first = job.children.get(("trainer", 1))
    operator.until(lambda _: ("trainer", 1) not in job.desired)
    assert job.children["trainer", 1] is not first
    assert job.children["trainer", 1].returncode == 0
    operator.set_desired(drain=[0])
    job.join(1)
    operator.until(lambda reported: reported.trainers == [1, 2])
    operator.set_desired()
    job.run_to_the_end(seconds=120)
    check(job)
    reported = operator.until(lambda reported: reported.state == "Complete")
    assert (reported.samples, reported.epoch, reported.epochs) == (reported.expected, 11, 12)


def test_a_suspended_job_resumes_with_a_new_master_and_new_servers(operator):
    job = operator.job
    operator.until(lambda reported: reported.samples > 0)
    operator.set_desired(suspend=True)
    operator.until(lambda reported: reported.trainers == [] and reported.stall_reason == "the job is suspended")
    assert not job.trainers_left
    for role, index in (("pserver", 0), ("pserver", 1)):
        job.children[role, index].send_signal(15)
        job.children[role, index].wait(30)
    job.kill("master", 0)
    operator.set_desired()
    for index in range(2):
        job.join(index)
    job.run_to_the_end(seconds=120)
    check(job)
    account = job.outcome().account
    assert account.replayed == 0, "terminated servers write a snapshot first"


def test_an_undecodable_desired_state_is_ignored(operator):
    operator.until(lambda reported: reported.samples > 0)
    operator.raw(b"{")
    operator.raw(b'{"drain": [2], "colour": "red"}')
    operator.until(lambda reported: reported.trainers == [0, 1])
    assert "the desired state cannot be decoded" in operator.job.log("master", 0)
    operator.job.run_to_the_end(seconds=120)
    check(operator.job)


def test_the_values_that_the_script_logs_are_reported(operator):
    reported = operator.until(lambda reported: reported.samples > 0 and bool(reported.values))
    assert reported.values.keys() == {"loss"}
    assert math.isfinite(reported.values["loss"])
