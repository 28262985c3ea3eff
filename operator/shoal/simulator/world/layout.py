"""The layout of a trace: its amounts as whole numbers and arrays, which do not change during the simulation.

Every pod has one of a few *shapes* (a request and a pool), so that the scheduler and the planner work on few rows, however
many pods there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from shoal.api import Quantity
from shoal.autoscaler.planner.model import Counts, Flags, Shapes
from shoal.simulator.trace import JobSpec, Trace

__all__ = ["MOST_PODS", "Layout"]

MOST_PODS: Final = 110
"""Default of a node's resource `pods`; the kubelet's default."""
_MOST_AMOUNT: Final = 2**62


class Layout:
    """The nodes and shapes of a trace.

    Attributes:
        resources: Names of the resources; cpu and memory first, pods last.
        names: Names of the nodes.
        allocatable: [N, R] allocatable of each node.
        group: [N] number of each node's pool.
        shapes: Shapes of all pods of the trace.
        allowed: [S, N] whether a node is eligible for a shape, regardless of room.

    Args:
        trace: The trace.
    """

    def __init__(self, trace: Trace) -> None:
        self.resources = _resources(trace)
        self._pools = list(dict.fromkeys(group.pool for group in trace.nodes))
        rows: list[tuple[int, ...]] = []
        names: list[str] = []
        groups: list[int] = []
        for group in trace.nodes:
            row = self._amounts({"pods": Quantity(MOST_PODS), **group.resources})
            for _ in range(group.count):
                names.append(f"{group.pool or 'node'}-{len(names)}")
                rows.append(row)
                groups.append(self._pools.index(group.pool))
        self.names: tuple[str, ...] = tuple(names)
        self.allocatable: Counts = np.array(rows, dtype=np.int64)
        self.group: Counts = np.array(groups, dtype=np.int64)
        self._numbers: dict[tuple[tuple[int, ...], str], int] = {}
        for request, pool in _requests(trace):
            self._numbers.setdefault((self._amounts({**request, "pods": Quantity(1)}), pool), len(self._numbers))
        self.shapes = self._shapes()
        self.allowed: Flags = self.shapes.fits[:, self.group]

    def shape(self, request: Mapping[str, Quantity], pool: str) -> int:
        """Return the shape of pods with this request and pool."""
        return self._numbers[self._amounts({**request, "pods": Quantity(1)}), pool]

    def others(self, job: JobSpec) -> tuple[tuple[int, int], ...]:
        """Return (shape, count) of a job's pods that are not trainers, the master first."""
        parts = [part for part in (job.master, job.servers) if part is not None]
        return tuple((self.shape(part.request, job.pool), part.count) for part in parts)

    def fits_nowhere(self, shape: int) -> bool:
        """Return whether a pod of a shape fits on no node, even on an empty one."""
        room = (self.allocatable >= self.shapes.request[shape]).all(axis=1)
        return not bool((room & self.allowed[shape]).any())

    def _amounts(self, amounts: Mapping[str, Quantity]) -> tuple[int, ...]:
        zero = Quantity(0)
        return tuple(_whole(name, amounts.get(name, zero)) for name in self.resources)

    def _shapes(self) -> Shapes:
        request = np.array([amounts for amounts, _ in self._numbers], dtype=np.int64)
        fits = np.array([[pool in ("", each) for each in self._pools] for _, pool in self._numbers], dtype=np.bool_)
        return Shapes(request=request, fits=fits)


def _whole(name: str, quantity: Quantity) -> int:
    """Return a quantity in thousandths for cpu, in units for other resources; rounded up, as in Kubernetes."""
    return min(math.ceil(quantity.amount * (1000 if name == "cpu" else 1)), _MOST_AMOUNT)


def _requests(trace: Trace) -> list[tuple[Mapping[str, Quantity], str]]:
    found: list[tuple[Mapping[str, Quantity], str]] = []
    for job in trace.jobs:
        found.append((job.request, job.pool))
        found += [(part.request, job.pool) for part in (job.master, job.servers) if part is not None]
    found += [(pods.request, pods.pool) for pods in trace.pods]
    found += [(deployment.request, deployment.pool) for deployment in trace.deployments]
    return found


def _resources(trace: Trace) -> tuple[str, ...]:
    named = {name for group in trace.nodes for name in group.resources}
    named |= {name for request, _ in _requests(trace) for name in request}
    return ("cpu", "memory", *sorted(named - {"cpu", "memory", "pods"}), "pods")
