"""Finds a script that comes no further: a batch that does not end, a disk or a GPU that does not answer.

Such a trainer keeps its connection, so nothing else shows it. The clock runs while the script has the thread, and starts anew
with each call of the job's; what Shoal itself waits for is not counted. When the time is over the stacks of all threads are
in the log, the master knows the task, and the process ends by SIGKILL: that is no error of the script's own, but the master
counts it as a try of the task.

A thread of ours cannot look where a call holds the interpreter, or where the whole process stands still. There the kernel's
timers do it (``alarm``), which this thread sets further as long as it runs.
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
"""Without a look of ours: the process was stopped, or the machine slept. That is nothing that the script did."""
_SENT_SECONDS: Final = 0.5
"""For the last message to leave."""
_STACK_LINES: Final = 30


Words = Callable[[], str]
"""Made only when they are wanted."""


class _Step(NamedTuple):
    since: float
    words: str | Words
    long: bool


class StepClock:
    """Since when the script has come no further, and in what. The script's thread sets it, another one reads it."""

    def __init__(self, now: float) -> None:
        self._step = _Step(now, "before its first batch", long=True)

    @property
    def doing(self) -> str:
        """What the script is in."""
        words = self._step.words
        try:
            return words if isinstance(words, str) else words()
        except Exception as error:  # noqa: BLE001 - of the script's sampler, which is asked for the samples
            return f"in batch ? ({error!r})"

    def begin(self, doing: str | Words, now: float, *, long: bool) -> None:
        """Something begins that may take the time of a batch, or ``LONG_FACTOR`` times as long."""
        self._step = _Step(now, doing, long)

    def touch(self, now: float) -> None:
        """The script has come further."""
        self._step = self._step._replace(since=now)

    def forgive(self, seconds: float) -> None:
        """So many seconds were not the script's."""
        self._step = self._step._replace(since=self._step.since + seconds)

    def limit(self, step_seconds: float) -> float:
        """How long the present thing may take, in seconds."""
        return step_seconds * (LONG_FACTOR if self._step.long else 1)

    def seconds(self, now: float) -> float:
        """For how long it has taken by now."""
        return now - self._step.since


class StepWatchdog:
    """Watches the script of this process, from a thread of its own.

    Args:
        step_seconds: Gives how long a batch may take; asked anew each time, as the manifest may change.
        warn: Told what a person should know before it is too late.
        hung: Called with the seconds, what the script was in, and its stack, before the process ends.
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
        self._over = threading.Event()
        self._script = threading.get_ident()
        self._thread = threading.Thread(target=self._run, name="shoal-steps", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self.touch()
        self._thread.start()

    def stop(self) -> None:
        """What the script does from now on is its own business."""
        self._over.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=_LONGEST_PAUSE_SECONDS)

    # --- The script's thread ---

    def touch(self) -> None:
        """The script has come further, or waits for something that is not its own."""
        self._clock.touch(time.monotonic())

    def batch(self, doing: Words) -> None:
        """The data of a batch are being read; the batch itself follows."""
        self._clock.begin(doing, time.monotonic(), long=self._first)

    def batch_over(self) -> None:
        """A batch came to its end: the next one has no caches to fill."""
        self._first = False

    def between(self) -> None:
        """A pass over the loader is through."""
        self._clock.begin("between two passes over the loader", time.monotonic(), long=True)

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Something of its own, after which the script is where it was."""
        before = self._clock
        self._clock = StepClock(time.monotonic())
        self._clock.begin(what, time.monotonic(), long=True)
        try:
            yield
        finally:
            before.touch(time.monotonic())
            self._clock = before

    # --- The watch's own thread ---

    def _run(self) -> None:
        looked = time.monotonic()
        with KernelTimer() as alarm:
            while True:
                clock, step_seconds = self._clock, self._step_seconds()
                limit = clock.limit(step_seconds)
                # Ours comes first where it can.
                alarm.set(limit + _LONGEST_PAUSE_SECONDS)
                if self._over.wait(min(_LONGEST_PAUSE_SECONDS, step_seconds / 10)):
                    return
                now = time.monotonic()
                if now - looked > _GAP_SECONDS:
                    clock.forgive(now - looked)
                looked = now
                seconds = clock.seconds(now)
                if seconds > limit:
                    self._end(clock, seconds)
                    return
                if seconds > limit / 2:
                    self._warn_once(clock, seconds, limit)
                else:
                    self._warned = ""

    def _warn_once(self, clock: StepClock, seconds: float, limit: float) -> None:
        doing = clock.doing
        if self._warned == doing or clock.limit(1.0) == 1.0:
            return  # a batch that is slow once is not worth a word
        self._warned = doing
        self._warn(
            f"the script has been {doing} for {_spoken(seconds)}; at {_spoken(limit)} it is ended and started again "
            f"(spec.runPolicy.stepTimeout is {_spoken(limit / LONG_FACTOR)}, and this may take {LONG_FACTOR} times as long): "
            "raise it, or call job.log in there"
        )

    def _end(self, clock: StepClock, seconds: float) -> None:
        doing = clock.doing
        said = (
            f"--- the script has come no further for {_spoken(seconds)} {doing} (spec.runPolicy.stepTimeout): this "
            "process ends; the stacks of all its threads:\n"
        )
        with suppress(OSError):  # where the script has closed it, only the master is told
            os.write(2, said.encode(errors="replace"))
        faulthandler.dump_traceback(file=2, all_threads=True)
        self._hung(seconds, doing, self._stack())
        if not self._over.wait(_SENT_SECONDS):
            os.kill(os.getpid(), signal.SIGKILL)

    def _stack(self) -> str:
        """Where the script's own thread is, as far as it is Python."""
        frame = sys._current_frames().get(self._script)  # noqa: SLF001 - there is no other way to another thread's stack
        lines = "".join(traceback.format_stack(frame)).splitlines() if frame is not None else []
        return clipped("\n".join(lines[-_STACK_LINES:]))


def _spoken(seconds: float) -> str:
    """``3 s``, ``15 min``."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
