"""Runs blocking calls in a bounded pool of daemon threads: calls to etcd, each of which has a timeout of some seconds.

The standard library's pools are not used: a process that exits waits for their threads, and an unreachable etcd blocks each
thread for the timeout of its call.

**The queue is bounded by construction.** There is one sync of a job at a time, and a sync waits for one call at a time; the
garbage collector and the probe of etcd have one call each. So at most as many calls wait as there are jobs, plus two. A call
whose waiter was cancelled is removed from the queue. A call that has waited for `PATIENCE_SECONDS` fails as if etcd had not
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

__all__ = ["MOST_THREADS", "PATIENCE_SECONDS", "URGENT_THREADS", "Blocked", "blocked", "run_in_thread"]

MOST_THREADS: Final = 16
URGENT_THREADS: Final = 2
"""The probe of etcd has one call at a time, the end of the process another."""
PATIENCE_SECONDS = 30.0
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
        StoreUnreachableError: No thread was free for `PATIENCE_SECONDS`; the call was not run.
    """
    loop = asyncio.get_running_loop()
    call = _Call(work, loop)
    threads = _urgent if urgent else _ordinary
    threads.add(call)
    timer = loop.call_later(PATIENCE_SECONDS, threads.give_up, call)
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
            self._loop.call_soon_threadsafe(self._tell, answer, failed)

    def _tell(self, answer: object, error: BaseException | None) -> None:
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
        self._some = threading.Condition()
        self._line: dict[_Call, None] = {}
        """Waiting calls, oldest first."""
        self._begun = 0
        self.running = 0

    @property
    def waiting(self) -> int:
        return len(self._line)

    def add(self, call: _Call) -> None:
        with self._some:
            self._line[call] = None
            if self.running + len(self._line) > self._begun and self._begun < self._most:
                self._begin(call)
            self._some.notify()

    def _begin(self, call: _Call) -> None:
        """Start one more thread; if the machine has none left, the existing threads run the call."""
        try:
            threading.Thread(target=self._serve, name="blocking-call", daemon=True).start()
        except RuntimeError:
            if not self._begun:
                del self._line[call]
                raise
        else:
            self._begun += 1

    def withdraw(self, call: _Call) -> bool:
        """Remove a call that still waits; return whether it did."""
        with self._some:
            return self._line.pop(call, call) is None

    def give_up(self, call: _Call) -> None:
        if self.withdraw(call) and not call.done.done():
            words = f"all {self._most} threads have waited for etcd for {PATIENCE_SECONDS:.0f} s"
            call.done.set_exception(StoreUnreachableError(words))

    def _serve(self) -> None:
        while True:
            with self._some:
                while not self._line:
                    self._some.wait()
                call = next(iter(self._line))
                del self._line[call]
                self.running += 1
            try:
                call.run()
            finally:
                with self._some:
                    self.running -= 1
            del call  # its data may be large, and the next call may come much later


_ordinary, _urgent = _Threads(MOST_THREADS), _Threads(URGENT_THREADS)
