"""Blocking calls, in a few daemon threads: calls to etcd, all of which have a patience of seconds.

Why no pool of the standard library: a process that is to end waits for the threads of those, and an etcd that is away holds
each for as long as its call's patience.

**The queue is bounded by construction.** A look at a job waits for one call at a time and there is one look at a job at a
time, and the sweeper and the pulse have one call each; so no more calls wait than there are jobs and two. A call whose
waiter was cancelled leaves the queue without being run. One that has waited for `PATIENCE_SECONDS` fails as if etcd had not
answered, so a look says that etcd is away although the threads are held by calls that hang.

Calls that must get through while all these threads hang (the question whether etcd answers, and what the end of the process
needs) are urgent, and have threads of their own.
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
"""The pulse has one call at a time, the end of the process another."""
PATIENCE_SECONDS = 30.0
"""For so long a call waits for a thread. A thousand users that are added to an etcd at once take longer than one call."""

Answer = TypeVar("Answer")


class Blocked(NamedTuple):
    """How many calls there are.

    Attributes:
        waiting: For a thread.
        running: In one.
    """

    waiting: int
    running: int


async def run_in_thread(work: Callable[[], Answer], *, urgent: bool = False) -> Answer:
    """What the call returns or raises. Cancelled, it is not run; one that runs already goes on, and its answer is dropped.

    Args:
        work: Blocks, for some seconds at most.
        urgent: It does not wait for the ordinary calls.

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
    """How many calls there are now, urgent ones included."""
    return Blocked(_ordinary.waiting + _urgent.waiting, _ordinary.running + _urgent.running)


class _Call:
    """One call, and the future in its caller's loop."""

    def __init__(self, work: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self._work, self._loop = work, loop
        self.done: asyncio.Future[Any] = loop.create_future()

    def run(self) -> None:
        answer, failed = None, None
        try:
            answer = self._work()
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            failed = error
        # The loop may be gone when this ends.
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
    """So many daemon threads at most, begun when they are needed, and the calls that wait for one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._some = threading.Condition()
        self._line: dict[_Call, None] = {}
        """Oldest first."""
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
        """One thread more; where the machine has none, those that there are serve the call."""
        try:
            threading.Thread(target=self._serve, name="aside", daemon=True).start()
        except RuntimeError:
            if not self._begun:
                del self._line[call]
                raise
        else:
            self._begun += 1

    def withdraw(self, call: _Call) -> bool:
        """Whether the call had not begun; it never will."""
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
            del call  # what it holds may be large, and the next one may come much later


_ordinary, _urgent = _Threads(MOST_THREADS), _Threads(URGENT_THREADS)
