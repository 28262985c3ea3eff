"""Measures the operator's reaction time to an edited spec and to a lost pod.

Twenty jobs of 47 trainers, two parameter servers and a master run on a real control plane with 133 hollow nodes: the
operator watches 1,000 pods. A stand-in has written one record for each master. Then, one after the other and in random
order,

- 200 specs are edited: `trainer.replicas` is raised by one, or lowered again (a merge patch of the TrainingJob);
- 200 trainers' pods are lost: half are deleted without a grace period, as by a controller after the loss of a node; the
  other half get the status Failed, as from a kubelet.

Each sample uses the next job in turn, after the previous sample is complete and after a random pause, so that no earlier
sample is in progress at this job.

A reaction is measured by the API server's audit log: from the arrival of the edit (the deletion, the status) to the arrival
of the operator's first change of an object of this job, which is:

| event | the operator's first request |
|---|---|
| one trainer more | `create` of its pod |
| one trainer less | `delete` of the pod of the highest index (which the stand-in's master does not have) |
| a pod deleted | the job's status, when the deletion begins, or `create` of its successor |
| a pod Failed | its `delete`; its index is free when it does not exist any more |

A dry run is not a change. A preceding dry run of the operator is part of the time, as are its writes into Shoal's etcd
before it deletes a trainer. The number of each first request is saved with the results. The time to the repairing request is
reported, too: the successor's `create`, or the `delete` of the Failed pod.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.common import Row, interval, main, percentile, plain
from benchmarks.hollow import BENCHMARK, JOBS, OPERATOR, Asked, HollowCluster, job_manifest
from benchmarks.operators import say

SIZE = int(os.environ.get("BENCH_JOBS", "20"))
SAMPLES = int(os.environ.get("BENCH_SAMPLES", "200"))
TRAINERS, SERVERS = 47, 2
NAMESPACE = "reaction"
PAUSE_SECONDS = (0.05, 0.15)
SETTLE_SECONDS = 0.15
"""Pause after the first request, for those that follow, so that samples do not overlap."""
P50_GOAL, P99_GOAL = 50.0, 250.0
MADE = f"{JOBS}/namespaces/{NAMESPACE}/trainingjobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


@dataclass
class Reactions:
    """All samples of one kind: milliseconds, and the number of each of the operator's first requests."""

    milliseconds: list[float] = field(default_factory=list)
    until_mended: list[float] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)

    def add(self, edit: Asked, calls: Sequence[Asked]) -> None:
        """Add a sample: the edit, and the operator's subsequent requests, in their order."""
        first = calls[0]
        mending = next(call for call in calls if call.resource == "pods")
        self.milliseconds.append(1000 * (first.came - edit.came))
        self.until_mended.append(1000 * (mending.came - edit.came))
        self.calls[f"{edit.verb} {edit.resource} -> {first.verb} {first.resource}"] += 1


class Samples:
    """Takes samples, one at a time.

    Args:
        cluster: Cluster in which the jobs run.
    """

    def __init__(self, cluster: HollowCluster) -> None:
        self._cluster = cluster
        self._chance = random.Random(0)
        self._more: dict[int, bool] = {}
        self._turn = 0

    async def edit(self, into: Reactions) -> None:
        """Edit the spec of the next job in turn."""
        number = self._next()
        more = self._more[number] = not self._more.get(number, False)
        spec = {"spec": {"trainer": {"replicas": TRAINERS + more}}}
        await self._cluster.api.patch(f"{MADE}/{_name(number)}", spec)
        await self._answered(number, "trainingjobs", into)

    async def death(self, into: Reactions, *, deleted: bool) -> None:
        """Delete or fail a random trainer's pod of the next job in turn."""
        number = self._next()
        pod = f"{PODS}/{_name(number)}-trainer-{self._chance.randrange(TRAINERS)}"
        if deleted:
            options = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}
            await self._cluster.api.ask("DELETE", pod, options)
        else:
            ended = {"type": "Ready", "status": "False", "reason": "PodFailed"}
            status = {"phase": "Failed", "conditions": [ended]}
            await self._cluster.api.patch(f"{pod}/status", {"status": status})
        await self._answered(number, "pods" if deleted else "pods/status", into)

    def _next(self) -> int:
        self._turn += 1
        return self._turn % SIZE

    async def _answered(self, number: int, resource: str, into: Reactions) -> None:
        def followed(found: Sequence[Asked]) -> tuple[Asked, list[Asked]] | None:
            edits = [asked for asked in found if asked.user == BENCHMARK and asked.resource == resource]
            calls = [asked for asked in found if _changes(asked, number) and edits and asked.came > edits[0].came]
            calls.sort(key=lambda asked: asked.came)
            return (edits[0], calls) if any(call.resource == "pods" for call in calls) else None

        # A request is logged when it is answered, so an earlier one may appear later.
        log = self._cluster.audit
        found = await log.until(lambda found: followed(found) is not None, f"a reaction at {_name(number)}")
        await asyncio.sleep(SETTLE_SECONDS)
        pair = followed([*found, *log.more()])
        assert pair is not None
        into.add(*pair)
        await asyncio.sleep(self._chance.uniform(*PAUSE_SECONDS))
        log.more()


