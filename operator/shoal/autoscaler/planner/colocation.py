"""Where pods that are no trainers cost the fewest trainers. Pure.

A parameter server of 4 CPUs on a node of 18 costs one trainer of 5; a second one beside it costs none. So what counts is the
number of trainers that so many of them on one node would cost, for each of them.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from shoal.autoscaler.planner.model import Counts

__all__ = ["colocated"]

_MOST_TOGETHER: Final = 8
"""On one node, as far as this looks ahead: more are placed by looking again."""
_MANY: Final = 2**31
_FINE: Final = 1000
"""Trainers per pod are compared in thousandths."""


def colocated(
    count: int, *, request: Counts, trainer: Counts, room: Counts, order: Counts, free: Counts | None = None
) -> Counts | None:
    """How many of some pods go to each node, so that they cost about as few trainers as possible.

    Greedy: again and again the nodes on which one pod costs least, each with the number of pods at which that is so.

    Args:
        count: Pods.
        request: [R] of one.
        trainer: [R] of one trainer.
        room: [N, R] for these pods and trainers; nodes where none may go have none.
        order: [N] of equals, the ones where this is least are taken first.
        free: [N, R] of it what no trainer has yet; then only trainers that are there can be lost. None: all of it, and those
            that could be there count.

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
        # All of them fit: they are packed as tightly as they come.
        nodes = nodes[np.lexsort((nodes, order[nodes], -number[nodes]))]
        total = np.cumsum(number[nodes])
        # The last node takes its number or none; for fewer another one may be cheaper.
        nodes = nodes[: max(1, int(np.searchsorted(total, left, side="right")))]
        taken = number[nodes]
        placed[nodes] += taken
        room[nodes] -= taken[:, None] * request
        there[nodes] = np.minimum(there[nodes], _fit(room[nodes], trainer))
        left -= int(taken.sum())
    return placed


def _cheapest(most: int, request: Counts, trainer: Counts, room: Counts, there: Counts) -> tuple[Counts, Counts]:
    """Of each node: thousandths of a trainer that a pod costs at best, and of how many pods together. None fit: `_MANY`."""
    price = np.full(len(room), _MANY, dtype=np.int64)
    number = np.zeros(len(room), dtype=np.int64)
    for together in range(1, most + 1):
        after = room - together * request
        good = (after >= 0).all(axis=1)
        if not good.any():
            break
        cost = _FINE * np.maximum(there - _fit(after, trainer), 0) // together
        better = good & (cost <= price)
        price[better], number[better] = cost[better], together
    return price, number


def _fit(room: Counts, request: Counts) -> Counts:
    """[N] how many pods fit."""
    asked = np.flatnonzero(request)
    if not len(asked):
        return np.full(len(room), _MANY // _FINE // _MOST_TOGETHER, dtype=np.int64)
    found: Counts = (np.maximum(room[:, asked], 0) // request[asked]).min(axis=1)
    return found
