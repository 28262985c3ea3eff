"""The format of all logs: ``12:34:56 warning text``, on stderr."""

from __future__ import annotations

import logging
import sys
import time

__all__ = ["Seldom", "set_up"]

SECONDS_BETWEEN_LINES = 30.0


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.levelname = record.levelname.lower()
        return super().format(record)


def set_up() -> None:
    """Write Shoal's log to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    logger = logging.getLogger("shoal")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


class Seldom:
    """Limits a log line to one every 30 s, so that callers without the token cannot fill a disk."""

    def __init__(self) -> None:
        self._times = 0
        self._last_line = float("-inf")

    def count(self) -> int:
        """Count one occurrence; return the number since the last line if a line is due, else 0."""
        self._times += 1
        now = time.monotonic()
        if now - self._last_line < SECONDS_BETWEEN_LINES:
            return 0
        times, self._times, self._last_line = self._times, 0, now
        return times
