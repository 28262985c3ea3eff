"""Garbage collection in etcd: removes the keys, users and roles of jobs that were deleted.

There is no finalizer for it, so a job can be deleted while no operator runs. The content of etcd is listed first, and then the
jobs from the API server itself. So everything that was found belongs to a job of that list or to a deleted one: UIDs are never
reused. A later job of the same name has another UID.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from shoal.kube import Kube, KubeError
from shoal.operator.thread_pool import run_in_thread
from shoal.store import ALL_JOBS, Delete, JobKeys, Store, StoreError

__all__ = ["GarbageCollector"]

_EVERY_SECONDS: Final = 300.0
_DELAY_SECONDS: Final = 5.0
"""Wait after a deletion: the job's master may still write, and other jobs may be deleted at the same time."""
_TIMEOUT_SECONDS: Final = 10.0

log = logging.getLogger("shoal.operator")


class GarbageCollector:
    """Collects at intervals, and after each deletion of a job until a collection finds nothing.

    Where jobs have no users in etcd, a master that still runs writes its progress again, once a second.

    Args:
        store: Client of etcd, with all rights.
        kube: Client of the API server.
        namespaces: The served namespaces; keys of others are not touched. Empty: all.
        guarded: Whether jobs have users in etcd.
        every_seconds: Interval, in seconds. Default: 300.
        delay_seconds: Wait after a job was deleted, or after a collection that found something, in seconds. Default: 5.
    """

    def __init__(
        self,
        store: Store,
        kube: Kube,
        *,
        namespaces: Sequence[str] = (),
        guarded: bool,
        every_seconds: float = _EVERY_SECONDS,
        delay_seconds: float = _DELAY_SECONDS,
    ) -> None:
        self._store = store
        self._kube = kube
        self._namespaces = tuple(namespaces)
        self._guarded = guarded
        self._every = every_seconds
        self._delay = delay_seconds
        self._requested = asyncio.Event()
        # Jobs may have been deleted while no operator ran.
        self._requested.set()

    def request_collection(self) -> None:
        """Request a collection, as a job was deleted."""
        self._requested.set()

    async def run(self) -> None:
        """Collect until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every):
                    await self._requested.wait()
            await asyncio.sleep(self._delay)
            self._requested.clear()
            try:
                collected = await self.collect()
            except (KubeError, StoreError) as error:
                log.warning("garbage collection in etcd failed: %s; next attempt in %.0f s", error, self._every)
                continue
            if collected:
                self.request_collection()
            for keys in collected:
                log.info("removed from etcd: %s/%s, uid %s", keys.namespace, keys.name, keys.uid)

    async def collect(self) -> list[JobKeys]:
        """Remove the keys, users and roles of deleted jobs; return these jobs.

        Raises:
            KubeError: The jobs cannot be listed; nothing was removed.
            StoreError: etcd is unreachable or refuses a call.
        """
        found = await run_in_thread(self._found)
        there = {
            JobKeys(job["metadata"]["namespace"], job["metadata"]["name"], job["metadata"]["uid"])
            for namespace in self._namespaces or ("",)
            for job in await self._kube.list("TrainingJob", namespace=namespace)
        }
        deleted = [keys for keys in found if keys not in there and self._serves(keys)]
        for keys in deleted:
            await run_in_thread(partial(self._remove, keys))
        return deleted

    def _serves(self, keys: JobKeys) -> bool:
        return not self._namespaces or keys.namespace in self._namespaces

    def _found(self) -> list[JobKeys]:
        prefixes = self._store.get_groups(ALL_JOBS, parts=3, timeout_seconds=_TIMEOUT_SECONDS)
        found = {parsed[0] for prefix in prefixes if (parsed := JobKeys.parse(prefix)) is not None}
        if self._guarded:
            users = self._store.accounts.within(_TIMEOUT_SECONDS).users()
            found |= {keys for user in users if (keys := JobKeys.of_user(user)) is not None}
        return sorted(found, key=lambda keys: keys.prefix)

    def _remove(self, keys: JobKeys) -> None:
        # The user first: a master that still runs would otherwise write its keys again.
        if self._guarded:
            self._store.accounts.within(_TIMEOUT_SECONDS).remove(keys.user)
        self._store.transact([], [Delete(keys.prefix, prefix=True)], timeout_seconds=_TIMEOUT_SECONDS)
