"""Early ends that a script causes: it stops the job, it leaves, a batch kills its trainer, it skips samples."""

from __future__ import annotations

import pytest

from shoal.protocol import messages as m
from shoal.protocol.task_set import TaskSet
from tests.master.harness import EPOCHS, SAMPLES, TASKS, MasterHarness

STOP = m.StopEarly(reason="it is good enough", epoch=1)


def only(messages, kind):
    return [(to, x) for to, x in messages if isinstance(x, kind)]


def test_a_stopped_job_does_what_is_begun_and_is_complete():
    harness = MasterHarness()
    harness.joins(0)
    harness.joins(1)
    harness.works(0, TASKS + 2)
    mine, other = harness.gets(0).lease, harness.gets(1).lease
    assert (other.epoch, other.task) == (1, 3)
    messages = harness.deliver(0, STOP)
    assert only(messages, m.Stopping) == [(0, m.Stopping(reason=STOP.reason)), (1, m.Stopping(reason=STOP.reason))]
    assert harness.deliver(1, m.StopEarly(reason="me too", epoch=1)) == [(1, m.Stopping(reason=STOP.reason))]
    harness.does(0, mine)
    assert harness.deliver(0, m.RequestTask(epoch=1)) == [], "another one still works on what is left"
    assert harness.deliver(0, m.LoopFinished()) == [(0, m.NotComplete())]
    assert (0, m.EpochDone(epoch=EPOCHS - 1)) in harness.does(1, other)
    assert harness.deliver(1, m.RequestTask(epoch=2)) == [(1, m.EpochDone(epoch=EPOCHS - 1))]
    harness.deliver(0, m.LoopFinished())
    assert TaskSet.decode(harness.finals[-1].tasks) == TaskSet.through(TASKS, (1, 3))
    assert only(harness.final_snapshots_pinned(), m.Complete) == [(0, m.Complete())]
    outcome = harness.job.records.outcome
    assert (outcome.state, outcome.reason) == ("Complete", "stopped by the script after epoch 1: it is good enough")
    expected = (TASKS + 4) * SAMPLES
    assert outcome.account.samples == m.Samples(expected=expected, counted=expected, lost=0, twice=0, skipped=0)
    assert harness.master.reporter.progress(1.0).samples_expected == expected


def test_what_a_dead_trainer_had_begun_is_handed_out_again():
    harness = MasterHarness()
    harness.joins(0)
    harness.joins(1)
    lost = harness.gets(1).lease
    harness.gets(0)
    harness.deliver(0, STOP)
    assert harness.deliver(0, m.RequestTask(epoch=0)) == []
    ((to, again),) = only(harness.dies(1), m.TaskLeased)
    assert (to, again.lease.task) == (0, lost.task)


def test_a_job_stopped_before_it_began_is_complete_at_once():
    harness = MasterHarness()
    harness.joins(0)
    harness.deliver(0, STOP)
    assert harness.deliver(0, m.RequestTask(epoch=0)) == [(0, m.EpochDone(epoch=EPOCHS - 1))]
    assert harness.finals[-1].tasks, "not every task of every epoch"
    harness.final_snapshots_pinned()
    assert harness.job.records.outcome.reason.startswith("stopped by the script after epoch 0: ")
    assert harness.job.records.outcome.account.samples.expected == 0


def test_a_long_reason_is_clipped():
    harness = MasterHarness()
    harness.joins(0)
    ((_, stopping),) = harness.deliver(0, m.StopEarly(reason="x" * 5000, epoch=0))
    assert stopping.reason.replace("x" * 250, "", 1).endswith(" [... 4,000 characters left out ...] " + "x" * 750)


