"""Early ends that a script causes: it stops the job, it leaves, a batch kills its trainer, it skips samples."""

from __future__ import annotations

import pytest

from shoal.protocol import messages as m
from shoal.protocol.task_set import TaskSet
from tests.master.desk import EPOCHS, SAMPLES, TASKS, Desk

STOP = m.StopEarly(reason="it is good enough", epoch=1)


def told(said, kind):
    return [(to, x) for to, x in said if isinstance(x, kind)]


def test_a_stopped_job_does_what_is_begun_and_is_complete():
    desk = Desk()
    desk.joins(0)
    desk.joins(1)
    desk.works(0, TASKS + 2)
    mine, other = desk.gets(0).lease, desk.gets(1).lease
    assert (other.epoch, other.task) == (1, 3)
    said = desk.says(0, STOP)
    assert told(said, m.Stopping) == [(0, m.Stopping(reason=STOP.reason)), (1, m.Stopping(reason=STOP.reason))]
    assert desk.says(1, m.StopEarly(reason="me too", epoch=1)) == [(1, m.Stopping(reason=STOP.reason))]
    desk.does(0, mine)
    assert desk.says(0, m.RequestTask(epoch=1)) == [], "another one still works on what is left"
    assert desk.says(0, m.LoopFinished()) == [(0, m.NotComplete())]
    assert (0, m.EpochDone(epoch=EPOCHS - 1)) in desk.does(1, other)
    assert desk.says(1, m.RequestTask(epoch=2)) == [(1, m.EpochDone(epoch=EPOCHS - 1))]
    desk.says(0, m.LoopFinished())
    assert TaskSet.decode(desk.finals[-1].tasks) == TaskSet.through(TASKS, (1, 3))
    assert told(desk.final_snapshots_pinned(), m.Complete) == [(0, m.Complete())]
    outcome = desk.job.records.outcome
    assert (outcome.state, outcome.reason) == ("Complete", "stopped by the script after epoch 1: it is good enough")
    expected = (TASKS + 4) * SAMPLES
    assert outcome.account.samples == m.Samples(expected=expected, counted=expected, lost=0, twice=0, skipped=0)
    assert desk.master.reporter.progress(1.0).samples_expected == expected


def test_what_a_dead_trainer_had_begun_is_handed_out_again():
    desk = Desk()
    desk.joins(0)
    desk.joins(1)
    lost = desk.gets(1).lease
    desk.gets(0)
    desk.says(0, STOP)
    assert desk.says(0, m.RequestTask(epoch=0)) == []
    ((to, again),) = told(desk.dies(1), m.TaskLeased)
    assert (to, again.lease.task) == (0, lost.task)


def test_a_job_stopped_before_it_began_is_complete_at_once():
    desk = Desk()
    desk.joins(0)
    desk.says(0, STOP)
    assert desk.says(0, m.RequestTask(epoch=0)) == [(0, m.EpochDone(epoch=EPOCHS - 1))]
    assert desk.finals[-1].tasks, "not every task of every epoch"
    desk.final_snapshots_pinned()
    assert desk.job.records.outcome.reason.startswith("stopped by the script after epoch 0: ")
    assert desk.job.records.outcome.account.samples.expected == 0


def test_a_long_reason_is_clipped():
    desk = Desk()
    desk.joins(0)
    ((_, stopping),) = desk.says(0, m.StopEarly(reason="x" * 5000, epoch=0))
    assert stopping.reason.replace("x" * 250, "", 1).endswith(" [... 4,000 characters left out ...] " + "x" * 750)


def test_a_stop_while_the_last_snapshots_are_written_asks_for_them_anew():
    desk = Desk()
    desk.joins(0)
    desk.works(0, TASKS * EPOCHS)
    before = desk.finals[-1]
    desk.says(0, STOP)
    assert desk.finals[-1] is not before
    desk.from_server(
        m.FinalSnapshotPinned(
            file="f",
            tasks=before.tasks,
            slots=before.slots,
            grants=before.grants,
            samples=[0] * len(before.slots),
            skipped=[0] * len(before.slots),
        )
    )
    desk.settle()
    assert desk.job.records.outcome is None
    desk.final_snapshots_pinned()
    assert desk.job.records.outcome.account.samples.expected == TASKS * EPOCHS * SAMPLES


def test_a_new_master_goes_on_with_the_stop():
    desk = Desk()
    desk.joins(0)
    desk.works(0, TASKS + 1)
    begun = desk.gets(0).lease
    desk.says(0, STOP)
    desk.dies(0)
    desk.replace_master()
    ((_, registered),) = told(desk.joins(1), m.Registered)
    assert registered.stopping == STOP.reason
    again = desk.gets(1).lease
    assert (again.epoch, again.task) == (begun.epoch, begun.task)
    desk.does(1, again)
    assert desk.says(1, m.RequestTask(epoch=1)) == [(1, m.EpochDone(epoch=EPOCHS - 1))]


@pytest.mark.parametrize("partly", [False, True])
def test_what_slots_have_is_begun_whatever_etcd_forgot(partly):
    desk = Desk()
    desk.joins(0)
    desk.works(0, 2)
    desk.reached = (0, 4)
    if not partly:
        desk.has.add(0, 4)
    desk.etcd.clear()
    desk.replace_master()
    desk.joins(1)
    desk.says(1, STOP)
    assert desk.job.queue.reached == (0, 4)
    desk.works(1, 3 if partly else 2)
    assert TaskSet.decode(desk.finals[-1].tasks) == TaskSet.through(TASKS, (0, 4))


