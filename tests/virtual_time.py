"""An event loop with a virtual clock: when nothing is left to run, the clock advances to the time of the next timer."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any

__all__ = ["run"]


class _Selector(selectors.DefaultSelector):
    """Never waits, but advances the clock by the time that it was to wait."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if not found:
            if timeout is None:
                raise RuntimeError("the loop waits for something that no timer brings")
            self.now += timeout
        return found


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a test that waits for timers only."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        runner.run(work)
