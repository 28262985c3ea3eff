"""The colocation of other pods with trainers, so that they displace the fewest trainers. Pure.

A parameter server of 4 CPUs on a node of 18 CPUs displaces one trainer of 5 CPUs; a second parameter server on that node
displaces none. So nodes are compared by the displaced trainers per pod, for the best number of pods on one node.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from shoal.autoscaler.planner.model import Counts

__all__ = ["colocated"]

_MOST_TOGETHER: Final = 8
"""Most pods on one node that one step considers; further pods are placed by further steps."""
_MANY: Final = 2**31
_COST_UNITS: Final = 1000
"""Displaced trainers per pod are compared in thousandths."""


def colocated(
    count: int, *, request: Counts, trainer: Counts, room: Counts, order: Counts, free: Counts | None = None
) -> Counts | None:
    """Return the number of pods for each node, so that they displace approximately as few trainers as possible.

    Greedy: each step takes the nodes with the lowest cost per pod, each with the number of pods that has this cost.

    Args:
        count: Pods.
        request: [R] requests of one pod.
        trainer: [R] requests of one trainer.
        room: [N, R] room for these pods and for trainers; zero on nodes that are not eligible.
        order: [N] order of nodes with equal costs; the least is taken first.
        free: [N, R] part of `room` that is free; then only trainers in the rest of it count as displaced. None: all of `room`
            is free, and the trainers that would fit into it count as displaced.

    Returns:
        [N] pods; None: not all of them fit.
    """
    placed = np.zeros(len(room), dtype=np.int64)
    left, room = count, room.copy()
    there = _fit(room, trainer) - (_fit(free, trainer) if free is not None else 0)
    while left:
        price, number = _cheapest(min(left, _MOST_TOGETHER), request, trainer, room, there)
        best = int(price.min(initial=_MANY))
        if best >= _MANY:
            return None
        nodes = np.flatnonzero(price == best)
        # Nodes that take most pods at this cost come first.
        nodes = nodes[np.lexsort((nodes, order[nodes], -number[nodes]))]
        total = np.cumsum(number[nodes])
        # A node takes its full number of pods or none: for fewer pods another node may be cheaper.
        nodes = nodes[: max(1, int(np.searchsorted(total, left, side="right")))]
        taken = number[nodes]
        placed[nodes] += taken
        room[nodes] -= taken[:, None] * request
        there[nodes] = np.minimum(there[nodes], _fit(room[nodes], trainer))
        left -= int(taken.sum())
    return placed


def _cheapest(most: int, request: Counts, trainer: Counts, room: Counts, there: Counts) -> tuple[Counts, Counts]:
    """Return [N] the lowest cost per pod, and [N] the number of pods that has it.

    Returns:
        Cost in thousandths of a trainer, `_MANY` where no pod fits; number of pods.
    """
    price = np.full(len(room), _MANY, dtype=np.int64)
    number = np.zeros(len(room), dtype=np.int64)
    for together in range(1, most + 1):
        after = room - together * request
        good = (after >= 0).all(axis=1)
        if not good.any():
            break
        cost = _COST_UNITS * np.maximum(there - _fit(after, trainer), 0) // together
        better = good & (cost <= price)
        price[better], number[better] = cost[better], together
    return price, number


def _fit(room: Counts, request: Counts) -> Counts:
    """Return [N] how many pods with a request fit into each room."""
    asked = np.flatnonzero(request)
    if not len(asked):
        return np.full(len(room), _MANY // _COST_UNITS // _MOST_TOGETHER, dtype=np.int64)
    found: Counts = (np.maximum(room[:, asked], 0) // request[asked]).min(axis=1)
    return found