def _name(number: int) -> str:
    return f"r{number:02}"


def _changes(asked: Asked, number: int) -> bool:
    """Return whether a request of the operator changes an object of this job."""
    return asked.user == OPERATOR and not asked.dry and asked.name[: len(_name(number))] == _name(number)


async def _measured(cluster: HollowCluster) -> tuple[list[Row], Any]:
    await cluster.make_namespace(NAMESPACE)
    cluster.operator.start()
    pods = SIZE * (TRAINERS + SERVERS + 1)
    with say(f"{SIZE} jobs start {pods} pods"):
        jobs = [
            job_manifest(_name(number), NAMESPACE, trainers=TRAINERS, most=TRAINERS + 1, servers=SERVERS)
            for number in range(SIZE)
        ]
        await cluster.api.create(MADE, *jobs)
        await cluster.publish(NAMESPACE, trainers=TRAINERS, servers=SERVERS)
        await cluster.all_run(pods, namespace=NAMESPACE)
    await cluster.rest()
    cluster.audit.more()
    samples, edits, deaths = Samples(cluster), Reactions(), Reactions()
    kinds = [kind for kind in ("edit", "deleted", "failed") for _ in range(SAMPLES // (1 if kind == "edit" else 2))]
    random.Random(1).shuffle(kinds)
    with say(f"{len(kinds)} samples"):
        for kind in kinds:
            if kind == "edit":
                await samples.edit(edits)
            else:
                await samples.death(deaths, deleted=kind == "deleted")
    raw = {
        name: {"milliseconds": each.milliseconds, "until mended": each.until_mended, "first calls": dict(each.calls)}
        for name, each in (("edits", edits), ("deaths", deaths))
    }
    for name, each in (("edits", edits), ("deaths", deaths)):
        print(f"   {name}: {dict(each.calls)}")
    mended = plain("pod died to the call that mends it, p50", deaths.until_mended, "ms")
    return [*_rows("spec edited", edits.milliseconds), *_rows("pod died", deaths.milliseconds), mended], raw


def _rows(what: str, values: Sequence[float]) -> list[Row]:
    def p99(drawn: Sequence[float]) -> float:
        return percentile(drawn, 0.99)

    rows = []
    for name, figure, goal in (("p50", statistics.median, P50_GOAL), ("p99", p99, P99_GOAL)):
        value = float(figure(values))
        bounds = interval(values, figure=figure)
        metric = f"{what} to the operator's first call, {name}"
        rows.append(
            Row(
                metric=metric,
                value=value,
                unit="ms",
                interval=bounds,
                goal=f"<= {goal:g}",
                met=value <= goal,
                count=len(values),
            )
        )
    return rows


async def _all() -> tuple[list[Row], Any]:
    async with HollowCluster() as cluster:
        return await _measured(cluster)


if __name__ == "__main__":
    main("reaction", lambda: asyncio.run(_all()))
