"""Which trainers a job should have, one by one. Pure: what is seen comes in, what is to be done goes out.

A trainer that is not wanted any more is told first, through etcd and the master: it hands its task back and ends. Its pod
is deleted when it has ended (or is not there any more as far as the master knows). Only then is its index free: the word
that an index shall leave would send its successor away too.

There is no memory: every call looks at the level of things, so an operator that was killed between any two actions goes on
as if nothing had been.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["CreateTrainer", "DeleteTrainer", "ScalingDecision", "TrainerPod", "decide", "too_low"]


@dataclass(frozen=True, kw_only=True)
class TrainerPod:
    """A trainer's pod as it was last seen.

    Attributes:
        index: Its index.
        uid: Of the pod.
        ended: Its process has ended for good: succeeded, failed or evicted.
        lingers: It has, and another container of the pod runs on.
        failing: Its process has ended with an error, and is started again in place.
        deleting: It is being deleted.
        lost: Its node is gone or has not answered for too long.
        ready: Its process runs.
        current: It was made from the present template.
        works: The master has it as a member.
        cordoned: Its node takes no new pods, as one that is to be drained.
        priority: Its PriorityClass.
        node: Where it is; empty: nowhere yet.
        wish: Where the plan wanted it, as long as it is nowhere.
    """

    index: int
    uid: str
    ended: bool = False
    lingers: bool = False
    failing: bool = False
    deleting: bool = False
    lost: bool = False
    ready: bool = False
    current: bool = True
    works: bool = False
    cordoned: bool = False
    priority: str = ""
    node: str = ""
    wish: str = ""


@dataclass(frozen=True)
class CreateTrainer:
    """Make the pod of this index."""

    index: int


@dataclass(frozen=True)
class DeleteTrainer:
    """Delete this very pod; ``force`` without waiting for a kubelet that may be gone."""

    index: int
    uid: str
    force: bool = False


@dataclass(frozen=True)
class ScalingDecision:
    """What is to be done now.

    Attributes:
        drain: Indices that the master shall send away: the whole list, as it should stand in etcd.
        actions: What to do with pods.
        tell: Whether ``drain`` differs from what stands in etcd.
    """

    drain: tuple[int, ...]
    actions: tuple[CreateTrainer | DeleteTrainer, ...]
    tell: bool


def decide(
    wanted: int,
    pods: Sequence[TrainerPod],
    drain: Collection[int],
    *,
    overdue: Collection[int] = (),
    resting: Collection[int] = (),
    stays: Mapping[str, int] | None = None,
) -> ScalingDecision:
    """Bring a job's trainers in line with how many are wanted.

    Args:
        wanted: How many there shall be.
        pods: All trainers' pods that exist, in any state; at most one per index.
        drain: What stands in etcd now.
        overdue: Of those that are to leave: who was told too long ago and is sent away by its kubelet now.
        resting: Indices whose next pod is not due yet, by the back-off. Until then the former pod stays, with its reason.
        stays: Node -> how many stay there, of a plan: who is more leaves first, and who died since then is replaced when
            a plan knows of it, as it may be that somebody else needs the room. None: it does not matter where.
    """
    alive = [pod for pod in pods if not (pod.ended or pod.deleting or pod.lost)]
    leaving = _leaving(wanted, alive, drain, stays)
    missing = wanted - len(alive)
    if stays is not None:
        missing = min(missing, wanted - sum(stays.values()) - sum(not pod.node for pod in alive))
    if len(alive) == wanted and not leaving and any(pod.cordoned for pod in alive):
        missing = 1  # it comes elsewhere before the one on the cordoned node leaves
    actions: list[CreateTrainer | DeleteTrainer] = []
    for pod in sorted(pods, key=lambda pod: pod.index):
        if pod.lost:
            actions.append(DeleteTrainer(pod.index, pod.uid, force=True))
        elif pod.deleting or (pod.ended and pod.index in resting):
            continue
        elif pod.ended or (pod.index in leaving and (not pod.works or pod.index in overdue)):
            actions.append(DeleteTrainer(pod.index, pod.uid))
    actions += _created(missing, alive, {pod.index for pod in pods} | set(drain) | set(resting))
    told = tuple(sorted(leaving))
    return ScalingDecision(drain=told, actions=tuple(actions), tell=set(told) != set(drain))


def too_low(pods: Sequence[TrainerPod], *, fewest: int, wanted: int, drain: Collection[int], surplus: str) -> set[str]:
    """Uids of those whose priority is too low, as too few have a higher one: the minimum was raised, or others left.

    Args:
        pods: All trainers' pods that exist.
        fewest: How many have to have the higher one.
        wanted: How many trainers there shall be.
        drain: Who was told to leave.
        surplus: The lower PriorityClass.
    """
    alive = [pod for pod in pods if not (pod.ended or pod.deleting or pod.lost or pod.index in drain)]
    if len(alive) == 1:
        return set()  # better one of low priority than nobody until its successor works
    free = set(range(fewest)) - {pod.index for pod in alive}
    coming = min(len(free), max(0, wanted - len(alive)))
    lower = sorted((pod for pod in alive if pod.priority == surplus), key=lambda pod: pod.index)
    lacking = fewest - (len(alive) - len(lower)) - coming
    return {pod.uid for pod in lower[: max(0, lacking)]}


def _created(missing: int, alive: Sequence[TrainerPod], blocked: Collection[int]) -> list[CreateTrainer]:
    """New pods for the lowest indices that nobody alive has; one whose former pod is not gone yet is waited for.

    So indices stay together: the first ones have the higher priority.
    """
    held = {pod.index for pod in alive}
    lowest = (index for index in itertools.count() if index not in held)
    return [CreateTrainer(index) for index in itertools.islice(lowest, max(0, missing)) if index not in blocked]


def _leaving(
    wanted: int, alive: Sequence[TrainerPod], drain: Collection[int], stays: Mapping[str, int] | None
) -> set[int]:
    """Who has to leave: whoever was told so already, then those who are too many, then one of an older template."""
    told = {pod.index for pod in alive if pod.index in drain}
    # Who does not work yet loses nothing; then the highest index, whose class of priority is the lower one.
    rest = sorted(
        (pod for pod in alive if pod.index not in told), key=lambda pod: (not pod.works, not pod.ready, pod.index)
    )
    if stays is not None:
        # Somebody else has need of the room there, or will have.
        more = _beyond(rest, stays)
        rest.sort(key=lambda pod: pod.index in more)
    if len(rest) in {wanted, wanted + 1} and any(pod.cordoned for pod in rest):
        return told | (_moved(rest) if len(rest) > wanted else set())
    leaving = told | {pod.index for pod in rest[wanted:]}
    # One at a time: who is leaving already may still be among those who work.
    return leaving | (set() if told else _rolled(wanted, rest[:wanted]))


def _beyond(pods: Sequence[TrainerPod], stays: Mapping[str, int]) -> set[int]:
    """Who stands where fewer are to stay; the last of them."""
    there: dict[str, int] = {}
    more = set()
    for pod in pods:
        there[pod.node] = there.get(pod.node, 0) + 1
        if pod.node and there[pod.node] > stays.get(pod.node, 0):
            more.add(pod.index)
    return more


def _moved(pods: Sequence[TrainerPod]) -> set[int]:
    """The next one that leaves a cordoned node, when those elsewhere work; what comes beside it makes up for it."""
    if not all(pod.works for pod in pods if not pod.cordoned):
        return set()
    return {max((pod for pod in pods if pod.cordoned), key=lambda pod: (not pod.works, pod.index)).index}


def _rolled(wanted: int, staying: Sequence[TrainerPod]) -> set[int]:
    """The next one of an older template: one at a time, and none that works before its forerunner's successor does."""
    old = [pod for pod in staying if not pod.current]
    if not old:
        return set()
    idle = [pod for pod in old if not pod.works]
    if not idle and (len(staying) < wanted or not all(pod.works for pod in staying)):
        return set()
    return {max(idle or old, key=lambda pod: pod.index).index}
