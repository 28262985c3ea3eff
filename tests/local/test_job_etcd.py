"""The local runner's etcd: it is started again after a kill during its start, and fails the job if it cannot run."""

from __future__ import annotations

import asyncio
import signal

from shoal.local.etcd_server import EtcdServer, find_etcd
from shoal.local.job_etcd import OwnEtcd
from shoal.protocol.environment import EXIT_REFUSED
from shoal.store import Store


class Killed(EtcdServer):
    """An etcd whose process gets SIGKILL right after its start, the first `times` times."""

    times = 1

    def _await(self, timeout_seconds):
        if self.times:
            self.times -= 1
            self._signal(signal.SIGKILL)
        super()._await(timeout_seconds)


def test_an_etcd_that_is_killed_at_its_start_is_not_refused(tmp_path):
    own = OwnEtcd(Killed(find_etcd(), tmp_path))
    exits = []

    async def lives():
        await own.start(lambda code, last_lines: exits.append((code, last_lines)))
        await own.start(lambda code, last_lines: exits.append((code, last_lines)))
        await asyncio.to_thread(lambda: Store.connect(own.endpoint, prefix="/").close())
        await own.stop()

    asyncio.run(lives())
    assert exits[0][0] == -signal.SIGKILL
    assert "etcd ended at its start (status -9)" in exits[0][1]


def test_an_etcd_that_cannot_run_ends_the_job(tmp_path):
    database = tmp_path / "data" / "member" / "snap" / "db"
    database.parent.mkdir(parents=True)
    database.write_bytes(b"no database" * 10_000)
    own = OwnEtcd(EtcdServer(find_etcd(), tmp_path))
    exits = []
    asyncio.run(own.start(lambda code, _: exits.append(code)))
    assert exits == [EXIT_REFUSED]
