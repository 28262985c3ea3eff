"""Measures the time of a plan, from scratch and after one event, and its growth with the size of the cluster.

The clusters are synthetic: nodes of 16 or 32 CPUs, 3 resources (cpu, memory, pods), 5 groups of taints and labels, jobs of
three priorities whose trainers have one of at most 20 shapes. Foreign pods take up to half of a node, and all jobs at their
maximum would need 1.3 times the rest, so there is always unmet demand. Each cluster exists in three instances.

From scratch: nothing runs, and the planner has no memory. After one event: up to four plans were executed (most clusters are
at rest then, in some the planner still levels jobs in small steps), and then one event happens; each repeat is another pod,
node or job on the same cluster. A figure covers all instances in turn, which differ. Python's garbage collector is configured
as in the operator: full collections are rare; by default about one of 70 plans takes 20 ms longer.

| event | description |
|---|---|
| foreign pod | a pod that fits only after a preemption, which the planner has to decide (`scheduler_evicts=False`) |
| node unusable | a node is cordoned or not ready: its trainers stay, its room does not count any more |
| node lost | a node is not usable any more, and its trainers are lost |
| job added | a new job of any priority |

The growth is the slope of a straight line through (log size, log median), once for jobs and once for nodes. It is valid
between the measured sizes only, because a part of a plan's time does not depend on the cluster.

Also measured is the source of the planner's snapshots: the memory of a `ClusterState`, as the growth of a new process's
resident set while it receives all nodes and pods, and the time of a snapshot after a change of one pod.

If matplotlib can be imported, the growth is drawn to benchmarks/results/plan.png.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from itertools import cycle, islice
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, Row, at_most, interval, main, percentile, plain
from shoal.autoscaler.job_demand import JobDemand
from shoal.autoscaler.planner.model import (
    Counts,
    JobAllocation,
    Nodes,
    PendingPod,
    PlannerJob,
    PlannerMemory,
    PlanResult,
    Policy,
    Shapes,
    Snapshot,
)
from shoal.autoscaler.planner.plan import plan
from shoal.autoscaler.snapshot.cluster_state import ClusterState
from shoal.operator.__main__ import tune

SIZES = ((20, 133), (160, 64), (1000, 1000), (1000, 10_000))
LARGEST = SIZES[-1]
GOAL_SCRATCH, GOAL_EVENT = 200.0, 20.0
"""Goals for the largest cluster, in milliseconds."""
GROUPS, SHAPES, MANY_SHAPES, FOREIGN_SHAPES = 5, 20, 1000, 4
PRIORITIES = (-8, -6, -4)
INSTANCES = 3
REPEATS, SECONDS = int(os.environ.get("BENCH_REPEATS", "200")), 12.0
LEAST_REPEATS = min(REPEATS, 12)
"""A figure has REPEATS repeats, or fewer (at least LEAST_REPEATS) if they take more than SECONDS. With up to 100 repeats the
p99 is the maximum."""
POLICY = Policy(scheduler_evicts=False)
PLANS_TO_REST = 4
MANY_REPEATS = 2
"""Repeats with MANY_SHAPES shapes; such a plan is slow, and it has no goal."""
GIB = 2**30

GROWTH = {
    "jobs": [(jobs, 1000) for jobs in (125, 250, 500, 1000, 2000)],
    "nodes": [(1000, nodes) for nodes in (625, 1250, 2500, 5000, 10_000)],
}
GROWTH_REPEATS = min(REPEATS, 9)
PICTURE = RESULTS / "plan.png"

VIEW_NODES, VIEW_PODS, VIEW_JOBS = 10_000, 20_000, 1000
VIEW_SNAPSHOTS = 100


# --- Clusters ---


def cluster(*, jobs: int, nodes: int, shapes: int = SHAPES, seed: int = 0) -> Snapshot:
    """Return a cluster in which no trainers run."""
    chance = np.random.default_rng(seed)
    cores = chance.choice([16, 32], nodes)
    room = np.stack([cores * 1000, cores * 4 * GIB, np.full(nodes, 110)], axis=1)
    room[:, :2] -= (room[:, :2] * chance.uniform(0, 0.5, (nodes, 1))).astype(np.int64)
    room[:, 2] -= chance.integers(5, 20, nodes)
    room = room.astype(np.int64)
    asked = _request(chance, shapes)
    fits = chance.random((shapes, GROUPS)) < 0.6
    fits[np.arange(shapes), chance.integers(0, GROUPS, shapes)] = True
    each = 1.3 * room[:, 0].sum() / jobs  # CPU of a job at its maximum
    return Snapshot(
        now=1000.0,
        resources=("cpu", "memory", "pods"),
        nodes=Nodes(
            names=tuple(f"node-{number}" for number in range(nodes)),
            room=room,
            leaving=np.zeros_like(room),
            usable=np.ones(nodes, dtype=np.bool_),
            group=chance.integers(0, GROUPS, nodes),
            total=room.sum(axis=0),
        ),
        shapes=Shapes(request=asked, fits=fits),
        jobs=tuple(_job(number, chance, asked, each) for number in range(jobs)),
    )


def _request(chance: np.random.Generator, shapes: int) -> Counts:
    """Return the requests [S, R]: round numbers for few shapes, distinct numbers for many."""
    step = 500 if shapes <= SHAPES else 1
    cpu = chance.integers(500 // step, 4000 // step, shapes, endpoint=True) * step
    memory = (cpu * chance.choice([1, 2, 4, 6], shapes) * GIB) // 1000
    return np.stack([cpu, memory, np.ones(shapes, dtype=np.int64)], axis=1).astype(np.int64)


def _job(number: int, chance: np.random.Generator, request: Counts, cpu: float) -> PlannerJob:
    shape = int(chance.integers(len(request)))
    high = max(1, round(cpu * chance.uniform(0.5, 1.5) / int(request[shape, 0])))
    return PlannerJob(
        uid=f"job-{number}",
        name=f"default/job-{number}",
        priority=int(chance.choice(PRIORITIES)),
        min=max(1, high // 8),
        max=high,
        shape=shape,
        weight=float(chance.choice([1.0, 1.0, 2.0])),
        since=float(number),
    )


def carried_out(snapshot: Snapshot, allocation: PlanResult) -> Snapshot:
    """Return the cluster after the plan was executed: all new trainers run."""
    jobs = [replace(job, held=_held(allocation.jobs[job.uid], job)) for job in snapshot.jobs]
    return replace(snapshot, jobs=tuple(jobs))


def _held(given: JobAllocation, job: PlannerJob) -> Mapping[int, int]:
    if given.kept == job.held and not given.added:
        return job.held
    return {node: given.kept.get(node, 0) + given.added.get(node, 0) for node in {*given.kept, *given.added}}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Resting:
    """A cluster at rest, or nearly at rest.

    Attributes:
        snapshot: Snapshot of the cluster.
        memory: The planner's memory after the last plan.
        foreign: Shapes of pods that fit only after a preemption.
    """

    snapshot: Snapshot
    memory: PlannerMemory
    foreign: tuple[int, ...]


def at_rest(snapshot: Snapshot) -> Resting:
    """Execute up to PLANS_TO_REST plans, and return the resulting cluster."""
    memory = PlannerMemory()
    for _ in range(PLANS_TO_REST):
        allocation, memory = plan(snapshot, memory, POLICY)
        after = carried_out(snapshot, allocation)
        if all(new.held == old.held for new, old in zip(after.jobs, snapshot.jobs, strict=True)):
            break
        # One hour passes, so that cool-downs of earlier moves do not apply.
        snapshot = replace(after, now=after.now + 3600)
    some = random.Random(3).sample(range(len(snapshot.shapes.request)), SHAPES)
    foreign = tuple(islice((shape for shape in some if _needs_room(snapshot, memory, shape)), FOREIGN_SHAPES))
    if not foreign:
        raise RuntimeError("every shape fits without a preemption")
    return Resting(snapshot=snapshot, memory=memory, foreign=foreign)


def _needs_room(snapshot: Snapshot, memory: PlannerMemory, shape: int) -> bool:
    claims = plan(_with_pod(snapshot, shape, 0), memory, POLICY)[0].claims
    return any(claim.victims for claim in claims)


# --- Events ---


def _with_pod(snapshot: Snapshot, shape: int, number: int) -> Snapshot:
    pod = PendingPod(uid=f"pod-{number}", name=f"default/pod-{number}", shape=shape, priority=0)
    return replace(snapshot, pending=(pod,))


def _pod_comes(resting: Resting, chance: random.Random) -> Snapshot:
    return _with_pod(resting.snapshot, chance.choice(resting.foreign), chance.randrange(10**9))


def _node_stops(resting: Resting, chance: random.Random) -> Snapshot:
    return _without(resting.snapshot, chance.randrange(len(resting.snapshot.nodes.names)))


def _node_goes(resting: Resting, chance: random.Random) -> Snapshot:
    lost = chance.randrange(len(resting.snapshot.nodes.names))
    after = _without(resting.snapshot, lost)
    jobs = [_without_node(job, lost) if lost in job.held else job for job in after.jobs]
    return replace(after, jobs=tuple(jobs))


def _without_node(job: PlannerJob, lost: int) -> PlannerJob:
    return replace(job, held={node: count for node, count in job.held.items() if node != lost})


def _without(snapshot: Snapshot, node: int) -> Snapshot:
    nodes = snapshot.nodes
    usable = nodes.usable.copy()
    usable[node] = False
    return replace(snapshot, nodes=replace(nodes, usable=usable, total=nodes.total - nodes.room[node]))


def _job_comes(resting: Resting, chance: random.Random) -> Snapshot:
    snapshot = resting.snapshot
    like = chance.choice(snapshot.jobs)
    new = replace(like, uid="new", name="default/new", held={}, since=snapshot.now, priority=chance.choice(PRIORITIES))
    return replace(snapshot, jobs=(*snapshot.jobs, new))


EVENTS: dict[str, Callable[[Resting, random.Random], Snapshot]] = {
    "foreign pod": _pod_comes,
    "node unusable": _node_stops,
    "node lost": _node_goes,
    "job added": _job_comes,
}


# --- Times ---


def _timed(snapshot: Snapshot, memory: PlannerMemory) -> float:
    """Return the time of one plan, in milliseconds."""
    began = time.perf_counter()
    plan(snapshot, memory, POLICY)
    return (time.perf_counter() - began) * 1000


def from_scratch(instances: Sequence[Snapshot], repeats: int = REPEATS) -> list[float]:
    """Return the milliseconds of each repeat from scratch, with the instances in turn."""
    return _repeated(((snapshot, PlannerMemory()) for snapshot in cycle(instances)), repeats)


def after_event(resting: Sequence[Resting], event: str, repeats: int = REPEATS) -> list[float]:
    """Return the milliseconds of each repeat after a different event, with the instances in turn."""
    chance = random.Random(7)
    return _repeated(((EVENTS[event](each, chance), each.memory) for each in cycle(resting)), repeats)


def _repeated(worlds: Iterator[tuple[Snapshot, PlannerMemory]], repeats: int) -> list[float]:
    times: list[float] = []
    while len(times) < repeats and (len(times) < LEAST_REPEATS or sum(times) < SECONDS * 1000):
        times.append(_timed(*next(worlds)))
    return times


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """Upper limits of median and p99, in milliseconds; None: no goal."""

    scratch: float | None = None
    event: float | None = None


def _rows(metric: str, times: Sequence[float], goal: float | None) -> Iterator[Row]:
    p50 = f"{metric}, p50"
    yield plain(p50, times, "ms") if goal is None else at_most(p50, times, "ms", goal=goal)
    p99 = partial(percentile, share=0.99)
    row = Row(
        metric=f"{metric}, p99", value=p99(times), unit="ms", interval=interval(times, figure=p99), count=len(times)
    )
    yield row if goal is None else replace(row, goal=f"<= {goal:g}", met=row.value <= goal)


def _of_size(title: str, instances: Sequence[Snapshot], *, bar: Bar) -> Figures:
    print(f"{title} ...", flush=True)
    resting = [at_rest(snapshot) for snapshot in instances]
    gc.collect()
    raw = {"from scratch": from_scratch(instances)}
    raw |= {event: after_event(resting, event) for event in EVENTS}
    rows: list[Row] = []
    for name, times in raw.items():
        goal = bar.scratch if name == "from scratch" else bar.event
        rows += _rows(f"{title}: {name}", times, goal)
    return rows, raw


Figures = tuple[list[Row], dict[str, list[float]]]


def _sizes() -> Iterator[tuple[str, Figures]]:
    for jobs, nodes in SIZES:
        title = f"{jobs:,} x {nodes:,}"
        instances = [cluster(jobs=jobs, nodes=nodes, seed=seed) for seed in range(INSTANCES)]
        largest = (jobs, nodes) == LARGEST
        bar = Bar(scratch=GOAL_SCRATCH, event=GOAL_EVENT) if largest else Bar()
        yield title, _of_size(title, instances, bar=bar)
    jobs, nodes = LARGEST
    title = f"{jobs:,} x {nodes:,}, {MANY_SHAPES:,} shapes"
    print(f"{title} ...", flush=True)
    times = from_scratch([cluster(jobs=jobs, nodes=nodes, shapes=MANY_SHAPES)], repeats=MANY_REPEATS)
    yield title, ([plain(f"{title}: from scratch, p50", times, "ms")], {"from scratch": times})


# --- Growth ---


def _growth() -> dict[str, dict[str, dict[int, list[float]]]]:
    """Return the milliseconds by axis (jobs or nodes), by what is timed, and by size."""
    found: dict[str, dict[str, dict[int, list[float]]]] = {}
    for axis, sizes in GROWTH.items():
        print(f"growth with {axis} ...", flush=True)
        found[axis] = {"from scratch": {}, "foreign pod": {}}
        for jobs, nodes in sizes:
            size = jobs if axis == "jobs" else nodes
            snapshot = cluster(jobs=jobs, nodes=nodes, seed=11)
            found[axis]["from scratch"][size] = from_scratch([snapshot], GROWTH_REPEATS)
            found[axis]["foreign pod"][size] = after_event([at_rest(snapshot)], "foreign pod", GROWTH_REPEATS)
    return found


def _line(by_size: Mapping[int, Sequence[float]]) -> tuple[float, float]:
    """Return the slope, and the logarithm of the milliseconds at size 1."""
    medians = [statistics.median(times) for times in by_size.values()]
    slope, start = np.polyfit(np.log(list(by_size)), np.log(medians), 1)
    return float(slope), float(start)


def _slopes(growth: Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]]) -> Iterator[Row]:
    for axis, by_name in growth.items():
        beside = "1,000 nodes" if axis == "jobs" else "1,000 jobs"
        for name, by_size in by_name.items():
            metric = f"{name}: time grows as {axis} ^ (beside {beside})"
            yield Row(metric=metric, value=_line(by_size)[0], unit="", count=len(by_size))


def _draw(growth: Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]]) -> None:
    try:
        matplotlib = import_module("matplotlib")
    except ImportError:
        print("no picture: matplotlib cannot be imported")
        return
    matplotlib.use("Agg")
    pyplot = import_module("matplotlib.pyplot")
    figure, panels = pyplot.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
    for panel, (axis, by_name) in zip(panels, growth.items(), strict=True):
        for (name, by_size), colour in zip(by_name.items(), ("#4477aa", "#ee6677"), strict=True):
            slope, start = _line(by_size)
            sizes = np.array(list(by_size))
            medians = [statistics.median(times) for times in by_size.values()]
            panel.loglog(sizes, medians, "o", color=colour)
            what = "from scratch" if name == "from scratch" else "after a foreign pod"
            label = f"{what}: {axis}^{slope:.2f}"
            panel.loglog(sizes, np.exp(start) * sizes**slope, "-", color=colour, linewidth=1, label=label)
        panel.set_xticks(sizes, [f"{size:,}" for size in sizes])
        panel.minorticks_off()
        panel.set_xlabel("jobs, beside 1,000 nodes" if axis == "jobs" else "nodes, beside 1,000 jobs")
        panel.grid(visible=True, linewidth=0.3)
        panel.legend(frameon=False, fontsize=8)
    ticker = import_module("matplotlib.ticker")
    panels[0].yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    panels[0].yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    panels[0].set_ylabel("milliseconds, median")
    figure.savefig(PICTURE, dpi=90)
    print(f"drawn: benchmarks/results/{PICTURE.name}")


# --- The view ---


def _node(number: int) -> dict[str, Any]:
    name = f"node-{number}"
    labels = {"kubernetes.io/hostname": name, "pool": f"pool-{number % GROUPS}"}
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "labels": labels, "resourceVersion": str(number + 1)},
        "spec": {"taints": [] if number % GROUPS else [{"key": "pool", "value": "x", "effect": "NoSchedule"}]},
        "status": {
            "allocatable": {"cpu": "16", "memory": "64Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def _pod(number: int, *, cpu: int, job: int | None = None, revision: int = 0) -> dict[str, Any]:
    """Return a bound pod: a trainer of ``job``, or a foreign pod if it is None."""
    name = f"web-{number}" if job is None else f"job-{job}-trainer-{number}"
    metadata: dict[str, Any] = {"name": name, "namespace": "default", "uid": f"uid-{name}"}
    metadata["resourceVersion"] = str(revision or number + 1)
    if job is not None:
        metadata["labels"] = {"shoal.dev/uid": f"uid-{job}", "shoal.dev/role": "trainer"}
        metadata["ownerReferences"] = [{"kind": "TrainingJob", "uid": f"uid-{job}", "controller": True}]
    requests = {"cpu": f"{cpu}m", "memory": f"{2 * cpu}Mi"}
    spec = {"nodeName": f"node-{number % VIEW_NODES}", "containers": [{"resources": {"requests": requests}}]}
    return {"metadata": metadata, "spec": spec, "status": {"phase": "Running"}}


def _resident_megabytes() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _view(pipe: Pipe) -> None:
    """Measure, in a new process, the memory of a cluster state and the time of its snapshots."""
    view = ClusterState()
    before = _resident_megabytes()
    for number in range(VIEW_NODES):
        view.node_changed(_node(number))
    for number in range(VIEW_PODS):
        # Every second pod is a trainer.
        job = number // 2 % VIEW_JOBS if number % 2 else None
        view.pod_changed(_pod(number, cpu=500 + (number if job is None else job) % SHAPES * 100, job=job), now=0.0)
    megabytes = _resident_megabytes() - before
    demands = [
        JobDemand(
            uid=f"uid-{job}", name=f"job-{job}", namespace="default", priority=PRIORITIES[job % 3], min=1, max=20,
            trainer=_pod(0, cpu=500 + job % SHAPES * 100, job=job),
        )
        for job in range(VIEW_JOBS)
    ]  # fmt: skip
    view.snapshot(demands, now=0.0)
    times = []
    for number in range(VIEW_SNAPSHOTS):
        view.pod_changed(_pod(2 * number, cpu=700, revision=VIEW_PODS + number + 1), now=1.0)
        began = time.perf_counter()
        view.snapshot(demands, now=1.0)
        times.append((time.perf_counter() - began) * 1000)
    pipe.send((megabytes, times))


def _of_view() -> Figures:
    print("the view ...", flush=True)
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_view, args=(theirs,), daemon=True)
    process.start()
    theirs.close()  # so that recv() fails if the process exits early
    megabytes, times = ours.recv()
    process.join()
    title = f"view of {VIEW_NODES:,} nodes and {VIEW_PODS:,} pods"
    rows = [
        Row(metric=f"{title}: memory", value=megabytes, unit="MB"),
        plain(f"{title}: snapshot with {VIEW_JOBS:,} jobs, p50", times, "ms"),
    ]
    return rows, {"megabytes": [megabytes], "snapshot": times}


def measure() -> tuple[list[Row], Any]:
    """Measure all sizes, the growth, and the cluster state."""
    rows, raw = list[Row](), dict[str, Any]()
    tune()
    _timed(
        cluster(jobs=20, nodes=20), PlannerMemory()
    )  # the first plan of a process has one-time costs, which are not measured
    for title, (of_size, times) in _sizes():
        rows += of_size
        raw[title] = times
    growth = _growth()
    rows += _slopes(growth)
    of_view, raw["view"] = _of_view()
    rows += of_view
    _draw(growth)
    return rows, raw | {"growth": growth}


if __name__ == "__main__":
    main("plan", measure)
