"""The foreign pods of a simulation: single pods, and Deployments that are scaled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from shoal.simulator.trace import DeploymentSpec, PodSpec, Trace
from shoal.simulator.world.cluster import Cluster, Phase, Pod, PodKind, rank_of
from shoal.simulator.world.layout import Layout

__all__ = ["Arrivals", "World"]


class World(Protocol):
    """The part of the simulation that arrivals use."""

    now: float
    cluster: Cluster
    layout: Layout

    def at(
        self,
        time: float,
        action: Callable[[], None],
        *,
        of_trace: bool = False,
        is_valid: Callable[[], bool] | None = None,
    ) -> None:
        """Schedule an event, see `Simulation.at`."""

    def create(self, pod: Pod) -> None:
        """Create a pod."""

    def kill(self, pod: Pod) -> None:
        """Delete a pod."""


@dataclass
class _Deployment:
    spec: DeploymentSpec
    shape: int
    pods: dict[int, Pod] = field(default_factory=dict)


class Arrivals:
    """The source of foreign pods: schedules the arrivals of a trace.

    Args:
        world: The simulation.
        trace: The trace.
    """

    def __init__(self, world: World, trace: Trace) -> None:
        self._world = world
        self._owner = len(trace.jobs)
        self._of: dict[int, _Deployment] = {}
        for spec in trace.pods:
            world.at(spec.arrival, partial(self._come, spec), of_trace=True)
        for each in trace.deployments:
            deployment = _Deployment(each, world.layout.shape(each.request, each.pool))
            for time, replicas in each.steps:
                world.at(time, partial(self._scale, deployment, replicas), of_trace=True)

    def replace(self, pod: Pod) -> None:
        """Replace an evicted pod of a Deployment; a single pod is not replaced."""
        deployment = self._of.pop(pod.number, None)
        if deployment is not None:
            del deployment.pods[pod.number]
            self._one_more(deployment)

    def _come(self, spec: PodSpec) -> None:
        shape = self._world.layout.shape(spec.request, spec.pool)
        for index in range(spec.count):
            name = spec.name if spec.count == 1 else f"{spec.name}-{index}"
            self._world.create(self._pod(spec, name, shape, lifetime=spec.lifetime))

    def _scale(self, deployment: _Deployment, replicas: int) -> None:
        """Scale a Deployment by the rules of a ReplicaSet: pending pods are deleted first, then the newest."""
        pods = sorted(deployment.pods.values(), key=lambda pod: (pod.phase is Phase.PENDING, pod.number))
        for pod in reversed(pods[replicas:]):
            del deployment.pods[pod.number], self._of[pod.number]
            self._world.kill(pod)
        for _ in range(replicas - len(pods)):
            self._one_more(deployment)

    def _one_more(self, deployment: _Deployment) -> None:
        pod = self._pod(deployment.spec, "", deployment.shape)
        deployment.pods[pod.number] = pod
        self._of[pod.number] = deployment
        self._world.create(pod)

    def _pod(self, spec: PodSpec | DeploymentSpec, name: str, shape: int, *, lifetime: float | None = None) -> Pod:
        number = self._world.cluster.number()
        return Pod(
            number=number,
            name=name or f"{spec.name}-{number}",
            kind=PodKind.FOREIGN,
            owner=self._owner,
            shape=shape,
            rank=rank_of(spec.priority, PodKind.FOREIGN),
            priority=spec.priority,
            created=self._world.now,
            preempts=spec.preempts,
            lifetime=lifetime,
        )
