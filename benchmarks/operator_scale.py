"""How fast, and how cheap, is the operator with many pods and with many jobs?

Both parts run on a real control plane with 133 hollow nodes (87 of 18 CPUs, 46 of 17, 103 GiB each), on this machine.

1. Twenty jobs of 60 trainers, 10 parameter servers and a master are created at once. Measured is the time from the first
   job's request to the end of the answer that made the 1,200th trainer's pod, both as the API server's audit log has them.
   The reference is a bare client that makes the same 1,200 pods (the same manifests, made by the same functions, owned by
   the same kind of job, whose account exists already) and nothing else: raw JSON over one aiohttp session, 32 requests
   under way, as many as the operator's own limit. No operator runs then. Repeats alternate, each in a namespace of its own,
   with an operator of its own that is ready before; between them everything is removed and the cluster comes to rest.
   What the operator's figures include beside: checking the jobs, their other objects (7 each), their statuses, and what
   controllers, scheduler and kubelets do for the other 220 pods. Of the same runs, until all pods run and the cluster is at
   rest: the operator's peak memory (VmHWM) and its CPU time per event of a pod that came by its watch.

2. A thousand jobs of one trainer, one parameter server and a master run (3,000 hollow pods). The masters are a stand-in:
   each has written one record that says that all are here and why nothing moves, and never writes again. When the cluster
   is at rest the operator's CPU time is taken over 60 s, as a share of one core. What an operator does without any news:
   the watches' sign of life (5 a second), a question to etcd whether it answers (each 10 s), bookmarks of the API server
   (one a minute for each of ten kinds). A comparison of all that is known with a listing (each 300 s) may or may not fall
   into these 60 s; how many listings did is told.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from benchmarks.common import Row, at_least, at_most, main, plain
from benchmarks.hollow import BENCHMARK, JOBS, OPERATOR, Asked, HollowCluster, job_manifest
from benchmarks.operators import say
from shoal.api import from_mapping
from shoal.operator import objects
from shoal.operator.pods import Identity, names, trainer_pod

PARTS = os.environ.get("BENCH_PARTS", "pods,jobs").split(",")
SIZE = int(os.environ.get("BENCH_JOBS", "20"))
TRAINERS, SERVERS = 60, 10
REPEATS = int(os.environ.get("BENCH_REPEATS", "3"))
QUIET_JOBS = int(os.environ.get("BENCH_QUIET_JOBS", "1000"))
QUIET_SECONDS = 60.0
POD_EVENTS = "shoal_operator_watch_events_total/Pod"
LISTINGS = "shoal_operator_api_requests_total/list/"


async def _by_operator(cluster: HollowCluster, namespace: str) -> dict[str, float]:
    """One repeat: seconds until all trainers' pods were there, and what it cost."""
    await cluster.make_namespace(namespace)
    cluster.operator.start()
    await cluster.rest()
    cluster.audit.more()
    before = cluster.operator.metrics()
    began = cluster.cpu()
    with say(f"the operator makes {SIZE * TRAINERS} trainers"):
        jobs = [_manifest(f"j{number}", namespace) for number in range(SIZE)]
        await cluster.api.create(f"{JOBS}/namespaces/{namespace}/trainingjobs", *jobs)
        seen = await cluster.audit.until(lambda found: _made(found, OPERATOR) >= SIZE * TRAINERS, "all trainers")
    first = min(asked.came for asked in seen if asked.user == BENCHMARK and asked.resource == "trainingjobs")
    last = max(asked.answered for asked in seen if asked.made_trainer)
    by_then = _used(began, cluster.cpu())
    with say("all pods start"):
        await cluster.all_run(SIZE * (TRAINERS + SERVERS + 1), namespace=namespace)
    await cluster.rest()
    after = cluster.operator.metrics()
    events = after[POD_EVENTS] - before.get(POD_EVENTS, 0.0)
    found = {
        "seconds": last - first,
        "peak_megabytes": cluster.operator.peak_megabytes(),
        "cpu_seconds": cluster.operator.cpu() - began["operator"],
        "pod_events": events,
        "requests": _requests(after) - _requests(before),
        **by_then,
    }
    _tell(found)
    cluster.operator.stop()
    await cluster.clear(namespace)
    return found


async def _by_bare_client(cluster: HollowCluster, namespace: str) -> dict[str, float]:
    """The same pods by a client that does nothing else."""
    await cluster.make_namespace(namespace)
    made = [_manifest(f"j{number}", namespace) for number in range(SIZE)]
    jobs = await cluster.api.create(f"{JOBS}/namespaces/{namespace}/trainingjobs", *made)
    pods = [pod for job in jobs for pod in _pods(job)]
    accounts = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": f"{job['metadata']['name']}-shoal"}}
        for job in jobs
    ]
    await cluster.api.create(f"/api/v1/namespaces/{namespace}/serviceaccounts", *accounts)
    await cluster.rest()
    cluster.audit.more()
    began = {**cluster.cpu(), "client": time.process_time()}
    with say(f"the bare client makes {len(pods)} trainers"):
        async with await cluster.bare_client() as client:
            await client.create(f"/api/v1/namespaces/{namespace}/pods", *pods)
    seen = [asked for asked in cluster.audit.more() if asked.made_trainer]
    assert len(seen) == len(pods)
    by_then = _used(began, {**cluster.cpu(), "client": time.process_time()})
    found = {"seconds": max(each.answered for each in seen) - min(each.came for each in seen), **by_then}
    _tell(found)
    with say("all pods start"):
        await cluster.all_run(len(pods), namespace=namespace)
    await cluster.clear(namespace)
    return found


