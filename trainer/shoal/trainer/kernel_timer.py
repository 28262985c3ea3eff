"""Kernel timers that kill this process when no Python code can run any more.

A call into C that holds Python's global interpreter lock blocks every thread, including the one that sends keep-alives; SIGSTOP
stops the whole process. The kernel's clock still runs: its first signal writes the stacks of all threads (faulthandler needs no
interpreter for that), its second one is SIGKILL, which also ends a stopped process. Forked children do not inherit timers.
"""

from __future__ import annotations

import ctypes
import faulthandler
import signal
from typing import Any, Final, Self

__all__ = ["KernelTimer"]

_CLOCK_MONOTONIC: Final = 1
_SIGEV_SIGNAL: Final = 0
_DUMP: Final = signal.SIGRTMIN + 11
"""The real-time signal that dumps the stacks; chosen because neither scripts nor the C library use it."""
_DUMPED_SECONDS: Final = 1.0
"""Time from the dump of the stacks to SIGKILL."""


class _Event(ctypes.Structure):
    """``struct sigevent``, which is 64 bytes long."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_char * 48),
    )


class _Time(ctypes.Structure):
    """``struct itimerspec``."""

    _fields_ = (
        ("interval_seconds", ctypes.c_long),
        ("interval_nanoseconds", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    )


def _library() -> Any:
    """Return the C library that has the timers: librt before glibc 2.34."""
    whole = ctypes.CDLL(None, use_errno=True)
    return whole if hasattr(whole, "timer_create") else ctypes.CDLL("librt.so.1", use_errno=True)


class KernelTimer:
    """Kills the process unless ``set`` is called again in time. No effect if the kernel's timers are not available."""

    def __init__(self) -> None:
        self._timers: list[Any] = []
        self._library: Any = None

    def __enter__(self) -> Self:
        try:
            self._library = _library()
            faulthandler.register(_DUMP, file=2, all_threads=True, chain=False)
            self._timers = [self._new(_DUMP), self._new(signal.SIGKILL)]
        except (OSError, AttributeError, ValueError):
            self._timers = []
        return self

    def __exit__(self, *_: object) -> None:
        for timer in self._timers:
            self._library.timer_delete(timer)

    def _new(self, number: int) -> ctypes.c_void_p:
        event = _Event(value=None, signo=number, notify=_SIGEV_SIGNAL)
        timer = ctypes.c_void_p()
        if self._library.timer_create(_CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)):
            raise OSError(ctypes.get_errno(), "no timer")
        return timer

    def set(self, seconds: float) -> None:
        """Restart the timers: dump the stacks after ``seconds``, and kill the process ``_DUMPED_SECONDS`` later."""
        for number, timer in enumerate(self._timers):
            due = seconds + number * _DUMPED_SECONDS
            when = _Time(0, 0, int(due), int(due % 1 * 1e9))
            self._library.timer_settime(timer, 0, ctypes.byref(when), None)
