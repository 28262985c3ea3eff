"""Measures the speed and the cost of the operator when many pods are created at the same time.

On a real control plane with 133 hollow nodes (87 of 18 CPUs, 46 of 17, 103 GiB each), on one machine, twenty jobs of 60
trainers, 10 parameter servers and a master are created at the same time. The time is measured from the first job's request
to the end of the response that created the 1,200th trainer's pod, both from the API server's audit log.

The reference is a minimal client that creates the same 1,420 pods (the same manifests from the same functions, owned by the
same kind of job, whose service account exists already; master and servers of each job before its trainers) and nothing
else: raw JSON over one aiohttp session, 32 concurrent requests, which is the operator's own limit. No operator runs then.
Another minimal client creates only the 1,200 trainers' pods. Repeats alternate, each in its own namespace, with its own
operator that is ready before; between them all objects are deleted and the cluster comes to rest. The operator runs with the
autoscaler, as in `deploy/overlays/autoscaler`; with `BENCH_AUTOSCALER=0` without it.

The operator's figures also include the preflight of the jobs, their other objects (8 each), their statuses, and the work of
the controllers for these on the same cores. The CPU time of each process until the last trainer's pod was created is saved
with the results.

From the same runs, until all pods run and the cluster is at rest: the operator's peak memory (VmHWM), and its CPU time per
event of its watch of pods.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.common import Row, against, at_least, at_most, main, plain
from benchmarks.hollow import BENCHMARK, JOBS, OPERATOR, Asked, HollowCluster, job_manifest
from benchmarks.operators import say
from shoal.api import from_mapping
from shoal.operator.controller.preflight import as_pod
from shoal.operator.resources import workloads
from shoal.operator.resources.pods import JobIdentity, master_pod, names, server_pod, trainer_pod

SIZE = int(os.environ.get("BENCH_JOBS", "20"))
TRAINERS, SERVERS = 60, 10
CLASSES = ("shoal-servers", "shoal-minimum", "shoal-surplus")
REPEATS = int(os.environ.get("BENCH_REPEATS", "3"))
POD_EVENTS = "shoal_operator_watch_events_total/Pod"


async def _by_operator(cluster: HollowCluster, namespace: str) -> dict[str, float]:
    """Run one repeat with the operator; return the seconds until all trainers' pods were created, and the cost."""
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


async def _by_bare_client(cluster: HollowCluster, namespace: str, *, whole: bool) -> dict[str, float]:
    """Run one repeat with the minimal client: all pods, or without ``whole`` only the trainers' pods."""
    await cluster.make_namespace(namespace)
    made = [_manifest(f"j{number}", namespace) for number in range(SIZE)]
    jobs = await cluster.api.create(f"{JOBS}/namespaces/{namespace}/trainingjobs", *made)
    pods = [pod for job in jobs for pod in _pods(job, whole=whole)]
    accounts = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": f"{job['metadata']['name']}-shoal"}}
        for job in jobs
    ]
    await cluster.api.create(f"/api/v1/namespaces/{namespace}/serviceaccounts", *accounts)
    await cluster.rest()
    cluster.audit.more()
    began = {**cluster.cpu(), "client": time.process_time()}
    with say(f"the bare client makes {len(pods)} pods"):
        async with await cluster.bare_client() as client:
            await client.create(f"/api/v1/namespaces/{namespace}/pods", *pods)
    seen = [asked for asked in cluster.audit.more() if asked.made_trainer]
    assert len(seen) == SIZE * TRAINERS
    by_then = _used(began, {**cluster.cpu(), "client": time.process_time()})
    found = {"seconds": max(each.answered for each in seen) - min(each.came for each in seen), **by_then}
    _tell(found)
    with say("all pods start"):
        await cluster.all_run(len(pods), namespace=namespace)
    await cluster.clear(namespace)
    return found


def _manifest(name: str, namespace: str) -> dict[str, Any]:
    return job_manifest(name, namespace, trainers=TRAINERS, most=TRAINERS, servers=SERVERS)


def _pods(manifest: Mapping[str, Any], *, whole: bool) -> list[dict[str, Any]]:
    """Return the pods of a job, or without ``whole`` only its trainers' pods, as the operator creates them."""
    job = from_mapping(manifest)
    identity = JobIdentity(uid=manifest["metadata"]["uid"], etcd="http://127.0.0.1:2379", classes=CLASSES)
    known = names(job)
    assert known["account"] == f"{job.metadata.name}-shoal"
    servers = [as_pod(job, server_pod(job, identity), f"{known['pserver']}-{index}") for index in range(SERVERS)]
    others = [as_pod(job, master_pod(job, identity), known["master"]), *servers]
    pods = [*(others if whole else ()), *(trainer_pod(job, identity, index) for index in range(TRAINERS))]
    for pod in pods:
        pod["metadata"]["ownerReferences"] = [workloads.owner(job, identity)]
    return pods


def _used(began: Mapping[str, float], ended: Mapping[str, float]) -> dict[str, float]:
    """Return the CPU time of each process until the last trainer's pod was created, in seconds."""
    return {f"cpu_until_made/{name}": ended[name] - before for name, before in began.items()}


def _tell(found: Mapping[str, float]) -> None:
    print("  ", ", ".join(f"{key} {value:.4g}" for key, value in found.items()), flush=True)


def _made(seen: list[Asked], user: str) -> int:
    return sum(asked.made_trainer and asked.user == user for asked in seen)


def _requests(metrics: Mapping[str, float]) -> float:
    return sum(value for name, value in metrics.items() if name.startswith("shoal_operator_api_requests_total/"))


async def _many_pods(cluster: HollowCluster) -> tuple[list[Row], Any]:
    cluster.rank_pods(autoscaler=os.environ.get("BENCH_AUTOSCALER", "1") != "0")
    operator, bare, trainers = [], [], []
    for number in range(REPEATS):
        print(f"repeat {number + 1} of {REPEATS}")
        # The order alternates, because the state of the cluster grows.
        for by_operator in (True, False) if number % 2 == 0 else (False, True):
            if by_operator:
                operator.append(await _by_operator(cluster, f"operator-{number}"))
            else:
                bare.append(await _by_bare_client(cluster, f"bare-{number}", whole=True))
            await cluster.rest()
        trainers.append(await _by_bare_client(cluster, f"trainers-{number}", whole=False))
        await cluster.rest()
    pods = SIZE * TRAINERS

    def pairs(others: list[dict[str, float]]) -> list[tuple[float, float]]:
        return [(pods / one["seconds"], pods / other["seconds"]) for one, other in zip(operator, others, strict=True)]

    rows = [
        at_least("trainers' pods/s against a bare client of all pods", pairs(bare), "pods/s", goal=0.7),
        against("trainers' pods/s against a bare client of them alone", pairs(trainers), "pods/s"),
        plain(f"{SIZE} jobs to {pods} trainers' pods", [each["seconds"] for each in operator], "s"),
        at_most("operator's peak memory", [each["peak_megabytes"] for each in operator], "MB", goal=300),
        plain(
            "operator's CPU per event of a pod",
            [1000 * each["cpu_seconds"] / each["pod_events"] for each in operator],
            "ms",
        ),
    ]
    return rows, {"operator": operator, "bare": bare, "bare_trainers": trainers}


async def _all() -> tuple[list[Row], Any]:
    async with HollowCluster() as cluster:
        return await _many_pods(cluster)


if __name__ == "__main__":
    main("operator_scale", lambda: asyncio.run(_all()))
