"""`shoal exec`: the first process of a container.

Python as process 1 ignores SIGTERM until a handler stands, which takes seconds where torch is imported; and orphans of
process 1 are nobody's. This one blocks signals before anything else, starts the command in a process group of its own,
passes signals on to the whole group (a shell in between passes none on), and reaps whoever ends. Told to end, it waits for
all of the group, also where the shell in front of a script is gone first.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from shoal.cli.errors import CommandError

__all__ = ["run_command"]

NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127
_PR_SET_CHILD_SUBREAPER: Final = 36
_PASSED_ON: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGCONT,
)
_ENDING: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})


def run_command(command: Sequence[str]) -> int:
    """Run a command as its parent and init; its exit code, 128 + N where signal N ended it.

    Raises:
        CommandError: There is no such program, or it cannot be run.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {*_PASSED_ON, signal.SIGCHLD})
    path = shutil.which(command[0])
    if path is None:
        raise CommandError(f"{command[0]}: no such program on the PATH", code=NOT_FOUND)
    # Orphans of the command come to us also where we are not process 1.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        child = os.posix_spawn(path, list(command), os.environ, setpgroup=0, setsigmask=[])
    except OSError as error:
        raise CommandError(f"{command[0]}: {(error.strerror or str(error)).lower()}", code=NOT_EXECUTABLE) from None
    return _wait(child)


def _wait(child: int) -> int:
    """Pass signals on and reap, until the command has ended (once told to end: until all of its group have)."""
    code: int | None = None
    ending = False
    while True:
        received = signal.sigwait({*_PASSED_ON, signal.SIGCHLD})
        if received != signal.SIGCHLD:
            ending = ending or received in _ENDING
            with suppress(ProcessLookupError):
                os.killpg(child, received)
        ended, others = _reap(child)
        code = ended if ended is not None else code
        if code is not None and not (ending and others):
            return code


def _reap(child: int) -> tuple[int | None, bool]:
    """Collect whoever has ended: the command's exit code if it is among them, and whether any process is left."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code, False
        if pid == 0:
            return code, True
        if pid == child:
            found = os.waitstatus_to_exitcode(status)
            code = found if found >= 0 else 128 - found
