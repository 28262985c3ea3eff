"""What the ancestor's experiments are judged by: pure functions of samples, with exact packers as the reference.

Amounts of CPU are whole cores. Memory is never short in these experiments (8 GiB of a trainer for its 5 CPUs, of 103 GiB on
a node), so packing is by CPU alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

__all__ = ["FixedNode", "Sample", "fits", "jain", "least_stopped", "mean_over_time", "most_trainers", "needless"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What ran at one moment.

    Attributes:
        at: Seconds since the start of the case.
        cores: By owner, a job or the Deployment: requested CPU of its running pods.
        trainers: By job: trainers that are there and not on their way out.
        at_work: By job: those of them that run.
        pending: Pods without a node.
        web: Running pods of the Deployment.
        fits: Requested CPU if trainers filled all that foreign pods, servers and masters leave where they stand.
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
    """A node at one moment.

    Attributes:
        cores: All of it.
        others: Cores of pods that are no trainers and stay.
        trainers: How many trainers it has.
    """

    cores: int
    others: int
    trainers: int


def fits(nodes: Sequence[FixedNode], *, trainer: int, most: int) -> int:
    """Cores that can be requested where all that is no trainer stays where it is.

    Exact: trainers are alike, so each node takes as many as fit, whatever the others do.
    """
    room = sum(max(0, node.cores - node.others) // trainer for node in nodes)
    return sum(node.others for node in nodes) + trainer * min(most, room)


def most_trainers(nodes: Mapping[int, int], *, trainer: int, fixed: Mapping[int, int], most: int) -> int:
    """The most trainers that can be packed beside other pods which may stand anywhere.

    Args:
        nodes: Cores of a node -> how many such nodes.
        trainer: Cores of one.
        fixed: Cores of a pod of two kinds -> how many of them; all must find room.
        most: Trainers that there are at all.

    Returns:
        The number; -1: not even the others fit.

    Exact, by dynamic programming over nodes: the state is how many pods of each kind are placed yet, the value the most
    trainers beside them.
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
    """The fewest trainers that anybody with perfect knowledge would have to stop so that so many more pods find room.

    Returns:
        The number; -1: not even without any trainer they fit.

    Exact, by dynamic programming over nodes: the state is how many pods have room yet, the value the fewest trainers gone.
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
            # More than are wanted count as all of them.
            reached[min(gain, pods) :] = moved[: pods + 1 - min(gain, pods)]
            reached[pods] = min(reached[pods], moved[max(0, pods - gain) :].min())
            np.minimum(after, reached, out=after)
            if gone and gain >= pods:
                break
        # Less room than there is may be used, too.
        least = np.minimum.accumulate(after[::-1])[::-1]
    return int(least[pods]) if least[pods] < endless else -1


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness (Jain, Chiu and Hawe, 1984): 1 where all are equal, 1/n where one has all."""
    if not any(values):
        return 1.0
    return float(sum(values) ** 2 / (len(values) * sum(value**2 for value in values)))


def mean_over_time(samples: Sequence[Sample], value: Mapping[float, float], *, since: float, until: float) -> float:
    """The mean of a value by time, each sample standing until the next one.

    Args:
        samples: In order.
        value: Time of a sample -> its value.
        since: From when on, in seconds.
        until: Up to when.
    """
    total = seconds = 0.0
    for one, after in pairwise([*(sample.at for sample in samples), until]):
        start, end = max(one, since), min(after, until)
        if end > start:
            total += value[one] * (end - start)
            seconds += end - start
    return total / seconds if seconds else float("nan")


def needless(samples: Sequence[Sample], started: Mapping[str, int], stopped: Mapping[str, int]) -> int:
    """Trainers that came or went though the job had as many before as after: what moved without a need.

    Args:
        samples: Of a time in which nothing else changed.
        started: By job, how many trainers came meanwhile.
        stopped: By job, how many went.
    """
    found = 0
    for job in {*started, *stopped}:
        change = samples[-1].trainers.get(job, 0) - samples[0].trainers.get(job, 0)
        found += started.get(job, 0) + stopped.get(job, 0) - abs(change)
    return found
