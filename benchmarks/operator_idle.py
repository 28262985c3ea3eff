"""Measures the CPU usage of an idle operator with a thousand running jobs.

A thousand jobs of one trainer, one parameter server and a master run on a real control plane with 133 hollow nodes: 3,000
hollow pods. A stand-in has written one record for each master, with all members joined and a reason for the standstill, and
writes no more. When the cluster is at rest the operator's CPU time is measured over 60 s, as a share of one core.

An idle operator executes:

| activity | frequency | purpose |
|---|---|---|
| heartbeat of the watches' thread | 5 per second | /healthz detects a hung thread |
| probe of etcd | every 10 s | an unreachable etcd is reported |
| the API server's bookmarks | 10 kinds, every minute | a watch can resume |
| listing of all objects, compared with the cache | every 300 s | deletions that no watch has delivered |
| garbage collection in etcd | every 300 s | keys of jobs that were deleted while no operator ran |

The last two may or may not fall into the 60 s: the changed counters are printed. An operator with leader election also
renews its Lease every few seconds; this one has none.
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
    # Also wait until the kubelets report all pods as running.
    await cluster.all_run(3 * SIZE, namespace=NAMESPACE)
    await cluster.rest()


async def _run(cluster: HollowCluster) -> bool:
    """Return whether the operator reports all jobs as running; repeated lists of all pods would delay them."""
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
    # There is no interval for a single measurement.
    return [replace(row, interval=None) for row in rows], {"share": share, "megabytes": memory, "counted": counted}


async def _all() -> tuple[list[Row], Any]:
    async with HollowCluster() as cluster:
        return await _measured(cluster)


if __name__ == "__main__":
    main("operator_idle", lambda: asyncio.run(_all()))
