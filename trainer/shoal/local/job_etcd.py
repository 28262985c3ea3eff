"""The job's own etcd on the event loop: start, stop, and a callback at its exit."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from shoal.local.etcd_server import EtcdError, EtcdServer
from shoal.protocol.environment import EXIT_REFUSED

__all__ = ["OwnEtcd"]


class OwnEtcd:
    """Runs an etcd for one job.

    Args:
        server: The etcd server.
    """

    def __init__(self, server: EtcdServer) -> None:
        self._server = server
        self._ran = False
        self._started = 0.0
        self._stopping = False
        # Serializes start and stop, which run in threads.
        self._lock = asyncio.Lock()

    @property
    def endpoint(self) -> str:
        """Endpoint of etcd; it does not change between restarts."""
        return self._server.endpoint

    @property
    def pid(self) -> int | None:
        """Process id; None if etcd does not run."""
        return self._server.pid

    @property
    def age(self) -> float:
        """Seconds since its last start."""
        return time.monotonic() - self._started

    async def start(self, on_exit: Callable[[int, str], None]) -> None:
        """Start etcd; returns when it answers.

        Args:
            on_exit: Called once per start with the exit code (negative: the signal) and the last output.
        """
        self._started = time.monotonic()
        try:
            async with self._lock:
                await asyncio.to_thread(self._server.start)
        except EtcdError as error:
            # If etcd never ran and no signal terminated it, it cannot run here. Any other failure may be temporary.
            refused = not self._ran and not self._stopping and not error.signal
            on_exit(EXIT_REFUSED if refused else -error.signal or 1, str(error))
            return
        self._ran = True
        self._watch(on_exit)

    def _watch(self, on_exit: Callable[[int, str], None]) -> None:
        loop = asyncio.get_running_loop()
        pid = self._server.pid
        descriptor = -1
        if pid is not None:
            with suppress(ProcessLookupError):
                descriptor = os.pidfd_open(pid)
        if descriptor < 0:
            loop.call_soon(on_exit, self._code(), "")
            return

        def ended() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            on_exit(self._code(), "")

        loop.add_reader(descriptor, ended)

    def _code(self) -> int:
        # The thread that waits for the process may not have stored the exit code yet.
        code = self._server.wait(5.0)
        return code if code is not None else -signal.SIGKILL

    def answers(self) -> bool:
        """Return whether etcd answers a request now; blocks for two seconds at most."""
        return self._server.answers(timeout_seconds=2.0)

    def kill(self) -> None:
        """Kill etcd (SIGKILL); ``on_exit`` is called."""
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    async def stop(self, *, kill: bool = False) -> None:
        """Stop etcd; does nothing if it does not run."""
        self._stopping = True
        if kill:
            await asyncio.to_thread(self._server.kill)
        async with self._lock:
            await asyncio.to_thread(self._server.stop)
