"""Removes what etcd holds of jobs that are gone: their keys, their users, their roles.

No finalizer does it, so that a job can be deleted while no operator runs. What is in etcd is listed first and the jobs after
that, from the API server itself: whatever was found belongs to a job of that list or to one that is gone for good, as uids do
not come back. A job of the same name is another uid.
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
"""After a job went: its master may have a last word, and others may go at the same time."""
_PATIENCE_SECONDS: Final = 10.0

log = logging.getLogger("shoal.operator")


class GarbageCollector:
    """Sweeps now and then, and soon after a job went, until a sweep finds nothing.

    Where jobs have no users in etcd a master that lives on for a moment writes its progress again, once a second.

    Args:
        store: Etcd, with rights to everything.
        kube: The gateway.
        namespaces: Which are served; none: all. Nothing of others is touched.
        guarded: Whether jobs have users in etcd.
        every_seconds: How often.
        delay_seconds: How long after a job went, or after a sweep that found something.
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
        self._wanted = asyncio.Event()
        # Jobs went while no operator looked.
        self._wanted.set()

    def soon(self) -> None:
        """A job went."""
        self._wanted.set()

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every):
                    await self._wanted.wait()
            await asyncio.sleep(self._delay)
            self._wanted.clear()
            try:
                swept = await self.sweep()
            except (KubeError, StoreError) as error:
                log.warning("etcd is not swept: %s; again in %.0f s", error, self._every)
                continue
            if swept:
                self.soon()
            for keys in swept:
                log.info("swept from etcd: %s/%s, uid %s", keys.namespace, keys.name, keys.uid)

    async def sweep(self) -> list[JobKeys]:
        """Remove what belongs to nobody; gives whose it was.

        Raises:
            KubeError: The jobs cannot be listed; nothing was removed.
            StoreError: Etcd is away or refuses.
        """
        found = await run_in_thread(self._found)
        there = {
            JobKeys(job["metadata"]["namespace"], job["metadata"]["name"], job["metadata"]["uid"])
            for namespace in self._namespaces or ("",)
            for job in await self._kube.list("TrainingJob", namespace=namespace)
        }
        gone = [keys for keys in found if keys not in there and self._serves(keys)]
        for keys in gone:
            await run_in_thread(partial(self._remove, keys))
        return gone

    def _serves(self, keys: JobKeys) -> bool:
        return not self._namespaces or keys.namespace in self._namespaces

    def _found(self) -> list[JobKeys]:
        prefixes = self._store.get_groups(ALL_JOBS, parts=3, patience_seconds=_PATIENCE_SECONDS)
        found = {parsed[0] for prefix in prefixes if (parsed := JobKeys.parse(prefix)) is not None}
        if self._guarded:
            users = self._store.accounts.within(_PATIENCE_SECONDS).users()
            found |= {keys for user in users if (keys := JobKeys.of_user(user)) is not None}
        return sorted(found, key=lambda keys: keys.prefix)

    def _remove(self, keys: JobKeys) -> None:
        # The user first: a master that lives on for a moment would write its keys again.
        if self._guarded:
            self._store.accounts.within(_PATIENCE_SECONDS).remove(keys.user)
        self._store.transact([], [Delete(keys.prefix, prefix=True)], patience_seconds=_PATIENCE_SECONDS)