def test_a_server_with_later_tasks_extends_the_final_tasks():
    desk = Desk()
    desk.joins(0)
    desk.works(0, 2)
    desk.says(0, STOP)
    desk.says(0, m.LoopFinished())
    first = desk.finals[-1]
    desk.reached = (0, 3)
    desk.from_server(m.MissingTasks(reports=desk.report(list(desk.served))))
    assert (0, m.NotComplete()) in desk.settle()
    desk.works(0, 2)
    assert TaskSet.decode(desk.finals[-1].tasks) == TaskSet.through(TASKS, (0, 3))
    desk.finals.append(first)
    desk.final_snapshots_pinned()
    assert desk.job.records.outcome is None, "an answer to the first order counts nothing"


def test_a_claimed_lease_makes_the_set_grow():
    desk = Desk()
    desk.joins(0)
    desk.works(0, 1)
    desk.says(0, STOP)
    desk.joins(1, leases=[m.Lease(epoch=1, task=0, attempt=9)])
    assert not desk.job.queue.all_done
    assert desk.job.queue.begun() == TaskSet.through(TASKS, (1, 0))


def test_scores_of_a_stopped_job_s_last_epoch_are_made_again_when_tasks_are_reopened():
    desk = Desk()
    desk.joins(0)
    desk.works(0, TASKS)
    desk.says(0, STOP)
    for number in range(2):
        desk.says(0, m.Evaluated(epoch=0, number=number, score="1"))
    desk.has = TaskSet.through(TASKS, (0, 3))
    desk.from_server(m.GrantReport(reports=desk.report(list(desk.served))))
    desk.settle()
    assert desk.job.records.evaluation_list() == []
    assert not any(key.startswith("evaluations/") for key in desk.etcd)


# --- Batches that kill their trainer ---


def killed(desk, index, life, batch=1, *, samples=(3, 7)):
    """Register a trainer, lease the first task, announce a batch, and close the connection as a kill does."""
    desk.joins(index, life=life)
    leased = desk.gets(index)
    if leased.watched:
        desk.says(index, m.BatchBegan(lease=leased.lease, batch=batch, samples=list(samples)))
    desk.dies(index)
    return leased.watched


def test_a_batch_that_always_kills_its_trainer_fails_the_job_and_is_named():
    desk = Desk()
    assert [killed(desk, 0, 10 + life) for life in range(4)] == [False, True, True, True]
    outcome = desk.job.records.outcome
    assert outcome.state == "Failed"
    assert (
        "killed 3 times (SIGKILL, out of memory or a crash) while it worked on the same batch: batch 1 of task 0 in "
        in (outcome.reason)
    )
    assert "epoch 1, samples 3, 7; " in outcome.reason


def test_deaths_at_different_batches_do_not_add_up():
    desk = Desk()
    for life in range(5):
        killed(desk, 0, 10 + life, batch=life % 3)
    assert desk.job.records.outcome is None


def test_a_trainer_that_reconnects_is_not_counted_as_dead():
    desk = Desk()
    killed(desk, 0, 5)
    for _ in range(5):
        killed(desk, 1, 6)
    assert desk.job.records.outcome is None


def test_a_task_that_is_done_is_watched_no_longer():
    desk = Desk()
    for life in range(3):
        killed(desk, 0, 10 + life)
    desk.joins(1)
    desk.works(1, 1)
    desk.has = TaskSet(TASKS)
    desk.from_server(m.GrantReport(reports=desk.report(list(desk.served))))
    desk.settle()
    assert not desk.gets(1).watched


def test_an_orderly_leave_does_not_make_a_task_watched():
    desk = Desk()
    desk.joins(0)
    leased = desk.gets(0)
    desk.says(0, m.Leave(leases=[leased.lease]))
    desk.joins(1)
    assert not desk.gets(1).watched


def test_at_most_twenty_samples_are_named():
    desk = Desk()
    for life in range(4):
        killed(desk, 0, 10 + life, samples=range(100, 150))
    assert "samples 100, 101" in desk.job.records.outcome.reason
    assert "119;" in desk.job.records.outcome.reason


# --- Leaving and skipping ---


def test_the_reason_of_a_script_that_left_is_reported():
    desk = Desk()
    desk.joins(0)
    desk.says(0, m.Leave(leases=[], reason="the loop ended after 3 batches\n" + "x" * 5000))
    (event,) = desk.events("warning")
    assert event.startswith("trainer-0 left before the job was complete: the loop ended after 3 batches")
    assert len(event) < 2100
    assert desk.master.reporter.progress(100.0).why.endswith("; the last one left: the loop ended after 3 batches")


@pytest.mark.parametrize(("skipped", "warned"), [(7, False), (8, True)])
def test_many_skipped_samples_are_warned_of(skipped, warned):
    desk = Desk()
    desk.joins(0)
    desk.works(0, TASKS * EPOCHS)
    desk.final_snapshots_pinned(skipped=skipped)
    warnings = [text for text in desk.events("warning") if "docs/scripts.md" in text]
    assert bool(warnings) == warned
    if warned:
        assert warnings[0].startswith("8 of 72 samples (11%) were skipped")


def test_a_script_that_ends_again_and_again_before_its_job_does_fails_it():
    desk = Desk()
    for index in range(3):
        assert desk.job.records.outcome is None
        desk.joins(index)
        desk.says(index, m.Leave(leases=[], reason="the loop was left"))
    outcome = desk.job.records.outcome
    assert outcome.state == "Failed"
    assert outcome.reason == "the script ended 3 times before the job was complete: the loop was left"


def test_drained_trainers_do_not_fail_the_job():
    desk = Desk()
    for index in range(5):
        desk.joins(index)
        desk.says(index, m.Leave(leases=[]))
    assert desk.job.records.outcome is None
