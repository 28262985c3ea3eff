"""Figures of the EDL benchmark: pure functions of samples, with exact packing as the reference.

Amounts of CPU are whole cores. Memory is never the limit in these experiments (a trainer has 8 GiB and 5 CPUs, a node has
103 GiB), so packing considers CPU only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

__all__ = ["FixedNode", "Sample", "fits", "jain", "least_stopped", "mean_over_time", "most_trainers", "needless"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """State of the cluster at one time.

    Attributes:
        at: Seconds since the start of the case.
        cores: Requested CPU of running pods, by owner (a job or the Deployment). Cores.
        trainers: Number of trainers that are not terminating, by job.
        at_work: Number of these that are Running, by job.
        pending: Number of pods without a node.
        web: Number of running pods of the Deployment.
        fits: Requested CPU if trainers used all room that the present foreign pods, servers and masters leave. Cores.
    """

    at: float
    cores: Mapping[str, int]
    trainers: Mapping[str, int]
    at_work: Mapping[str, int]
    pending: int
    web: int
    fits: int

    @property
    def running(self) -> int:
        """Requested CPU of all running pods, in cores."""
        return sum(self.cores.values())


@dataclass(frozen=True, slots=True)
class FixedNode:
    """A node at one time.

    Attributes:
        cores: Cores of the node.
        others: Cores of pods that are not trainers and do not move.
        trainers: Number of trainers on the node.
    """

    cores: int
    others: int
    trainers: int


def fits(nodes: Sequence[FixedNode], *, trainer: int, most: int) -> int:
    """Return the most cores that can be requested if only trainers are added or moved.

    Exact: trainers are equal, so each node takes as many as fit, independent of the others.
    """
    room = sum(max(0, node.cores - node.others) // trainer for node in nodes)
    return sum(node.others for node in nodes) + trainer * min(most, room)


def most_trainers(nodes: Mapping[int, int], *, trainer: int, fixed: Mapping[int, int], most: int) -> int:
    """Return the most trainers that can be packed together with other pods, which may be placed anywhere.

    Args:
        nodes: Number of nodes, by cores of a node.
        trainer: Cores of a trainer.
        fixed: Number of other pods, by cores of a pod, of exactly two kinds; all must be placed.
        most: Upper bound of the number of trainers.

    Returns:
        The number of trainers; -1 if the other pods alone do not fit.

    Exact, by dynamic programming over nodes: the state is the number of placed pods of each kind, the value is the most
    trainers in addition to them.
    """
    (first, many), (second, more) = fixed.items()
    best = np.full((many + 1, more + 1), -1, dtype=np.int64)
    best[0, 0] = 0
    for cores, count in nodes.items():
        for _ in range(count):
            after = np.full_like(best, -1)
            for a in range(min(many, cores // first) + 1):
                for b in range(min(more, (cores - a * first) // second) + 1):
                    gain = (cores - a * first - b * second) // trainer
                    moved = best[: many + 1 - a, : more + 1 - b]
                    into = after[a:, b:]
                    np.maximum(into, np.where(moved >= 0, moved + gain, -1), out=into)
            best = after
    return int(min(most, best[many, more]))


def least_stopped(nodes: Sequence[FixedNode], *, trainer: int, pod: int, pods: int) -> int:
    """Return the fewest trainers that must be stopped to make room for a number of additional pods.

    Returns:
        The number of trainers; -1 if the pods do not fit even without any trainer.

    Exact, by dynamic programming over nodes: the state is the number of placed pods, the value is the fewest stopped trainers.
    """
    endless = np.iinfo(np.int64).max // 2
    least = np.full(pods + 1, endless)
    least[0] = 0
    for node in nodes:
        free = max(0, node.cores - node.others - trainer * node.trainers)
        after = np.full_like(least, endless)
        for gone in range(node.trainers + 1):
            gain = (free + gone * trainer) // pod
            moved = least + gone
            reached = np.full_like(least, endless)
            # Room for more pods than required counts as room for all of them.
            reached[min(gain, pods) :] = moved[: pods + 1 - min(gain, pods)]
            reached[pods] = min(reached[pods], moved[max(0, pods - gain) :].min())
            np.minimum(after, reached, out=after)
            if gone and gain >= pods:
                break
        # A part of the room may remain unused.
        least = np.minimum.accumulate(after[::-1])[::-1]
    return int(least[pods]) if least[pods] < endless else -1


def jain(values: Sequence[float]) -> float:
    """Return Jain's index of fairness (Jain, Chiu and Hawe, 1984): 1 if all are equal, 1/n if one has all."""
    if not any(values):
        return 1.0
    return float(sum(values) ** 2 / (len(values) * sum(value**2 for value in values)))


def mean_over_time(samples: Sequence[Sample], value: Mapping[float, float], *, since: float, until: float) -> float:
    """Return the mean of a value over time; each sample is valid until the next one.

    Args:
        samples: Samples, in order of time.
        value: Value of each sample, by its time.
        since: Start of the period. Seconds.
        until: End of the period. Seconds.
    """
    total = seconds = 0.0
    for one, after in pairwise([*(sample.at for sample in samples), until]):
        start, end = max(one, since), min(after, until)
        if end > start:
            total += value[one] * (end - start)
            seconds += end - start
    return total / seconds if seconds else float("nan")


def needless(samples: Sequence[Sample], started: Mapping[str, int], stopped: Mapping[str, int]) -> int:
    """Return the number of needless starts and stops: those beyond the change of a job's number of trainers.

    Args:
        samples: Samples of a period without other changes.
        started: Number of trainers that started in the period, by job.
        stopped: Number of trainers that stopped in the period, by job.
    """
    found = 0
    for job in {*started, *stopped}:
        change = samples[-1].trainers.get(job, 0) - samples[0].trainers.get(job, 0)
        found += started.get(job, 0) + stopped.get(job, 0) - abs(change)
    return found
