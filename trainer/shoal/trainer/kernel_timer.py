"""Timers of the kernel that end this process where no line of Python can run any more.

A call into C that keeps Python's global interpreter lock stops every thread, the one that keeps the heartbeat too; SIGSTOP
stops the process whole. The kernel's clock runs on: its first signal writes the stacks of all threads (faulthandler does so
without the interpreter), its second one is SIGKILL, which reaches a stopped process as well. Children of a fork have no timers.
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
"""Of the signals without a meaning; any number does that neither a script nor the C library takes."""
_DUMPED_SECONDS: Final = 1.0
"""Between the stacks and the end."""


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
    """The C library; before version 2.34 of glibc timers are in another one."""
    whole = ctypes.CDLL(None, use_errno=True)
    return whole if hasattr(whole, "timer_create") else ctypes.CDLL("librt.so.1", use_errno=True)


class KernelTimer:
    """Ends the process when it is not set anew in time. Without the kernel's timers it does nothing."""

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
        """Write the stacks in so many seconds from now, and end the process a second later."""
        for number, timer in enumerate(self._timers):
            due = seconds + number * _DUMPED_SECONDS
            when = _Time(0, 0, int(due), int(due % 1 * 1e9))
            self._library.timer_settime(timer, 0, ctypes.byref(when), None)
