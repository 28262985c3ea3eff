"""Output of `shoal run` as plain lines; the live table is in ``live``.

A view never ends a job: after an error of the terminal or pipe it prints nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TextIO

from shoal.local.view.formatting import progress_line
from shoal.local.view.status import RunStatus

__all__ = ["PlainView", "ProgressView", "QuietView", "event_line"]

LINE_SECONDS: Final = 2.0


class ProgressView:
    """Base class of the views of a job."""

    def show(self, status: RunStatus) -> None:
        """Show the present status; called about every 0.5 s and after each progress report."""

    def print_event(self, level: str, text: str) -> None:
        """Show a message; ``level`` is ``info``, ``warning`` or ``error``."""

    def close(self) -> None:
        """Close the view; the job has ended."""


class QuietView(ProgressView):
    """Shows errors only.

    Args:
        stream: Stream to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def print_event(self, level: str, text: str) -> None:
        """Show an error."""
        if level == "error":
            _write(self._stream, event_line(level, text))


class PlainView(ProgressView):
    """Prints one line per event, and a progress line every two seconds at most.

    Args:
        stream: Stream to write to.
        clock: Monotonic clock. Seconds. Default: `time.monotonic`.
    """

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._next = 0.0
        self._last = ""

    def show(self, status: RunStatus) -> None:
        """Print a progress line if it has changed and the last one is at least two seconds old."""
        now = self._clock()
        if now < self._next:
            return
        line = progress_line(status)
        if line != self._last:
            self._last = line
            self._next = now + LINE_SECONDS
            _write(self._stream, line)

    def print_event(self, level: str, text: str) -> None:
        """Print a message as one line."""
        _write(self._stream, event_line(level, text))


def event_line(level: str, text: str) -> str:
    """Format a message: ``12:34:56 warning: text``; the level ``info`` is left out."""
    head = f"{level}: " if level != "info" else ""
    return f"{time.strftime('%H:%M:%S')} {head}{text}"


def _write(stream: TextIO, line: str) -> None:
    try:
        stream.write(line + "\n")
        stream.flush()
    except (OSError, ValueError):
        return
