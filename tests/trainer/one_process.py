"""A whole job in one process: the real master, parameter servers and trainers over real sockets, without etcd."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import shoal.pserver.service
from shoal.master.core import MasterCore
from shoal.master.service import MasterService
from shoal.master.state.job import JobState, MasterSettings
from shoal.master.state.records import Records
from shoal.pserver.service import ServerService
from shoal.trainer.distributed import DistributedJob
from shoal.trainer.engine.engine import Engine
from shoal.transport import auth
from shoal.transport.address import listen

UID = "one-process"


class NoEtcd:
    """Replaces the record log: commits succeed at once and write nothing to etcd."""

    def commit(self, changes: Any, *, everything: Any) -> None: ...

    def close(self) -> None: ...


class Loop(asyncio.SelectorEventLoop):
    """An event loop that installs no signal handlers, as it does not run in the main thread."""

    def add_signal_handler(self, *_: Any) -> None: ...


class OneProcess:
    """A job whose master and parameter servers run in threads of this process.

    Args:
        monkeypatch: The test's fixture; disables the signal handlers of the parameter servers.
        servers: Number of parameter servers.
        epochs: Number of epochs.
        seed: The job's seed.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, servers: int, epochs: int, seed: int) -> None:
        quiet = SimpleNamespace(SIGTERM=0, SIGINT=0, signal=lambda *_: None)
        monkeypatch.setattr(shoal.pserver.service, "signal", quiet)
        # Not in pytest's folder, because the path of a Unix socket has at most 107 bytes.
        folder = self.folder = Path(tempfile.mkdtemp())
        self.address = f"unix://{folder}/master"
        self.token = auth.Token(secrets.token_bytes(32))
        self.epochs, self.seed = epochs, seed
        settings = MasterSettings(
            name="one",
            epochs=epochs,
            seed=seed,
            servers=servers,
            checkpoint_seconds=60,
            checkpoint_keep=2,
            output="",
            lease_seconds=30,
        )
        self.records = Records()
        self.state = JobState(
            settings=settings,
            records=self.records,
            generation=1,
            new_grant=lambda: secrets.randbits(62) + 1,
            now=time.monotonic(),
            clock=time.monotonic,
        )
        self.loop = Loop()
        self.jobs: list[DistributedJob] = []
        self.listening = threading.Event()
        self.threads = [threading.Thread(target=self._master)]
        self.servers = [
            ServerService(
                self.address, identity=self._identity("pserver", i), token=self.token, uid=UID, folder=folder / f"s{i}"
            )
            for i in range(servers)
        ]
        self.threads += [
            threading.Thread(target=server.run, args=([f"unix://{folder}/p{i}"],))
            for i, server in enumerate(self.servers)
        ]
        for thread in self.threads:
            thread.start()
            assert self.listening.wait(10)

    def _identity(self, role: str, index: int) -> auth.Identity:
        return auth.Identity(role=role, index=index, life=auth.new_life())

    def _master(self) -> None:
        async def serve() -> None:
            self.master = MasterService(
                MasterCore(self.state), NoEtcd(), identity=self._identity("master", 0), token=self.token, uid=UID
            )
            await self.master.run(listen(self.address)[0], ready=self.listening.set)

        self.loop.run_until_complete(serve())
        self.loop.close()

    def join(self) -> DistributedJob:
        """Make one more trainer."""
        engine = Engine(
            self.address,
            identity=self._identity("trainer", len(self.jobs)),
            token=self.token,
            uid=UID,
            epochs=self.epochs,
            seed=self.seed,
        )
        self.jobs.append(DistributedJob(engine, epochs=self.epochs, seed=self.seed, folder=self.folder))
        return self.jobs[-1]

    def close(self) -> None:
        for job in self.jobs:
            job._leave()
        for server in self.servers:
            server.stop()
        for thread in self.threads[1:]:
            thread.join(10)
        self.loop.call_soon_threadsafe(self.master._stop.set)
        self.threads[0].join(10)
        shutil.rmtree(self.folder)
        assert not any(thread.is_alive() for thread in self.threads)
