"""Run a program of a job whose socket calls fail at random, each with an errno that the kernel can return.

    python tests/faulty.py SEED ONE_IN (-m MODULE | SCRIPT) ARGUMENT...

Calls that carry messages fail: ``sendmsg``, ``recv_into`` and ``recvmsg`` of threads, ``send`` and ``recv`` of the master's
event loop. A call that fails has moved no byte, as in the kernel.
"""

from __future__ import annotations

import errno
import os
import random
import runpy
import socket
import sys
from pathlib import Path
from typing import Any

SEND = (errno.ECONNRESET, errno.EPIPE, errno.ENOBUFS, errno.ENOMEM, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETDOWN,
        errno.ENETUNREACH, errno.EMSGSIZE, errno.EACCES, errno.EAGAIN)  # fmt: skip
RECEIVE = (errno.ECONNRESET, errno.ECONNREFUSED, errno.ENOMEM, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETDOWN,
           errno.EAGAIN)  # fmt: skip


class Faulty:
    """A socket of which one in ``one_in`` calls fails."""

    def __init__(self, real: socket.socket, chance: random.Random, one_in: int) -> None:
        self._real, self._chance, self._one_in = real, chance, one_in

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def _may_fail(self, numbers: tuple[int, ...]) -> None:
        if self._chance.randrange(self._one_in) == 0:
            number = self._chance.choice(numbers)
            raise OSError(number, os.strerror(number))

    def sendmsg(self, *arguments: Any) -> int:
        self._may_fail(SEND)
        return self._real.sendmsg(*arguments)

    def send(self, *arguments: Any) -> int:
        self._may_fail(SEND)
        return self._real.send(*arguments)

    def recv_into(self, *arguments: Any) -> int:
        self._may_fail(RECEIVE)
        return self._real.recv_into(*arguments)

    def recvmsg(self, *arguments: Any) -> Any:
        self._may_fail(RECEIVE)
        return self._real.recvmsg(*arguments)

    def recv(self, *arguments: Any) -> bytes:
        self._may_fail(RECEIVE)
        return self._real.recv(*arguments)


def inject(seed: str, one_in: int) -> None:
    """Make the socket calls of this process fail from now on."""
    from shoal.transport import aio, sync

    chance = random.Random(seed)
    made = sync.BlockingConnection.__init__

    def connection(self: sync.BlockingConnection, stream: socket.socket, *arguments: Any, **named: Any) -> None:
        made(self, stream, *arguments, **named)
        self._stream = Faulty(stream, chance, one_in)  # type: ignore[assignment]

    begun = aio.AsyncConnection.connection_made

    def connection_made(self: aio.AsyncConnection, transport: Any) -> None:
        begun(self, transport)
        transport._sock = Faulty(transport._sock, chance, one_in)

    sync.BlockingConnection.__init__ = connection  # type: ignore[method-assign]
    aio.AsyncConnection.connection_made = connection_made  # type: ignore[method-assign]


def main() -> None:
    _, seed, one_in, kind, *rest = sys.argv
    inject(f"{seed} {os.getpid()}", int(one_in))
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [kind, *rest]
        sys.path.insert(0, str(Path(kind).parent))
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    main()
