"""Runs a case of the EDL benchmark on the real control plane, or in the simulator for EDL's rule."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Final

from benchmarks.edl_case import CASES, WEB, Case, Life, Outcome, Step
from benchmarks.edl_figures import FixedNode, Sample, fits, least_stopped
from benchmarks.edl_watch import HollowMasters, PodLog, SeenPod
from benchmarks.hollow import JOBS, HollowCluster
from benchmarks.operators import say
from shoal.simulator.policies.registry import POLICIES
from shoal.simulator.trace import Trace
from shoal.simulator.world.cluster import Phase, PodKind
from shoal.simulator.world.engine import Simulation, simulate
from tests.cluster.stages import Stages
from tests.operator.api import Api

__all__ = ["CASES", "Case", "Outcome", "played", "simulated"]

GRACE_SECONDS: Final = 2.0
STAGES: Final = Stages(start_ms=1000, grace_ms=2000)
GI: Final = 2**30


async def played(case: Case, policy: str, repeats: int, *, packable: float | None) -> list[Outcome]:
    """Run a case repeatedly on one control plane."""
    outcomes = []
    async with HollowCluster(case.nodes, stages=STAGES) as cluster:
        cluster.rank_pods(autoscaler=policy == "shoal")
        for number in range(repeats):
            print(f"{policy}, run {number + 1} of {repeats}: {case.seconds:g} s")
            outcomes.append(await _Run(cluster, case, policy, f"{case.name}-{number}", packable).play())
    return outcomes


class _Run:
    """One run on the real control plane."""

    def __init__(self, cluster: HollowCluster, case: Case, policy: str, namespace: str, packable: float | None) -> None:
        self._cluster = cluster
        self._case = case
        self._pinned = case.pinned if policy == "fixed" else None
        self._namespace = namespace
        self._packable = packable
        self._began = 0.0
        self._samples: list[Sample] = []
        self._moments: list[tuple[float, int, int | None]] = []
        """For each step: its time, the number of additional pods, and the fewest trainers that must stop for them."""

    async def play(self) -> Outcome:
        cluster, case = self._cluster, self._case
        await cluster.make_namespace(self._namespace)
        cluster.operator.start()
        try:
            async with PodLog(cluster.api, self._namespace) as log:
                self._log = log
                if case.web:
                    await self._deploy(case.web[0])
                await cluster.rest()
                with ExitStack() as stack:
                    api = stack.enter_context(Api(cluster.plane.kubeconfig))
                    stack.enter_context(
                        HollowMasters(api, cluster.etcd.endpoint, self._namespace, log=log, grace_seconds=GRACE_SECONDS)
                    )
                    self._began = time.monotonic()
                    with say(f"  {case.name}"):
                        async with asyncio.TaskGroup() as group:
                            group.create_task(self._submit())
                            group.create_task(self._scale())
                            group.create_task(self._sample())
                return self._outcome()
        finally:
            cluster.operator.stop()
            await cluster.clear(self._namespace)

    # --- Actions ---

    async def _deploy(self, replicas: int) -> None:
        requests = {"cpu": str(self._case.POD), "memory": "3Gi"}
        container = {"name": "web", "image": "example.org/web:1", "resources": {"requests": requests}}
        labels = {"app": WEB}
        spec = {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        }
        made = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": WEB}, "spec": spec}
        await self._cluster.api.create(f"/apis/apps/v1/namespaces/{self._namespace}/deployments", made)
        await self._cluster.all_run(replicas, namespace=self._namespace)

    async def _submit(self) -> None:
        for number in range(self._case.jobs):
            await self._until(number * self._case.gap)
            path = f"{JOBS}/namespaces/{self._namespace}/trainingjobs"
            await self._cluster.api.create(path, self._manifest(f"job{number}"))

    def _manifest(self, name: str) -> dict[str, Any]:
        case = self._case
        trainer: dict[str, Any] = {"minReplicas": case.least, "maxReplicas": case.most}
        if self._pinned is not None:
            trainer["replicas"] = self._pinned
        spec = {
            "image": "example.org/train:1",
            "command": ["python", "train.py"],
            "epochs": 1,
            "trainer": {**trainer, "resources": _requests(case.TRAINER, "8Gi")},
            "parameterServer": {"replicas": case.servers, "resources": _requests(case.SERVER, "5Gi"), "emptyDir": {}},
            "master": {"resources": _requests(case.MASTER, "1Gi")},
        }
        metadata = {"name": name, "namespace": self._namespace}
        return {"apiVersion": "shoal.dev/v1alpha1", "kind": "TrainingJob", "metadata": metadata, "spec": spec}

    async def _scale(self) -> None:
        path = f"/apis/apps/v1/namespaces/{self._namespace}/deployments/{WEB}"
        for number, replicas in enumerate(self._case.web):
            await self._until(number * self._case.step)
            more = replicas - self._case.web[max(0, number - 1)]
            least = None
            if more > 0:
                least = least_stopped(self._nodes(), trainer=self._case.TRAINER, pod=self._case.POD, pods=more)
            self._moments.append((time.monotonic(), more, least))
            if number:
                await self._cluster.api.patch(path, {"spec": {"replicas": replicas}})

    async def _until(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, self._began + seconds - time.monotonic()))

    # --- Samples ---

    async def _sample(self) -> None:
        number = 0
        while time.monotonic() < self._began + self._case.seconds:
            self._samples.append(self._now())
            number += 1
            await self._until(min(float(number), self._case.seconds))
        self._samples.append(self._now())

    def _now(self) -> Sample:
        case, there = self._case, list(self._log.there.values())
        cores: Counter[str] = Counter()
        for pod in there:
            if pod.phase == "Running":
                cores[pod.job or WEB] += pod.cores
        stay = [pod for pod in there if pod.role == "trainer" and not pod.leaving]
        return Sample(
            at=time.monotonic() - self._began,
            cores=cores,
            trainers=Counter(pod.job for pod in stay),
            at_work=Counter(pod.job for pod in stay if pod.phase == "Running"),
            pending=sum(not pod.node and not pod.leaving for pod in there),
            web=sum(pod.role == WEB and pod.phase == "Running" and not pod.deleting for pod in there),
            fits=fits(self._nodes(), trainer=case.TRAINER, most=case.jobs * case.most),
        )

    def _nodes(self) -> list[FixedNode]:
        others: Counter[str] = Counter()
        trainers: Counter[str] = Counter()
        for pod in self._log.there.values():
            if pod.holds and pod.role == "trainer":
                trainers[pod.node] += not pod.leaving
            elif pod.holds:
                others[pod.node] += pod.cores
        groups = [int(cores) for count, cores in self._case.nodes for _ in range(count)]
        names = [f"hollow-{cores}-{number}" for number, cores in enumerate(groups)]
        unknown = {*others, *trainers} - set(names)
        assert not unknown, unknown
        return [FixedNode(cores, others[name], trainers[name]) for name, cores in zip(names, groups, strict=True)]

    # --- Outcome ---

    def _outcome(self) -> Outcome:
        case, trainers = self._case, [pod for pod in self._log.all() if pod.role == "trainer"]

        def at(moment: float) -> float:
            return moment - self._began if moment else math.inf

        lives = [Life(pod.job, at(pod.created), at(pod.ran), at(pod.leaving)) for pod in trainers]
        outcome = Outcome(case=case, samples=self._samples, lives=lives, packable=self._packable)
        steps = [self._step(number, outcome) for number in range(len(case.web))]
        return replace(outcome, steps=steps, places=self._places())

    def _places(self) -> dict[str, int]:
        """Return the number of nodes for each combination of cores and pods."""
        there: dict[str, Counter[str]] = {}
        for pod in self._log.there.values():
            if pod.holds:
                there.setdefault(pod.node, Counter())[pod.role] += 1
        texts = (
            " ".join([node.split("-")[1], *(f"{count} {role}" for role, count in sorted(pods.items()))])
            for node, pods in there.items()
        )
        return dict(Counter(texts).most_common())

    def _step(self, number: int, outcome: Outcome) -> Step:
        case = self._case
        since, more, least = self._moments[number]
        start = case.step * number
        step = Step(
            web=case.web[number],
            packed=outcome.packed_between(start, start + case.step),
            requested=outcome.requested_between(start, start + case.step),
        )
        if least is None:
            return step
        until = since + case.step
        came = [pod for pod in self._log.all() if pod.role == WEB and since <= pod.created < until]
        stopped = [pod for pod in self._log.all() if _left(pod, since, until)]
        whole = len(came) >= more and all(pod.bound for pod in came)
        return replace(
            step,
            bound=max(pod.bound for pod in came) - since if whole else None,
            slowest_pod=max(pod.bound - pod.created for pod in came) if whole else None,
            stopped=len(stopped),
            preempted=sum(pod.preempted for pod in stopped),
            least=least,
        )


def _left(pod: SeenPod, since: float, until: float) -> bool:
    return pod.role == "trainer" and bool(pod.bound) and since <= pod.leaving < until


def _requests(cores: int, memory: str) -> dict[str, Any]:
    return {"requests": {"cpu": str(cores), "memory": memory}}


# --- Simulator ---


def simulated(case: Case, policy: str, *, packable: float | None) -> Outcome:
    """Run a case with a policy of the simulator."""
    trace = _trace(case)
    samples: list[Sample] = []
    lives: dict[int, list[Any]] = {}

    def watch(simulation: Simulation) -> None:
        _note_lives(simulation, lives)
        if samples and simulation.now < samples[-1].at + 1.0 and simulation.now < case.seconds:
            return
        samples.append(_sample_of(simulation, case))

    simulate(trace, POLICIES[policy](), until=case.seconds, watch=watch)
    known = [Life(job, came, ran, left) for job, came, ran, left in lives.values()]
    return Outcome(case=case, samples=samples, lives=known, packable=packable)


def _trace(case: Case) -> Trace:
    def amounts(cores: int, memory: str) -> dict[str, str]:
        return {"cpu": str(cores), "memory": memory}

    jobs = [
        {
            "name": f"job{number}",
            "arrival": case.gap * number,
            "work": 1e9,
            "min": case.least,
            "max": case.most,
            "request": amounts(case.TRAINER, "8Gi"),
            "servers": {"count": case.servers, "request": amounts(case.SERVER, "5Gi")},
            "master": {"request": amounts(case.MASTER, "1Gi")},
        }
        for number in range(case.jobs)
    ]
    steps = [[case.step * number, count] for number, count in enumerate(case.web)]
    web = [{"name": WEB, "request": amounts(case.POD, "3Gi"), "steps": steps}] if steps else []
    nodes = [{"count": count, "resources": amounts(int(cores), "103Gi")} for count, cores in case.nodes]
    return Trace.model_validate({"nodes": nodes, "jobs": jobs, "deployments": web})


def _sample_of(simulation: Simulation, case: Case) -> Sample:
    cores: Counter[str] = Counter()
    nodes, web = [], 0
    for allocatable, pods in zip(simulation.layout.allocatable[:, 0].tolist(), simulation.cluster.on, strict=True):
        others = trainers = 0
        for pod in pods.values():
            size = int(simulation.cluster.request(pod)[0]) // 1000
            if pod.phase in {Phase.RUNNING, Phase.LEAVING}:
                cores[WEB if pod.kind is PodKind.FOREIGN else f"job{pod.owner}"] += size
            web += pod.kind is PodKind.FOREIGN and pod.phase is Phase.RUNNING
            if pod.kind is PodKind.TRAINER:
                trainers += pod.phase is not Phase.LEAVING
            else:
                others += size
        nodes.append(FixedNode(allocatable // 1000, others, trainers))
    return Sample(
        at=simulation.now,
        cores=cores,
        trainers={job.uid: len(job.trainers) for job in simulation.trainings.values()},
        at_work={job.uid: job.running for job in simulation.trainings.values()},
        pending=len(simulation.cluster.pending),
        web=web,
        fits=fits(nodes, trainer=case.TRAINER, most=case.jobs * case.most),
    )


def _note_lives(simulation: Simulation, lives: dict[int, list[Any]]) -> None:
    there: set[int] = set()
    for job in simulation.trainings.values():
        for number, pod in job.trainers.items():
            there.add(number)
            life = lives.setdefault(number, [job.uid, simulation.now, math.inf, math.inf])
            if pod.phase is Phase.RUNNING and math.isinf(life[2]):
                life[2] = simulation.now
    for number, life in lives.items():
        if number not in there and math.isinf(life[3]):
            life[3] = simulation.now
