"""The supervisor's decisions, without processes."""

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.local.supervisor import (
    ETCD,
    MASTER,
    SERVER,
    TRAINER,
    Finish,
    PrintLine,
    RunSettings,
    Signal,
    Start,
    Supervisor,
)
from tests.soak import examples


def do(actions, *kinds):
    return [action for action in actions if isinstance(action, kinds or (Start, Signal, Finish))]


def running(trainers=2, servers=1, **more):
    supervisor = Supervisor(RunSettings(trainers=trainers, servers=servers, **more))
    supervisor.begin(0.0)
    return supervisor


def end_all(supervisor, now=100.0):
    """Report a clean exit of all remaining processes, role by role; return the supervisor's actions in order."""
    done = []
    for role in (TRAINER, SERVER, MASTER, ETCD):
        for other, index in sorted(supervisor.alive):
            if other == role:
                done += do(supervisor.exited(role, index, 0, now))
    return done


def test_everything_starts_at_once():
    started = do(Supervisor(RunSettings(trainers=2, servers=2)).begin(0.0))
    assert started == [
        Start(TRAINER, 0),
        Start(TRAINER, 1),
        Start(SERVER, 0),
        Start(SERVER, 1),
        Start(ETCD, 0),
        Start(MASTER, 0),
    ]


@pytest.mark.parametrize("place", [(TRAINER, 1), (SERVER, 0), (MASTER, 0), (ETCD, 0)])
def test_a_killed_process_starts_again_at_once(place):
    assert do(running().exited(*place, -9, 50.0)) == [Start(*place)]


def test_a_signal_reported_by_a_shell_never_counts():
    supervisor = running(backoff_limit=0)
    assert do(supervisor.exited(TRAINER, 0, 137, 50.0)) == [Start(TRAINER, 0)]
    assert supervisor.failures == 0


def test_repeated_early_exits_increase_the_restart_delay():
    supervisor, now, delays = running(), 0.0, []
    for _ in range(7):
        actions = supervisor.exited(MASTER, 0, 1, now, last_lines="no such module")
        waits = 0.0 if do(actions) else supervisor.pending[MASTER, 0] - now
        delays.append(waits)
        now += waits
        if waits:
            assert do(supervisor.tick(now)) == [Start(MASTER, 0)]
    assert delays == [0, 1, 2, 4, 8, 10, 10]


def test_a_steady_run_resets_the_restart_delay():
    supervisor = running()
    supervisor.exited(MASTER, 0, 1, 0.0)
    supervisor.exited(MASTER, 0, 1, 0.5)
    assert do(supervisor.tick(2.0)) == [Start(MASTER, 0)]
    assert do(supervisor.exited(MASTER, 0, 1, 100.0)) == [Start(MASTER, 0)]


def test_errors_of_the_script_wait_longer_until_the_limit():
    supervisor, now, delays = running(trainers=1, backoff_limit=3), 0.0, []
    supervisor.progressed("Running", "", 40, now, joins=1, trainers=1)
    for _ in range(3):
        supervisor.exited(TRAINER, 0, 1, now, last_lines="ValueError: x")
        delays.append(supervisor.pending[TRAINER, 0] - now)
        now += delays[-1]
        assert do(supervisor.tick(now)) == [Start(TRAINER, 0)]
    assert delays == [1, 2, 4]
    assert do(supervisor.exited(TRAINER, 0, 1, now, last_lines="ValueError: x")) == [Signal(SERVER, 0, signal.SIGTERM)]
    finish = end_all(supervisor)[-1]
    assert finish.state == "Failed"
    assert finish.reason.startswith("the script failed 4 times in a row (runPolicy.backoffLimit: 3)")
    assert "ValueError: x" in finish.reason
    assert not finish.final


