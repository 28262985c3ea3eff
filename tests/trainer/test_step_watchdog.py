"""The step watchdog: which time counts toward the limit, and what the limit is."""

from __future__ import annotations

import threading

from shoal.protocol.environment import LONG_FACTOR
from shoal.trainer.step_watchdog import StepClock, StepWatchdog


def test_the_first_batch_and_what_is_no_batch_have_more_time():
    clock = StepClock(0.0)
    assert clock.limit(10.0) == 10.0 * LONG_FACTOR
    clock.begin("in batch 0", 5.0, long=False)
    assert (clock.limit(10.0), clock.seconds(7.0), clock.activity) == (10.0, 2.0, "in batch 0")


def test_time_that_is_not_the_scripts_does_not_count():
    clock = StepClock(0.0)
    clock.begin(lambda: "in batch 1", 0.0, long=False)
    clock.exclude(100.0)
    assert clock.seconds(103.0) == 3.0
    clock.record_progress(200.0)
    assert (clock.seconds(201.0), clock.activity) == (1.0, "in batch 1")


def watch(warned):
    def hung(*_):
        raise AssertionError("nothing hangs here")

    return StepWatchdog(lambda: 1e6, warn=warned.append, hung=hung)


def test_after_an_evaluation_the_earlier_activity_continues_with_a_new_clock():
    made = watch([])
    made.batch(lambda: "in batch 3")
    with made.activity("in job.evaluate"):
        assert made._clock.activity == "in job.evaluate"
        assert made._clock.limit(1.0) == LONG_FACTOR
    assert made._clock.activity == "in batch 3"
    made.batch_over()
    made.batch(lambda: "in batch 4")
    assert made._clock.limit(1.0) == 1.0


def test_a_stopped_watchdog_does_not_end_the_process():
    made = watch([])
    made.start()
    made.stop()
    assert all(thread.name != "shoal-steps" for thread in threading.enumerate())


def test_a_failing_sampler_does_not_prevent_the_report():
    def failing_description():
        raise KeyError("the script's sampler")

    clock = StepClock(0.0)
    clock.begin(failing_description, 0.0, long=False)
    assert clock.activity == 'in batch ? (KeyError("the script\'s sampler"))'
