"""Nominates nodes for pending pods of others where the planner makes room for them.

The scheduler then waits for who leaves there, and evicts nobody for the same pod. It has to see them leave first, so a
nomination goes out a moment after the plan.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Final

from shoal.autoscaler.loop import Nomination
from shoal.kube import Kube, KubeError, KubeForbiddenError

__all__ = ["Nominator"]

_AFTER_SECONDS: Final = 0.1
_AT_ONCE: Final = 16

log = logging.getLogger("shoal.autoscaler")


class Nominator:
    """Writes them.

    Args:
        kube: The gateway.
    """

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._waiting: dict[str, Nomination] = {}
        self._news = asyncio.Event()
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._forbidden = False

    def nominate(self, nominations: Iterable[Nomination]) -> None:
        """Soon; of one pod the last one counts."""
        self._waiting |= {each.uid: each for each in nominations}
        if self._waiting:
            self._news.set()

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._news.wait()
            await asyncio.sleep(_AFTER_SECONDS)
            self._news.clear()
            waiting, self._waiting = list(self._waiting.values()), {}
            await asyncio.gather(*map(self._one, waiting))

    async def _one(self, nomination: Nomination) -> None:
        status = {"nominatedNodeName": nomination.node}
        async with self._room:
            try:
                await self._kube.set_status("Pod", nomination.name, status, namespace=nomination.namespace)
            except KubeForbiddenError as error:
                if not self._forbidden:
                    log.warning("no node can be nominated, so that pods may be evicted twice for one need: %s", error)
                self._forbidden = True
            except KubeError as error:
                # The next plan nominates again.
                log.info("no node was nominated for %s/%s: %s", nomination.namespace, nomination.name, error)