def test_errors_before_the_first_sample_are_reported_soon():
    supervisor, now, delays = running(trainers=1), 0.0, []
    supervisor.progressed("Starting", "", 0, now, joins=1, trainers=1)
    for _ in range(6):
        supervisor.exited(TRAINER, 0, 1, now, last_lines="ModuleNotFoundError: No module named 'torchh'")
        delays.append(supervisor.pending[TRAINER, 0] - now)
        now += delays[-1]
        supervisor.tick(now)
    assert delays == [1, 2, 2, 2, 2, 2]
    supervisor.exited(TRAINER, 0, 1, now)
    assert end_all(supervisor)[-1].state == "Failed"


def test_a_script_that_always_fails_early_fails_the_job_although_it_commits_samples():
    supervisor, now = running(trainers=2, backoff_limit=3), 0.0
    for samples in range(100):
        supervisor.progressed("Running", "", samples, now, joins=1, trainers=1)
        now += 3.0
        supervisor.exited(TRAINER, 0, 1, now, last_lines="IndexError: the third batch")
        if supervisor.outcome is not None:
            break
        now = supervisor.pending[TRAINER, 0]
        supervisor.tick(now)
    assert samples == 3
    assert end_all(supervisor)[-1].state == "Failed"


def test_half_a_minute_of_committed_samples_without_failures_resets_the_early_failures():
    supervisor = running(trainers=2, backoff_limit=3)
    supervisor.progressed("Running", "", 0, 0.0, joins=1, trainers=1)
    supervisor.exited(TRAINER, 0, 1, 3.0)
    supervisor.progressed("Running", "", 10, 20.0, joins=1, trainers=1)
    assert supervisor.failures == 1
    supervisor.progressed("Running", "", 20, 33.0, joins=1, trainers=1)
    assert supervisor.failures == 0


def test_committed_samples_reset_count_and_delay():
    supervisor, now = running(trainers=1, backoff_limit=1), 0.0
    supervisor.progressed("Running", "", 0, now, joins=1, trainers=1)
    for samples in range(1, 6):
        now += 31
        supervisor.exited(TRAINER, 0, 1, now)
        assert supervisor.pending[TRAINER, 0] == now + 1
        now += 1
        supervisor.tick(now)
        supervisor.progressed("Running", "", samples, now, joins=1, trainers=1)
        assert supervisor.failures == 0


@pytest.mark.parametrize("place", [(TRAINER, 1), (SERVER, 0), (MASTER, 0)])
def test_a_refusal_is_final(place):
    supervisor = running()
    printed = do(supervisor.exited(*place, 78, 5.0, last_lines="optimizer LBFGS: use Adam"))
    assert Signal(TRAINER, 0, signal.SIGTERM) in printed
    assert end_all(supervisor)[-1] == Finish("Failed", "optimizer LBFGS: use Adam", final=False)


def test_scaling_starts_the_lowest_free_and_drains_the_highest():
    supervisor = running(trainers=2)
    assert do(supervisor.scale(4, 1.0)) == [Start(TRAINER, 2), Start(TRAINER, 3)]
    assert do(supervisor.scale(1, 2.0)) == [Signal(TRAINER, index, signal.SIGTERM) for index in (3, 2, 1)]
    assert do(supervisor.exited(TRAINER, 2, 0, 3.0)) == []
    assert do(supervisor.exited(TRAINER, 1, -15, 3.0)) == []
    assert do(supervisor.scale(3, 4.0)) == [Start(TRAINER, 1), Start(TRAINER, 2)]
    assert do(supervisor.exited(TRAINER, 3, 0, 5.0)) == []


def test_scaling_down_removes_pending_trainers_first():
    supervisor = running(trainers=2)
    supervisor.exited(TRAINER, 1, 1, 1.0)
    assert do(supervisor.scale(1, 1.5)) == []
    assert do(supervisor.tick(60.0)) == []


def test_a_trainer_that_does_not_drain_is_killed():
    supervisor = running(trainers=2, drain_seconds=10)
    supervisor.scale(1, 0.0)
    assert do(supervisor.tick(9.0)) == []
    assert do(supervisor.tick(10.0)) == [Signal(TRAINER, 1, signal.SIGKILL)]
    assert do(supervisor.tick(20.0)) == []


