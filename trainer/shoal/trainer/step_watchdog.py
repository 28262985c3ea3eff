"""The watchdog of the script: detects a batch that does not end, or a disk or GPU that does not respond.

Such a trainer keeps its connection, so nothing else detects it. The clock runs while the script has the thread, and restarts
with each call of the job; the time in which Shoal itself waits is not counted. At the timeout the stacks of all threads are
written to the log, the task is reported to the master, and the process is ended with SIGKILL. This is not an error of the
script, but the master counts it as an attempt of the task.

The watchdog's thread cannot run while a call holds the interpreter lock or the whole process is stopped. In that case the
kernel's timers (``kernel_timer``) end the process; the thread restarts them as long as it runs.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

from shoal.protocol.environment import LONG_FACTOR
from shoal.protocol.text_limits import clipped
from shoal.trainer.kernel_timer import KernelTimer

__all__ = ["StepClock", "StepWatchdog"]

_LONGEST_PAUSE_SECONDS: Final = 1.0
_GAP_SECONDS: Final = 5.0
"""Interval between two checks above which the process was stopped or the machine suspended; not counted as the script's."""
_SENT_SECONDS: Final = 0.5
"""Time for the last message to be sent."""
_STACK_LINES: Final = 30


Description = Callable[[], str]
"""A description that is formatted only when it is needed."""


class _Step(NamedTuple):
    since: float
    activity: str | Description
    long: bool


class StepClock:
    """The script's current activity and its last progress. Set by the script's thread, read by another thread."""

    def __init__(self, now: float) -> None:
        self._step = _Step(now, "before its first batch", long=True)

    @property
    def activity(self) -> str:
        """Description of the script's current activity."""
        activity = self._step.activity
        try:
            return activity if isinstance(activity, str) else activity()
        except Exception as error:  # noqa: BLE001 - an error of the script's sampler, which is called for the samples
            return f"in batch ? ({error!r})"

    def begin(self, activity: str | Description, now: float, *, long: bool) -> None:
        """Begin an activity.

        Args:
            activity: Its description.
            now: The current time. Seconds, monotonic.
            long: Whether it may take ``LONG_FACTOR`` times as long as a batch.
        """
        self._step = _Step(now, activity, long)

    def record_progress(self, now: float) -> None:
        """Record progress of the script."""
        self._step = self._step._replace(since=now)

    def exclude(self, seconds: float) -> None:
        """Subtract a time during which the script did not run. Seconds."""
        self._step = self._step._replace(since=self._step.since + seconds)

    def limit(self, step_seconds: float) -> float:
        """Return the timeout of the current activity, in seconds."""
        return step_seconds * (LONG_FACTOR if self._step.long else 1)

    def seconds(self, now: float) -> float:
        """Return the time since the last progress, in seconds."""
        return now - self._step.since


class StepWatchdog:
    """Watches the script of this process from a separate thread.

    Args:
        step_seconds: Returns the timeout of a batch in seconds; called at every check, as the manifest may change.
        warn: Called with a warning after half of the timeout of a long activity.
        hung: Called before the process ends, with the seconds without progress, the activity and the stack.
    """

    def __init__(
        self,
        step_seconds: Callable[[], float],
        *,
        warn: Callable[[str], None],
        hung: Callable[[float, str, str], None],
    ) -> None:
        self._step_seconds, self._warn, self._hung = step_seconds, warn, hung
        self._clock = StepClock(time.monotonic())
        self._first = True
        self._warned = ""
        self._stopped = threading.Event()
        self._script = threading.get_ident()
        self._thread = threading.Thread(target=self._run, name="shoal-steps", daemon=True)

    def start(self) -> None:
        """Start the watchdog's thread."""
        self.record_progress()
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=_LONGEST_PAUSE_SECONDS)

    # --- The script's thread ---

    def record_progress(self) -> None:
        """Record progress of the script, or that Shoal waits."""
        self._clock.record_progress(time.monotonic())

    def batch(self, activity: Description) -> None:
        """Begin a batch, with the loading of its data."""
        self._clock.begin(activity, time.monotonic(), long=self._first)

    def batch_over(self) -> None:
        """End a batch; only the first one, which fills caches, has the longer timeout."""
        self._first = False

    def between(self) -> None:
        """End a pass over the loader."""
        self._clock.begin("between two passes over the loader", time.monotonic(), long=True)

    @contextmanager
    def activity(self, what: str) -> Iterator[None]:
        """Run a nested activity; afterwards the previous one continues."""
        before = self._clock
        self._clock = StepClock(time.monotonic())
        self._clock.begin(what, time.monotonic(), long=True)
        try:
            yield
        finally:
            before.record_progress(time.monotonic())
            self._clock = before

    # --- The watchdog's thread ---

    def _run(self) -> None:
        checked = time.monotonic()
        with KernelTimer() as timer:
            while True:
                clock, step_seconds = self._clock, self._step_seconds()
                limit = clock.limit(step_seconds)
                # One second later, so that this thread acts first if it can run.
                timer.set(limit + _LONGEST_PAUSE_SECONDS)
                if self._stopped.wait(min(_LONGEST_PAUSE_SECONDS, step_seconds / 10)):
                    return
                now = time.monotonic()
                if now - checked > _GAP_SECONDS:
                    clock.exclude(now - checked)
                checked = now
                seconds = clock.seconds(now)
                if seconds > limit:
                    self._end(clock, seconds)
                    return
                if seconds > limit / 2:
                    self._warn_once(clock, seconds, limit)
                else:
                    self._warned = ""

    def _warn_once(self, clock: StepClock, seconds: float, limit: float) -> None:
        activity = clock.activity
        if self._warned == activity or clock.limit(1.0) == 1.0:
            return  # a single slow batch needs no warning
        self._warned = activity
        self._warn(
            f"the script has been {activity} for {_duration(seconds)}; at {_duration(limit)} it is ended and restarted "
            f"(spec.runPolicy.stepTimeout is {_duration(limit / LONG_FACTOR)}, and this may take {LONG_FACTOR} times as long): "
            "increase stepTimeout, or call job.log inside it"
        )

    def _end(self, clock: StepClock, seconds: float) -> None:
        activity = clock.activity
        text = (
            f"--- the script has come no further for {_duration(seconds)} {activity} (spec.runPolicy.stepTimeout): this "
            "process ends; the stacks of all its threads:\n"
        )
        with suppress(OSError):  # if the script has closed stderr, only the master receives the report
            os.write(2, text.encode(errors="replace"))
        faulthandler.dump_traceback(file=2, all_threads=True)
        self._hung(seconds, activity, self._stack())
        if not self._stopped.wait(_SENT_SECONDS):
            os.kill(os.getpid(), signal.SIGKILL)

    def _stack(self) -> str:
        """Return the Python stack of the script's thread."""
        frame = sys._current_frames().get(self._script)  # noqa: SLF001 - there is no other way to another thread's stack
        lines = "".join(traceback.format_stack(frame)).splitlines() if frame is not None else []
        return clipped("\n".join(lines[-_STACK_LINES:]))


def _duration(seconds: float) -> str:
    """Return a duration as text: ``3 s``, ``15 min``."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