def _manifest(name: str, namespace: str) -> dict[str, Any]:
    return job_manifest(name, namespace, trainers=TRAINERS, most=TRAINERS, servers=SERVERS)


def _pods(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The trainers' pods of a job, as the operator makes them."""
    job = from_mapping(manifest)
    identity = Identity(uid=manifest["metadata"]["uid"], etcd="http://127.0.0.1:2379")
    assert names(job)["account"] == f"{job.metadata.name}-shoal"
    pods = [trainer_pod(job, identity, index) for index in range(TRAINERS)]
    for pod in pods:
        pod["metadata"]["ownerReferences"] = [objects.owner(job, identity)]
    return pods


def _used(began: Mapping[str, float], ended: Mapping[str, float]) -> dict[str, float]:
    """Seconds of CPU of each process, until the last of the trainers' pods was made."""
    return {f"cpu_until_made/{name}": ended[name] - before for name, before in began.items()}


def _tell(found: Mapping[str, float]) -> None:
    print("  ", ", ".join(f"{key} {value:.4g}" for key, value in found.items()), flush=True)


def _made(seen: list[Asked], user: str) -> int:
    return sum(asked.made_trainer and asked.user == user for asked in seen)


def _requests(metrics: Mapping[str, float], prefix: str = "shoal_operator_api_requests_total/") -> float:
    return sum(value for name, value in metrics.items() if name.startswith(prefix))


async def _many_pods(cluster: HollowCluster) -> tuple[list[Row], Any]:
    operator, bare = [], []
    for number in range(REPEATS):
        print(f"repeat {number + 1} of {REPEATS}")
        # Neither is always the first: a cluster grows older.
        for by_operator in (True, False) if number % 2 == 0 else (False, True):
            if by_operator:
                operator.append(await _by_operator(cluster, f"operator-{number}"))
            else:
                bare.append(await _by_bare_client(cluster, f"bare-{number}"))
            await cluster.rest()
    pods = SIZE * TRAINERS
    pairs = [(pods / one["seconds"], pods / other["seconds"]) for one, other in zip(operator, bare, strict=True)]
    rows = [
        at_least("trainers' pods/s against a bare client", pairs, "pods/s", goal=0.7),
        plain(f"{SIZE} jobs to {pods} trainers' pods", [each["seconds"] for each in operator], "s"),
        at_most("operator's peak memory", [each["peak_megabytes"] for each in operator], "MB", goal=300),
        plain(
            "operator's CPU per event of a pod",
            [1000 * each["cpu_seconds"] / each["pod_events"] for each in operator],
            "ms",
        ),
    ]
    return rows, {"operator": operator, "bare": bare}


async def _many_jobs(cluster: HollowCluster) -> tuple[list[Row], Any]:
    namespace = "quiet"
    await cluster.make_namespace(namespace)
    cluster.operator.start()
    with say(f"{QUIET_JOBS} jobs are created, and run"):
        jobs = [job_manifest(f"q{number}", namespace, trainers=1, most=1, servers=1) for number in range(QUIET_JOBS)]
        await cluster.api.create(f"{JOBS}/namespaces/{namespace}/trainingjobs", *jobs)
        await cluster.publish(namespace, trainers=1, servers=1)
        await cluster.all_run(3 * QUIET_JOBS, namespace=namespace, seconds=600)
    await cluster.rest()
    with say(f"{QUIET_SECONDS:g} s without news"):
        before, began = cluster.operator.metrics(), cluster.operator.cpu()
        await asyncio.sleep(QUIET_SECONDS)
        used, after = cluster.operator.cpu() - began, cluster.operator.metrics()
    states = {name: value for name, value in after.items() if name.startswith("shoal_jobs")}
    listings = _requests(after, LISTINGS) - _requests(before, LISTINGS)
    made = {name: after[name] - before.get(name, 0.0) for name in after if after[name] != before.get(name, 0.0)}
    print(f"   states {states}; listings {listings:.0f}; peak {cluster.operator.peak_megabytes():.0f} MB")
    print("  ", {name: value for name, value in made.items() if "operator" in name and "bucket" not in name})
    assert states == {"shoal_jobs/Running": QUIET_JOBS}, states
    share = 100 * used / QUIET_SECONDS
    row = at_most(f"operator's CPU with {QUIET_JOBS} jobs and no news", [share], "% of a core", goal=2)
    memory = plain(f"operator's peak memory with {QUIET_JOBS} jobs", [cluster.operator.peak_megabytes()], "MB")
    rows = [replace(row, interval=None), replace(memory, interval=None)]
    return rows, {"share": share, "listings": listings, "changed": made}


async def _all() -> tuple[list[Row], Any]:
    rows: list[Row] = []
    raw: dict[str, Any] = {}
    async with HollowCluster() as cluster:
        for name, measure in (("pods", _many_pods), ("jobs", _many_jobs)):
            if name in PARTS:
                found, raw[name] = await measure(cluster)
                rows += found
    return rows, raw


if __name__ == "__main__":
    main("operator_scale", lambda: asyncio.run(_all()))
