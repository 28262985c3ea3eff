"""Writes the last plan to a ConfigMap beside the Lease, for people. Each write costs its size in the API server's etcd."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import msgspec

from shoal.api.plan import PLAN_KEY, PLAN_NAME, Plan, PlannedClaim, PlannedJob
from shoal.kube import KubeError
from shoal.operator.status.reasons import clipped

__all__ = ["MOST_BYTES", "PlanWriter", "shortened"]

MOST_BYTES: Final = 256 * 1024
_MOST_FOR_CLAIMS: Final = 64 * 1024
_REST_BYTES: Final = 8 * 1024
"""For all parts except jobs and claims."""
_LONGEST_MESSAGE: Final = 1000
_PAUSE_SECONDS: Final = 5.0

log = logging.getLogger("shoal.operator")
Each = TypeVar("Each", PlannedJob, PlannedClaim)


class PlanWriter:
    """Writes the last plan when its content has changed, and at most once per `pause_seconds`.

    Args:
        apply: Applies a manifest.
        namespace: Namespace of the ConfigMap. Empty: nothing is written.
        pause_seconds: Shortest time between two writes, in seconds. Default: 5.
    """

    def __init__(
        self,
        apply: Callable[[dict[str, Any]], Awaitable[object]],
        *,
        namespace: str,
        pause_seconds: float = _PAUSE_SECONDS,
    ) -> None:
        self._apply = apply
        self._namespace = namespace
        self._pause = pause_seconds
        self._plan: Plan | None = None
        self._planned = asyncio.Event()

    def planned(self, plan: Plan) -> None:
        """Take a new plan."""
        self._plan = plan
        self._planned.set()

    async def run(self) -> None:
        """Write plans until cancelled."""
        written: Plan | None = None
        while self._namespace:
            await self._planned.wait()
            self._planned.clear()
            assert self._plan is not None
            short = shortened(self._plan)
            timeless = msgspec.structs.replace(short, time="", seconds=0.0)
            if timeless == written:
                continue
            metadata = {"name": PLAN_NAME, "namespace": self._namespace}
            text = msgspec.json.encode(short).decode()
            try:
                await self._apply(
                    {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {PLAN_KEY: text}}
                )
            except KubeError as error:
                log.warning("the plan cannot be written: %s", error)
            else:
                written = timeless
            await asyncio.sleep(self._pause)


def shortened(plan: Plan) -> Plan:
    """Return a plan that has at most `MOST_BYTES` as JSON: items beyond that are cut from the end of their list, and counted."""
    claims = _within(plan.claims, _MOST_FOR_CLAIMS)
    size = sum(len(msgspec.json.encode(each)) + 1 for each in claims)
    jobs = _within(plan.jobs, MOST_BYTES - _REST_BYTES - size)
    return msgspec.structs.replace(
        plan,
        problem=clipped(plan.problem, _LONGEST_MESSAGE),
        jobs=jobs,
        claims=claims,
        jobs_left_out=len(plan.jobs) - len(jobs),
        claims_left_out=len(plan.claims) - len(claims),
    )


def _within(items: Sequence[Each], most: int) -> list[Each]:
    """Return as many of the first items as fit into so many bytes of JSON."""
    size = 0
    for number, each in enumerate(items):
        size += len(msgspec.json.encode(each)) + 1
        if size > most:
            return list(items[:number])
    return list(items)
