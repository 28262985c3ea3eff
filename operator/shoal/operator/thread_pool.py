"""Runs blocking calls in a bounded pool of daemon threads: calls to etcd, each of which has a timeout of some seconds.

The standard library's pools are not used: a process that exits waits for their threads, and an unreachable etcd blocks each
thread for the timeout of its call.

**The queue is bounded by construction.** There is one sync of a job at a time, and a sync waits for one call at a time; the
garbage collector and the probe of etcd have one call each. So at most as many calls wait as there are jobs, plus two. A call
whose waiter was cancelled is removed from the queue. A call that has waited for `QUEUE_TIMEOUT_SECONDS` fails as if etcd had not
answered, so syncs report that etcd is unreachable even while hanging calls hold all threads.

Calls that must run while all these threads hang (the probe of etcd, and calls at the end of the process) are urgent, and have
their own threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

from shoal.store import StoreUnreachableError

__all__ = ["MOST_THREADS", "QUEUE_TIMEOUT_SECONDS", "URGENT_THREADS", "Blocked", "blocked", "run_in_thread"]

MOST_THREADS: Final = 16
URGENT_THREADS: Final = 2
"""The probe of etcd has one call at a time, the end of the process another."""
QUEUE_TIMEOUT_SECONDS = 30.0
"""How long a call waits for a thread. To add a thousand users to an etcd at once takes longer than one call."""

Answer = TypeVar("Answer")


class Blocked(NamedTuple):
    """Numbers of blocking calls.

    Attributes:
        waiting: Calls that wait for a thread.
        running: Calls that run in a thread.
    """

    waiting: int
    running: int


async def run_in_thread(work: Callable[[], Answer], *, urgent: bool = False) -> Answer:
    """Run a blocking call in a thread; return its result or raise its error.

    A cancelled call that waits is not run; one that runs already goes on, and its result is dropped.

    Args:
        work: The call; it blocks for some seconds at most.
        urgent: Whether to use the threads for urgent calls. Default: no.

    Raises:
        StoreUnreachableError: No thread was free for `QUEUE_TIMEOUT_SECONDS`; the call was not run.
    """
    loop = asyncio.get_running_loop()
    call = _Call(work, loop)
    threads = _urgent if urgent else _ordinary
    threads.add(call)
    timer = loop.call_later(QUEUE_TIMEOUT_SECONDS, threads.time_out, call)
    try:
        return await call.done  # type: ignore[no-any-return]
    finally:
        timer.cancel()
        threads.withdraw(call)


def blocked() -> Blocked:
    """Return the present numbers of calls, urgent ones included."""
    return Blocked(_ordinary.waiting + _urgent.waiting, _ordinary.running + _urgent.running)


class _Call:
    """One call, and the future that its caller awaits."""

    def __init__(self, work: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self._work, self._loop = work, loop
        self.done: asyncio.Future[Any] = loop.create_future()

    def run(self) -> None:
        answer, failed = None, None
        try:
            answer = self._work()
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's coroutine
            failed = error
        # The caller's loop may be closed when the call returns.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._set_result, answer, failed)

    def _set_result(self, answer: object, error: BaseException | None) -> None:
        if self.done.done():
            return
        if error is not None:
            self.done.set_exception(error)
        else:
            self.done.set_result(answer)


class _Threads:
    """A number of daemon threads, started on demand, and the queue of calls."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._condition = threading.Condition()
        self._queue: dict[_Call, None] = {}
        """Waiting calls, oldest first."""
        self._started = 0
        self.running = 0

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def add(self, call: _Call) -> None:
        with self._condition:
            self._queue[call] = None
            if self.running + len(self._queue) > self._started and self._started < self._most:
                self._start_thread(call)
            self._condition.notify()

    def _start_thread(self, call: _Call) -> None:
        """Start one more thread; if the machine has none left, the existing threads run the call."""
        try:
            threading.Thread(target=self._serve, name="blocking-call", daemon=True).start()
        except RuntimeError:
            if not self._started:
                del self._queue[call]
                raise
        else:
            self._started += 1

    def withdraw(self, call: _Call) -> bool:
        """Remove a call that still waits; return whether it did."""
        with self._condition:
            return self._queue.pop(call, call) is None

    def time_out(self, call: _Call) -> None:
        if self.withdraw(call) and not call.done.done():
            message = f"all {self._most} threads have waited for etcd for {QUEUE_TIMEOUT_SECONDS:.0f} s"
            call.done.set_exception(StoreUnreachableError(message))

    def _serve(self) -> None:
        while True:
            with self._condition:
                while not self._queue:
                    self._condition.wait()
                call = next(iter(self._queue))
                del self._queue[call]
                self.running += 1
            try:
                call.run()
            finally:
                with self._condition:
                    self.running -= 1
            del call  # its data may be large, and the next call may come much later


_ordinary, _urgent = _Threads(MOST_THREADS), _Threads(URGENT_THREADS)
