"""Measures the operator's memory with ten thousand pods.

On a real control plane with 133 hollow nodes run 100 jobs of 40 trainers, 4 parameter servers and a master (4,500 pods), and
5,500 foreign pods, such as web servers. The operator runs with the autoscaler, which watches all pods. When all pods run and
the cluster is at rest, the operator's peak (VmHWM) and present resident memory (VmRSS) are read.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import Any

from benchmarks.common import Row, main, plain
from benchmarks.hollow import JOBS, HollowCluster, job_manifest
from benchmarks.operators import say

SIZE = int(os.environ.get("BENCH_JOBS", "100"))
FOREIGN = 55 * SIZE
TRAINERS, SERVERS = 40, 4
NAMESPACE = "memory"
SECONDS_TO_START = 600.0


async def _foreign(cluster: HollowCluster) -> None:
    requests = {"cpu": "10m", "memory": "16Mi"}
    containers = [{"name": "web", "image": "example.org/web:1", "resources": {"requests": requests}}]
    pods = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"web-{number}", "labels": {"app": "web"}},
            "spec": {"containers": containers},
        }
        for number in range(FOREIGN)
    ]
    await cluster.api.create(f"/api/v1/namespaces/{NAMESPACE}/pods", *pods)


def _job(number: int) -> dict[str, Any]:
    made = job_manifest(f"j{number}", NAMESPACE, trainers=TRAINERS, most=TRAINERS, servers=SERVERS)
    made["spec"]["trainer"]["resources"] = {"requests": {"cpu": "100m", "memory": "64Mi"}}
    return made


async def _measured() -> tuple[list[Row], Any]:
    async with HollowCluster() as cluster:
        cluster.rank_pods(autoscaler=True)
        await cluster.make_namespace(NAMESPACE)
        cluster.operator.start()
        pods = FOREIGN + SIZE * (TRAINERS + SERVERS + 1)
        with say(f"{pods} pods are created, and run"):
            await _foreign(cluster)
            await cluster.api.create(f"{JOBS}/namespaces/{NAMESPACE}/trainingjobs", *map(_job, range(SIZE)))
            await cluster.publish(NAMESPACE, trainers=TRAINERS, servers=SERVERS)
            await cluster.all_run(pods, namespace=NAMESPACE, seconds=SECONDS_TO_START)
        await cluster.rest()
        peak, now = cluster.operator.peak_megabytes(), cluster.operator.megabytes()
        planned = cluster.operator.metrics()
        plans = {name: value for name, value in planned.items() if name.startswith("shoal_autoscaler")}
    rows = [
        plain(f"operator's peak memory with {pods} pods, {SIZE} jobs, the autoscaler on", [peak], "MB"),
        plain("the same when all is at rest", [now], "MB"),
    ]
    # There is no interval for a single measurement.
    return [replace(row, interval=None) for row in rows], {"peak": peak, "at_rest": now, "autoscaler": plans}


if __name__ == "__main__":
    main("operator_memory", lambda: asyncio.run(_measured()))