def test_the_end_of_a_complete_job():
    supervisor = running(trainers=2)
    assert do(supervisor.progressed("Complete", "", 10, 5.0, joins=1, trainers=1)) == []
    assert do(supervisor.exited(TRAINER, 0, 0, 6.0)) == []
    assert do(supervisor.exited(TRAINER, 1, 0, 6.0)) == [Signal(SERVER, 0, signal.SIGTERM)]
    assert do(supervisor.exited(SERVER, 0, 0, 7.0)) == [Signal(MASTER, 0, signal.SIGTERM)]
    assert do(supervisor.exited(MASTER, 0, 0, 7.0)) == [Signal(ETCD, 0, signal.SIGTERM)]
    assert do(supervisor.exited(ETCD, 0, 0, 7.0)) == [Finish("Complete", "", final=True)]


def test_a_trainer_killed_before_the_model_is_written_is_restarted_to_write_it():
    supervisor = running(trainers=1)
    supervisor.progressed("Complete", "", 10, 5.0, joins=1, trainers=1)
    assert do(supervisor.exited(TRAINER, 0, -9, 6.0)) == [Start(TRAINER, 0)]
    assert do(supervisor.exited(SERVER, 0, -9, 6.0)) == [Start(SERVER, 0)]
    assert do(supervisor.exited(TRAINER, 0, 0, 9.0)) == [Signal(SERVER, 0, signal.SIGTERM)]


def test_the_completion_report_may_arrive_after_the_script_ended():
    supervisor = running(trainers=2)
    assert do(supervisor.exited(TRAINER, 0, 0, 5.0)) == []
    assert do(supervisor.progressed("Complete", "", 10, 5.2, joins=1, trainers=1)) == []
    assert do(supervisor.exited(TRAINER, 1, 0, 5.3)) == [Signal(SERVER, 0, signal.SIGTERM)]


def test_a_trainer_that_left_is_replaced():
    supervisor = running(trainers=1)
    supervisor.exited(TRAINER, 0, 0, 5.0)
    assert do(supervisor.tick(7.0)) == [Start(TRAINER, 0)]


def test_a_complete_job_remains_complete_while_its_processes_end():
    supervisor = running(trainers=1)
    supervisor.progressed("Complete", "", 10, 5.0, joins=1, trainers=1)
    supervisor.exited(TRAINER, 0, 0, 6.0)
    assert supervisor.outcome is not None
    assert supervisor.complete
    supervisor.interrupt(7.0)
    assert supervisor.complete
    stopped = running(trainers=1)
    stopped.interrupt(1.0)
    assert not stopped.complete


def test_a_script_that_goes_on_after_the_end_is_named_once():
    supervisor = running(trainers=2)
    supervisor.progressed("Complete", "", 10, 5.0, joins=1, trainers=1)
    supervisor.exited(TRAINER, 0, 0, 6.0)
    (printed,) = supervisor.tick(15.0)
    assert "waiting for the scripts of trainer-1 to end" in printed.text
    assert supervisor.tick(30.0) == []


def test_the_reminder_names_a_script_that_failed_after_completion_and_awaits_its_restart():
    supervisor = running(trainers=1)
    supervisor.progressed("Complete", "", 10, 5.0, joins=1, trainers=1)
    supervisor.exited(TRAINER, 0, 1, 6.0, last_lines="FileNotFoundError")
    printed = [each.text for each in supervisor.tick(15.0) if isinstance(each, PrintLine)]
    assert printed[0] == "the training is complete; waiting for the scripts of trainer-0 to end"


def test_a_script_that_never_trains_fails_the_job():
    supervisor, now = running(trainers=1, backoff_limit=2), 0.0
    supervisor.progressed("Running", "", 0, now, joins=3, trainers=1)
    for _ in range(4):
        supervisor.exited(TRAINER, 0, 0, now, last_lines="RuntimeError ignored")
        now += 2.0
        supervisor.tick(now)
    finish = end_all(supervisor)[-1]
    assert finish.state == "Failed"
    assert finish.reason == (
        "the script ended 4 times in a row although the job was not complete; its last output:\nRuntimeError ignored"
    )


