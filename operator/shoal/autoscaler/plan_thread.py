"""A computation beside the event loop: plans of thousands of jobs take longer than a Lease may wait."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["computed"]

Answer = TypeVar("Answer")


async def computed(work: Callable[[], Answer], *, name: str) -> Answer:
    """What the call returns or raises, from a daemon thread of its own. Cancelled, it goes on, and its answer is dropped.

    The interpreter lets the event loop go on within 5 ms each time that it has something to do.

    Args:
        work: Computes. What it reads must not be changed meanwhile.
        name: Of the thread.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Answer] = loop.create_future()

    def tell(answer: Answer | None, error: BaseException | None) -> None:
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
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            failed = error
        # The loop may be gone when this ends.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(tell, answer, failed)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await done