def test_a_stop_while_the_last_snapshots_are_written_asks_for_them_anew():
    harness = MasterHarness()
    harness.joins(0)
    harness.works(0, TASKS * EPOCHS)
    before = harness.finals[-1]
    harness.deliver(0, STOP)
    assert harness.finals[-1] is not before
    harness.from_server(
        m.FinalSnapshotPinned(
            file="f",
            tasks=before.tasks,
            slots=before.slots,
            grants=before.grants,
            samples=[0] * len(before.slots),
            skipped=[0] * len(before.slots),
        )
    )
    harness.settle()
    assert harness.job.records.outcome is None
    harness.final_snapshots_pinned()
    assert harness.job.records.outcome.account.samples.expected == TASKS * EPOCHS * SAMPLES


def test_a_new_master_goes_on_with_the_stop():
    harness = MasterHarness()
    harness.joins(0)
    harness.works(0, TASKS + 1)
    begun = harness.gets(0).lease
    harness.deliver(0, STOP)
    harness.dies(0)
    harness.replace_master()
    ((_, registered),) = only(harness.joins(1), m.Registered)
    assert registered.stopping == STOP.reason
    again = harness.gets(1).lease
    assert (again.epoch, again.task) == (begun.epoch, begun.task)
    harness.does(1, again)
    assert harness.deliver(1, m.RequestTask(epoch=1)) == [(1, m.EpochDone(epoch=EPOCHS - 1))]


@pytest.mark.parametrize("partly", [False, True])
def test_what_slots_have_is_begun_whatever_etcd_forgot(partly):
    harness = MasterHarness()
    harness.joins(0)
    harness.works(0, 2)
    harness.reached = (0, 4)
    if not partly:
        harness.has.add(0, 4)
    harness.etcd.clear()
    harness.replace_master()
    harness.joins(1)
    harness.deliver(1, STOP)
    assert harness.job.queue.reached == (0, 4)
    harness.works(1, 3 if partly else 2)
    assert TaskSet.decode(harness.finals[-1].tasks) == TaskSet.through(TASKS, (0, 4))


def test_a_server_with_later_tasks_extends_the_final_tasks():
    harness = MasterHarness()
    harness.joins(0)
    harness.works(0, 2)
    harness.deliver(0, STOP)
    harness.deliver(0, m.LoopFinished())
    first = harness.finals[-1]
    harness.reached = (0, 3)
    harness.from_server(m.MissingTasks(reports=harness.report(list(harness.served))))
    assert (0, m.NotComplete()) in harness.settle()
    harness.works(0, 2)
    assert TaskSet.decode(harness.finals[-1].tasks) == TaskSet.through(TASKS, (0, 3))
    harness.finals.append(first)
    harness.final_snapshots_pinned()
    assert harness.job.records.outcome is None, "an answer to the first order counts nothing"


def test_a_claimed_lease_makes_the_set_grow():
    harness = MasterHarness()
    harness.joins(0)
    harness.works(0, 1)
    harness.deliver(0, STOP)
    harness.joins(1, leases=[m.Lease(epoch=1, task=0, attempt=9)])
    assert not harness.job.queue.all_done
    assert harness.job.queue.begun() == TaskSet.through(TASKS, (1, 0))


def test_scores_of_a_stopped_job_s_last_epoch_are_made_again_when_tasks_are_reopened():
    harness = MasterHarness()
    harness.joins(0)
    harness.works(0, TASKS)
    harness.deliver(0, STOP)
    for number in range(2):
        harness.deliver(0, m.Evaluated(epoch=0, number=number, score="1"))
    harness.has = TaskSet.through(TASKS, (0, 3))
    harness.from_server(m.GrantReport(reports=harness.report(list(harness.served))))
    harness.settle()
    assert harness.job.records.evaluation_list() == []
    assert not any(key.startswith("evaluations/") for key in harness.etcd)


# --- Batches that kill their trainer ---


def killed(harness, index, life, batch=1, *, samples=(3, 7)):
    """Register a trainer, lease the first task, announce a batch, and close the connection as a kill does."""
    harness.joins(index, life=life)
    leased = harness.gets(index)
    if leased.watched:
        harness.deliver(index, m.BatchBegan(lease=leased.lease, batch=batch, samples=list(samples)))
    harness.dies(index)
    return leased.watched