def test_a_script_that_never_joins_fails_the_job_with_the_cause():
    supervisor = running(trainers=1)
    supervisor.progressed("Running", "", 40, 0.5, joins=2, trainers=0)  # a job that was trained before this start
    assert do(supervisor.exited(TRAINER, 0, 0, 1.0, last_lines="done")) == []
    assert do(supervisor.tick(3.0)) == [Signal(SERVER, 0, signal.SIGTERM)]
    finish = end_all(supervisor)[-1]
    assert finish.state == "Failed"
    assert finish.reason.startswith("the script ended without joining the job: it never called trainer.join()")
    assert finish.reason.endswith("its last output:\ndone")


def test_the_join_report_may_arrive_after_the_script_ended():
    supervisor = running(trainers=1)
    supervisor.progressed("Starting", "", 0, 0.5, joins=0, trainers=0)
    supervisor.exited(TRAINER, 0, 0, 1.0)
    supervisor.progressed("Starting", "", 0, 1.2, joins=1, trainers=0)
    assert do(supervisor.tick(3.0)) == [Start(TRAINER, 0)]


def test_before_the_first_progress_report_no_script_counts_as_never_joined():
    supervisor = running(trainers=1)
    supervisor.exited(TRAINER, 0, 0, 1.0)
    assert do(supervisor.tick(3.0)) == [Start(TRAINER, 0)]


def test_the_reason_of_an_early_completion_is_part_of_the_end():
    supervisor = running(trainers=1)
    supervisor.progressed("Complete", "stopped by the script", 10, 5.0, joins=1, trainers=1)
    supervisor.exited(TRAINER, 0, 0, 6.0)
    assert end_all(supervisor)[-1] == Finish("Complete", "stopped by the script", final=True)


def test_the_master_reports_that_the_job_failed():
    supervisor = running(trainers=1)
    assert do(supervisor.progressed("Failed", "poisoned sample", 3, 1.0, joins=1, trainers=1)) == [
        Signal(TRAINER, 0, signal.SIGTERM)
    ]
    assert do(supervisor.exited(SERVER, 0, -9, 1.5)) == []
    assert end_all(supervisor)[-1] == Finish("Failed", "poisoned sample", final=True)


def test_an_interrupt_drains_in_order_and_the_second_kills():
    supervisor = running(trainers=1)
    assert do(supervisor.interrupt(1.0)) == [Signal(TRAINER, 0, signal.SIGTERM)]
    assert do(supervisor.exited(SERVER, 0, -9, 1.2)) == [Start(SERVER, 0)]
    assert do(supervisor.exited(TRAINER, 0, 0, 2.0)) == [Signal(SERVER, 0, signal.SIGTERM)]
    assert {action.number for action in do(supervisor.interrupt(2.5))} == {signal.SIGKILL}
    assert end_all(supervisor)[-1] == Finish("Stopped", "", final=False)


def test_the_deadline():
    supervisor = running(trainers=1, deadline_seconds=30)
    assert do(supervisor.tick(29.0)) == []
    assert do(supervisor.tick(30.0)) == [Signal(TRAINER, 0, signal.SIGTERM)]
    assert "activeDeadlineSeconds" in end_all(supervisor)[-1].reason


def test_a_repeated_failure_is_printed_in_full_once():
    supervisor, now, printed = running(trainers=1), 0.0, []
    for last_lines in ("KeyError: 'x'", "KeyError: 'x'", "ValueError: y"):
        printed += do(supervisor.exited(TRAINER, 0, 1, now, last_lines=last_lines), PrintLine)
        now += 5.0
        supervisor.tick(now)
    assert [line.text.partition(";")[0] for line in printed] == [
        "trainer-0: the script failed (exit code 1: KeyError: 'x')",
        "trainer-0: the script failed in the same way",
        "trainer-0: the script failed (exit code 1: ValueError: y)",
    ]


