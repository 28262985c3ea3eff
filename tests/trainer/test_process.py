"""What a trainer changes in the script's process (signal handlers, the exception hook), and that forked children undo it."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import sys
import threading

import pytest

from shoal.trainer.process import ProcessWatch, check_main_thread, take_place
from shoal.trainer.refusal import Refused


@pytest.fixture
def before():
    handler, hook = signal.getsignal(signal.SIGTERM), sys.excepthook
    yield
    signal.signal(signal.SIGTERM, handler)
    sys.excepthook = hook


@pytest.fixture
def watch(before):
    made = []

    def make():
        watch = ProcessWatch(drain=lambda: calls.append("drain"), failed=calls.append, leave=lambda: None)
        made.append(watch)
        return watch, calls

    calls = []
    yield make
    for watch in made:
        atexit.unregister(watch._leave)
        if watch._place is not None:
            watch._place.close()


def in_a_child(act):
    """Call `act` in a forked child; return its result as text."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writing, str(act()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text


def test_only_the_main_thread_may_join():
    check_main_thread()
    caught = []

    def run():
        try:
            check_main_thread()
        except Refused as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert (caught[0].code, "called in a thread" in caught[0].reason) == (78, True)


def test_an_identity_is_reserved_by_one_process_until_it_is_released():
    held = take_place("a-job", 3)
    with pytest.raises(Refused, match="trainer 3 of this job is a living process already"):
        take_place("a-job", 3)
    take_place("a-job", 4).close()
    take_place("another-job", 3).close()
    held.close()
    take_place("a-job", 3).close()


def test_a_forked_child_does_not_keep_the_reservation_after_the_trainer_released_it(watch):
    made, _ = watch()
    made.hold(take_place("forked", 0))
    notified, wait = os.pipe()
    ready, notify = os.pipe()
    child = os.fork()
    if not child:
        os.write(notify, b"x")
        os.close(wait)
        os.read(notified, 1)
        os._exit(0)
    try:
        os.read(ready, 1)
        made._place.close()
        take_place("forked", 0).close()
    finally:
        for end in (wait, notified, ready, notify):
            os.close(end)
        os.waitpid(child, 0)


def test_sigterm_drains_and_then_runs_what_the_script_installed_before(watch):
    order = []
    signal.signal(signal.SIGTERM, lambda *_: order.append("script"))
    _, calls = watch()
    signal.raise_signal(signal.SIGTERM)
    assert (calls, order) == (["drain"], ["script"])


def test_sigterm_without_a_handler_of_the_script_only_drains(watch):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _, calls = watch()
    signal.raise_signal(signal.SIGTERM)
    assert calls == ["drain"]


def test_a_handler_that_the_script_installs_later_runs_after_the_drain(watch):
    order = []
    made, calls = watch()
    signal.signal(signal.SIGTERM, lambda *_: order.append("script"))
    made.renew()
    made.renew()
    signal.raise_signal(signal.SIGTERM)
    assert (calls, order) == (["drain"], ["script"])


def test_handlers_that_call_the_one_before_them_run_each_once(watch):
    first = []
    signal.signal(signal.SIGTERM, lambda *_: first.append("first"))
    made, calls = watch()
    inner = signal.getsignal(signal.SIGTERM)
    order = []

    def handler(number, frame):
        order.append("script")
        inner(number, frame)

    signal.signal(signal.SIGTERM, handler)
    made.renew()
    signal.raise_signal(signal.SIGTERM)
    assert set(calls) == {"drain"}
    assert (order, first) == (["script"], ["first"])


def test_an_error_that_ends_the_script_is_reported_and_shown_and_an_interrupt_is_no_error(watch):
    shown = []
    sys.excepthook = lambda kind, error, trace: shown.append(error)
    _, calls = watch()
    error, interrupt = ValueError("broken"), KeyboardInterrupt()
    sys.excepthook(ValueError, error, None)
    sys.excepthook(KeyboardInterrupt, interrupt, None)
    assert (calls, shown) == ([error], [error, interrupt])


def test_a_forked_child_has_the_signals_and_the_hook_of_before(watch):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    hook = sys.excepthook
    watch()
    assert in_a_child(lambda: signal.getsignal(signal.SIGTERM) is signal.SIG_DFL) == "True"
    assert in_a_child(lambda: sys.excepthook is hook) == "True"


def test_a_forked_child_has_the_scripts_own_handler(watch):
    def own(*_):
        pass

    signal.signal(signal.SIGTERM, own)
    watch()
    assert in_a_child(lambda: signal.getsignal(signal.SIGTERM) is own) == "True"


def test_a_handler_that_the_script_installed_afterwards_is_kept_in_a_child(watch):
    watch()

    def own(*_):
        pass

    signal.signal(signal.SIGTERM, own)
    assert in_a_child(lambda: signal.getsignal(signal.SIGTERM) is own) == "True"


def sleeps(notified, begun):
    begun.send(1)
    notified.recv()


def test_a_daemon_process_ends_by_sigterm(watch):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    watch()
    context = multiprocessing.get_context("fork")
    notified, _keeps_it_open = context.Pipe(duplex=False)
    begins, begun = context.Pipe(duplex=False)
    process = context.Process(target=sleeps, args=(notified, begun), daemon=True)
    process.start()
    begins.recv()
    process.terminate()
    process.join(60)
    assert process.exitcode == -signal.SIGTERM


def test_a_refusal_ends_the_process_with_its_code_and_is_no_exception(capsys):
    def swallows():
        with contextlib.suppress(Exception):
            raise Refused("parameter fc.weight: do something else")

    with pytest.raises(SystemExit) as caught:
        swallows()
    assert (caught.value.code, str(caught.value)) == (78, "parameter fc.weight: do something else")
    assert capsys.readouterr().err == "error: parameter fc.weight: do something else\n"