def test_a_batch_that_always_kills_its_trainer_fails_the_job_and_is_named():
    harness = MasterHarness()
    assert [killed(harness, 0, 10 + life) for life in range(4)] == [False, True, True, True]
    outcome = harness.job.records.outcome
    assert outcome.state == "Failed"
    assert (
        "killed 3 times (SIGKILL, out of memory or a crash) while it worked on the same batch: batch 1 of task 0 in "
        in (outcome.reason)
    )
    assert "epoch 1, samples 3, 7; " in outcome.reason


def test_deaths_at_different_batches_do_not_add_up():
    harness = MasterHarness()
    for life in range(5):
        killed(harness, 0, 10 + life, batch=life % 3)
    assert harness.job.records.outcome is None


def test_a_trainer_that_reconnects_is_not_counted_as_dead():
    harness = MasterHarness()
    killed(harness, 0, 5)
    for _ in range(5):
        killed(harness, 1, 6)
    assert harness.job.records.outcome is None


def test_a_task_that_is_done_is_watched_no_longer():
    harness = MasterHarness()
    for life in range(3):
        killed(harness, 0, 10 + life)
    harness.joins(1)
    harness.works(1, 1)
    harness.has = TaskSet(TASKS)
    harness.from_server(m.GrantReport(reports=harness.report(list(harness.served))))
    harness.settle()
    assert not harness.gets(1).watched


def test_an_orderly_leave_does_not_make_a_task_watched():
    harness = MasterHarness()
    harness.joins(0)
    leased = harness.gets(0)
    harness.deliver(0, m.Leave(leases=[leased.lease]))
    harness.joins(1)
    assert not harness.gets(1).watched


def test_at_most_twenty_samples_are_named():
    harness = MasterHarness()
    for life in range(4):
        killed(harness, 0, 10 + life, samples=range(100, 150))
    assert "samples 100, 101" in harness.job.records.outcome.reason
    assert "119;" in harness.job.records.outcome.reason


# --- Leaving and skipping ---


def test_the_reason_of_a_script_that_left_is_reported():
    harness = MasterHarness()
    harness.joins(0)
    harness.deliver(0, m.Leave(leases=[], reason="the loop ended after 3 batches\n" + "x" * 5000))
    (event,) = harness.events("warning")
    assert event.startswith("trainer-0 left before the job was complete: the loop ended after 3 batches")
    assert len(event) < 2100
    assert harness.master.reporter.progress(100.0).stall_reason.endswith(
        "; the last one left: the loop ended after 3 batches"
    )


@pytest.mark.parametrize(("skipped", "warned"), [(7, False), (8, True)])
def test_many_skipped_samples_are_warned_of(skipped, warned):
    harness = MasterHarness()
    harness.joins(0)
    harness.works(0, TASKS * EPOCHS)
    harness.final_snapshots_pinned(skipped=skipped)
    warnings = [text for text in harness.events("warning") if "docs/scripts.md" in text]
    assert bool(warnings) == warned
    if warned:
        assert warnings[0].startswith("8 of 72 samples (11%) were skipped")


def test_a_script_that_ends_again_and_again_before_its_job_does_fails_it():
    harness = MasterHarness()
    for index in range(3):
        assert harness.job.records.outcome is None
        harness.joins(index)
        harness.deliver(index, m.Leave(leases=[], reason="the loop was left"))
    outcome = harness.job.records.outcome
    assert outcome.state == "Failed"
    assert outcome.reason == "the script ended 3 times before the job was complete: the loop was left"


def test_drained_trainers_do_not_fail_the_job():
    harness = MasterHarness()
    for index in range(5):
        harness.joins(index)
        harness.deliver(index, m.Leave(leases=[]))
    assert harness.job.records.outcome is None
