"""What `shoal run` shows while it runs: plain lines here, a live table in ``live``.

A view never ends a job: when the terminal or the pipe is gone, it falls silent.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TextIO

from shoal.local.view.formatting import progress_line
from shoal.local.view.status import JobStatus

__all__ = ["PlainView", "ProgressView", "QuietView", "event_line"]

LINE_SECONDS: Final = 2.0


class ProgressView:
    """Something that shows a job."""

    def show(self, status: JobStatus) -> None:
        """How it is now; called often."""

    def tell(self, level: str, text: str) -> None:
        """Something happened; ``level`` is ``info``, ``warning`` or ``error``."""

    def close(self) -> None:
        """The job is over."""


class QuietView(ProgressView):
    """Shows nothing but errors.

    Args:
        stream: Where to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def tell(self, level: str, text: str) -> None:
        """Show an error."""
        if level == "error":
            _write(self._stream, event_line(level, text))


class PlainView(ProgressView):
    """One line per event, and a progress line every two seconds at most.

    Args:
        stream: Where to.
        clock: The time in seconds, monotonic.
    """

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._next = 0.0
        self._last = ""

    def show(self, status: JobStatus) -> None:
        """A progress line, when it is time for one and it says something new."""
        now = self._clock()
        if now < self._next:
            return
        line = progress_line(status)
        if line != self._last:
            self._last = line
            self._next = now + LINE_SECONDS
            _write(self._stream, line)

    def tell(self, level: str, text: str) -> None:
        """A line."""
        _write(self._stream, event_line(level, text))


def event_line(level: str, text: str) -> str:
    """``12:34:56 warning: text``; the level only where it matters."""
    head = f"{level}: " if level != "info" else ""
    return f"{time.strftime('%H:%M:%S')} {head}{text}"


def _write(stream: TextIO, line: str) -> None:
    try:
        stream.write(line + "\n")
        stream.flush()
    except (OSError, ValueError):
        return
