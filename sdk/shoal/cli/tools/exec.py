"""`shoal exec`: the first process of a container.

Python as process 1 ignores SIGTERM until a handler is installed, which takes seconds while torch is imported, and it
does not reap orphans. This process blocks signals first, starts the command in its own process group, forwards signals
to the whole group (a shell in between forwards none), and reaps all terminated processes. After a terminating signal it
waits for the whole group, also if the shell in front of a script exits first.
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
    """Run a command as its parent and init; return its exit code, 128 + N after signal N.

    Raises:
        CommandError: The program does not exist (code 127) or cannot be run (code 126).
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {*_PASSED_ON, signal.SIGCHLD})
    path = shutil.which(command[0])
    if path is None:
        raise CommandError(f"{command[0]}: no such program on the PATH", code=NOT_FOUND)
    # This process adopts orphans of the command also if it is not process 1.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        child = os.posix_spawn(path, list(command), os.environ, setpgroup=0, setsigmask=[])
    except OSError as error:
        raise CommandError(f"{command[0]}: {(error.strerror or str(error)).lower()}", code=NOT_EXECUTABLE) from None
    return _wait(child)


def _wait(child: int) -> int:
    """Forward signals and reap until the command has ended; after a terminating signal until its group has ended."""
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
    """Reap terminated processes; return the command's exit code (None: it runs) and whether any process is left."""
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