def test_exits_are_printed_for_users():
    printed = do(running().exited(TRAINER, 1, 1, 5.0, last_lines="Traceback\nKeyError: 'x'"), PrintLine)
    assert printed == [
        PrintLine(
            "warning",
            "trainer-1: the script failed (exit code 1: KeyError: 'x'); "
            "again in 1 s (failures in a row: 1; the job fails at 7)",
        )
    ]


class World:
    """Simulated processes that obey signals; the supervisor's invariants are checked at each step."""

    def __init__(self, settings):
        self.supervisor = Supervisor(settings)
        self.alive = set()
        self.dying = {}
        self.finish = None

    def carry_out(self, actions):
        for action in actions:
            assert self.finish is None, "nothing follows the end"
            match action:
                case Start(role, index):
                    assert (role, index) not in self.alive, "two of one role and index"
                    self.alive.add((role, index))
                case Signal(role, index, number):
                    assert (role, index) in self.alive, "a signal to a process that does not run"
                    self.dying[role, index] = number
                case Finish():
                    assert not self.alive, "a process is left running"
                    self.finish = action
        assert set(self.supervisor.alive) == self.alive
        assert not self.alive & set(self.supervisor.pending)
        if not self.supervisor.is_ending:
            active = [role for (role, _), draining in self.supervisor.alive.items() if not draining]
            active += [role for role, _ in self.supervisor.pending]
            assert active.count(TRAINER) == self.supervisor.desired
            assert active.count(MASTER) == 1

    def exit(self, place, code, now):
        self.alive.discard(place)
        self.dying.pop(place, None)
        self.carry_out(self.supervisor.exited(*place, code, now))


EVENTS = st.one_of(
    st.tuples(st.just("exit"), st.integers(0, 30), st.sampled_from([0, 1, 2, 74, 75, 137, -9, -15, -11])),
    st.tuples(st.just("obey"), st.integers(0, 30), st.just(0)),
    st.tuples(st.just("scale"), st.integers(1, 5), st.just(0)),
    st.tuples(st.just("samples"), st.integers(1, 5), st.just(0)),
    st.tuples(st.just("wait"), st.integers(0, 15), st.just(0)),
    st.tuples(st.sampled_from(["complete", "failed", "interrupt", "refusal"]), st.integers(0, 30), st.just(0)),
)


@examples(300)
@given(
    events=st.lists(EVENTS, max_size=40),
    trainers=st.integers(1, 4),
    servers=st.integers(1, 3),
    own_etcd=st.booleans(),
    limit=st.integers(0, 5),
)
def test_never_two_of_one_place_and_nothing_left_in_the_end(events, trainers, servers, own_etcd, limit):
    world = World(RunSettings(trainers=trainers, servers=servers, own_etcd=own_etcd, backoff_limit=limit))
    now, samples = 0.0, 0
    world.carry_out(world.supervisor.begin(now))
    for kind, number, code in events:
        if world.finish is not None:
            return
        now += 0.3
        places = sorted(world.alive)
        if kind in {"exit", "refusal"} and places:
            world.exit(places[number % len(places)], code if kind == "exit" else 78, now)
        elif kind == "obey" and world.dying:
            place = sorted(world.dying)[number % len(world.dying)]
            world.exit(place, 0 if world.dying[place] == signal.SIGTERM else -9, now)
        elif kind == "scale":
            world.carry_out(world.supervisor.scale(number, now))
        elif kind in {"samples", "complete", "failed"}:
            samples += number
            state = {"samples": "Running", "complete": "Complete", "failed": "Failed"}[kind]
            world.carry_out(world.supervisor.progressed(state, "", samples, now, joins=1, trainers=1))
        elif kind == "wait":
            now += number
            world.carry_out(world.supervisor.tick(now))
        elif kind == "interrupt":
            world.carry_out(world.supervisor.interrupt(now))
    world.carry_out(world.supervisor.interrupt(now))
    for _ in range(200):
        if world.finish is not None:
            break
        now += 20.0
        for place in sorted(world.dying):
            if world.finish is None and place in world.dying:
                world.exit(place, 0, now)
        if world.finish is None:
            world.carry_out(world.supervisor.tick(now))
    assert world.finish is not None
