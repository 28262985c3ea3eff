"""What does the operator cost when a thousand jobs run and nothing happens?

A thousand jobs of one trainer, one parameter server and a master run on a real control plane with 133 hollow nodes: 3,000
hollow pods. The masters are a stand-in: each has written one record that says that all are here and why nothing moves, and
never writes again. When the cluster is at rest the operator's CPU time is taken over 60 s, as a share of one core.

What an operator does without any news:

| what | how often | why |
|---|---|---|
| the watches' thread gives a sign of life | 5 a second | one that hangs is seen by /healthz |
| etcd is asked whether it answers | each 10 s | else nothing would be said of an etcd that is away |
| the API server's bookmarks | 10 kinds, each minute | so that a watch goes on where it was |
| everything is listed and compared with what is known | each 300 s | deletions that no watch has told |
| etcd is swept | each 300 s | keys of jobs that went while no operator ran |

The last two may or may not fall into these 60 s: what was listed meanwhile is told, and what else was counted. One that acts
under a Lease renews it beside, each few seconds; this one has none.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import Any

from benchmarks.common import Row, at_most, main, plain
from benchmarks.hollow import JOBS, HollowCluster, job_manifest
from benchmarks.operators import say

SIZE = int(os.environ.get("BENCH_JOBS", "1000"))
SECONDS = 60.0
NAMESPACE = "idle"
SECONDS_TO_START = 600.0


async def _started(cluster: HollowCluster) -> None:
    await cluster.make_namespace(NAMESPACE)
    cluster.operator.start()
    with say(f"{SIZE} jobs are created, and run"):
        jobs = [job_manifest(f"i{number}", NAMESPACE, trainers=1, most=1, servers=1) for number in range(SIZE)]
        await cluster.api.create(f"{JOBS}/namespaces/{NAMESPACE}/trainingjobs", *jobs)
        await cluster.publish(NAMESPACE, trainers=1, servers=1)
        await cluster.until(lambda: _run(cluster), "all jobs to run", seconds=SECONDS_TO_START)
    # By its kubelets' word, too.
    await cluster.all_run(3 * SIZE, namespace=NAMESPACE)
    await cluster.rest()


async def _run(cluster: HollowCluster) -> bool:
    """Whether the operator says that all jobs run; asking for all pods again and again would delay them."""
    await asyncio.sleep(2.0)
    running = cluster.operator.metrics().get("shoal_jobs/Running", 0.0)
    print(f" {running:.0f}", end="", flush=True)
    return running == SIZE


async def _measured(cluster: HollowCluster) -> tuple[list[Row], Any]:
    await _started(cluster)
    with say(f"{SECONDS:g} s without news"):
        before, began = cluster.operator.metrics(), cluster.operator.cpu()
        await asyncio.sleep(SECONDS)
        used, after = cluster.operator.cpu() - began, cluster.operator.metrics()
    states = {name: value for name, value in after.items() if name.startswith("shoal_jobs")}
    assert states == {"shoal_jobs/Running": SIZE}, states
    counted = {
        name: value - before.get(name, 0.0)
        for name, value in after.items()
        if name.startswith("shoal_operator") and value != before.get(name, 0.0)
    }
    print(f"   counted meanwhile: {counted or 'nothing'}", flush=True)
    share, memory = 100 * used / SECONDS, cluster.operator.peak_megabytes()
    rows = [
        at_most(f"operator's CPU with {SIZE} jobs and no news", [share], "% of a core", goal=2),
        plain(f"operator's peak memory with {SIZE} jobs", [memory], "MB"),
    ]
    # An interval of one measurement says nothing.
    return [replace(row, interval=None) for row in rows], {"share": share, "megabytes": memory, "counted": counted}


async def _all() -> tuple[list[Row], Any]:
    async with HollowCluster() as cluster:
        return await _measured(cluster)


if __name__ == "__main__":
    main("operator_idle", lambda: asyncio.run(_all()))
