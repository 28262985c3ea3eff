"""Blocking calls, each in a daemon thread of its own.

The loop's own pool has few threads, and calls that wait for an etcd that is away fill it; and a process that is to end
waits for all of that pool.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["aside"]

Answer = TypeVar("Answer")


async def aside(work: Callable[[], Answer]) -> Answer:
    """What the call returns or raises. Cancelled, it goes on in its thread, and nobody hears of it."""
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

    threading.Thread(target=run, name="aside", daemon=True).start()
    return await done
