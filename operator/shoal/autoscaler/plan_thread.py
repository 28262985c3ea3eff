"""A computation in a thread beside the event loop: a plan of thousands of jobs takes longer than a Lease's renewal can wait."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["computed"]

Answer = TypeVar("Answer")


async def computed(work: Callable[[], Answer], *, name: str) -> Answer:
    """Run a call in a daemon thread of its own; return its result or raise its exception.

    If the awaiting task is cancelled, the thread goes on and its result is dropped. The interpreter switches to the event
    loop within 5 ms whenever the event loop has something to do.

    Args:
        work: The call. The objects that it reads must not be changed while it runs.
        name: Name of the thread.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Answer] = loop.create_future()

    def finish(answer: Answer | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(answer)  # type: ignore[arg-type]

    def run() -> None:
        answer, failed = None, None
        try:
            answer = work()
        except BaseException as error:  # noqa: BLE001 - it is raised in the awaiting task
            failed = error
        # The event loop may be closed by now.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(finish, answer, failed)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await done
