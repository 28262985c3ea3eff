"""A hung script counts as a try of its task, and the third try fails the job."""

from __future__ import annotations

from shoal.protocol import messages as m
from tests.master.harness import MasterHarness


def hung(lease=None):
    return m.ScriptHung(
        seconds=600.4, activity="in batch 1 of task 0, epoch 1: samples 5, 7", stack="train.py, line 3", lease=lease
    )


def test_the_master_names_trainer_task_and_time():
    harness = MasterHarness()
    harness.joins(0)
    harness.deliver(0, hung())
    assert (
        "trainer-0: the script has come no further for 600 s in batch 1 of task 0, epoch 1: samples 5, 7"
        in harness.events("error")[-1]
    )
    assert not harness.job.ended


def test_three_times_on_one_task_fail_the_job_with_its_samples():
    harness = MasterHarness()
    harness.joins(0)
    lease = m.Lease(epoch=0, task=0, attempt=1)
    for _ in range(2):
        harness.deliver(0, hung(lease))
        harness.deliver(0, hung(m.Lease(epoch=0, task=1, attempt=1)))
    assert not harness.job.ended
    harness.deliver(0, hung(lease))
    reason = harness.job.records.outcome.reason
    assert reason.startswith("the script failed 3 times on task 0 of epoch 1 (positions 0 to 3 of that epoch's order):")
    assert "samples 5, 7" in reason


def test_outside_of_batches_three_times_without_a_task_done_fail_the_job():
    harness = MasterHarness()
    harness.joins(0)
    for _ in range(3):
        assert not harness.job.ended
        harness.deliver(0, hung())
    assert harness.job.records.outcome.reason.startswith("the script failed 3 times before any task was done:")
