"""The decision which trainers a job should have, by index. Pure.

A trainer that is no longer wanted is drained first, through etcd and the master: it returns its task and exits. Its pod is
deleted when it has ended, or when the master does not list it as a member. The index is free only after that: a drain entry
applies to every trainer of that index, its successor too.

The decision is level-triggered and has no memory, so an operator that was killed between any two actions continues correctly.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["CreateTrainer", "DeleteTrainer", "ScalingDecision", "TrainerPod", "decide", "too_low"]


@dataclass(frozen=True, kw_only=True)
class TrainerPod:
    """The last observed state of a trainer's pod.

    Attributes:
        index: Index of the trainer.
        uid: UID of the pod.
        ended: Its process has ended for good: it succeeded, failed or was evicted.
        lingers: Its process has ended, and another container of the pod still runs.
        failing: Its process has ended with an error, and the kubelet restarts it.
        deleting: It is being deleted.
        lost: Its node is deleted or unreachable.
        ready: The pod is ready.
        current: It was created from the present template.
        works: The master lists the trainer as a member.
        cordoned: Its node is unschedulable, as before a drain.
        priority: Name of its PriorityClass.
        node: Name of its node; empty: it has none yet.
        preferred_node: Its preferred node by the plan, as long as it has no node.
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
    preferred_node: str = ""


@dataclass(frozen=True)
class CreateTrainer:
    """Create the pod of this index."""

    index: int


@dataclass(frozen=True)
class DeleteTrainer:
    """Delete the pod with this UID; `force`: without waiting for its kubelet, which may be unreachable."""

    index: int
    uid: str
    force: bool = False


@dataclass(frozen=True)
class ScalingDecision:
    """The actions for a job's trainers.

    Attributes:
        drain: Indices that the master shall drain: the whole list, as it should be in etcd.
        actions: Pods to create and to delete.
        publish: Whether `drain` differs from the list in etcd.
    """

    drain: tuple[int, ...]
    actions: tuple[CreateTrainer | DeleteTrainer, ...]
    publish: bool


def decide(
    desired: int,
    pods: Sequence[TrainerPod],
    drain: Collection[int],
    *,
    overdue: Collection[int] = (),
    backing_off: Collection[int] = (),
    kept: Mapping[str, int] | None = None,
) -> ScalingDecision:
    """Decide how to bring a job's trainers to the wanted number.

    Args:
        desired: How many trainers the job should have.
        pods: All trainers' pods that exist, in any state; at most one per index.
        drain: The drain list in etcd.
        overdue: Indices that have been in the drain list for too long; their pods are deleted, so the kubelet terminates them.
        backing_off: Indices whose next pod is in back-off. Until it is due the former pod stays, with its reason.
        kept: Node -> how many trainers stay there by the plan. Trainers beyond that leave first. One that has failed since the
            plan is replaced by the next plan, as its room may be needed for another pod. None: nodes do not matter.
    """
    alive = [pod for pod in pods if not (pod.ended or pod.deleting or pod.lost)]
    leaving = _leaving(desired, alive, drain, kept)
    missing = desired - len(alive)
    if kept is not None:
        missing = min(missing, desired - sum(kept.values()) - sum(not pod.node for pod in alive))
    if len(alive) == desired and not leaving and any(pod.cordoned for pod in alive):
        missing = 1  # the successor is created on another node before the trainer on the cordoned node leaves
    actions: list[CreateTrainer | DeleteTrainer] = []
    for pod in sorted(pods, key=lambda pod: pod.index):
        if pod.lost:
            actions.append(DeleteTrainer(pod.index, pod.uid, force=True))
        elif pod.deleting or (pod.ended and pod.index in backing_off):
            continue
        elif pod.ended or (pod.index in leaving and (not pod.works or pod.index in overdue)):
            actions.append(DeleteTrainer(pod.index, pod.uid))
    actions += _created(missing, alive, {pod.index for pod in pods} | set(drain) | set(backing_off))
    draining = tuple(sorted(leaving))
    return ScalingDecision(drain=draining, actions=tuple(actions), publish=set(draining) != set(drain))


def too_low(
    pods: Sequence[TrainerPod], *, minimum: int, desired: int, drain: Collection[int], surplus: str
) -> set[str]:
    """Return the UIDs of trainers whose priority is too low, after the minimum was raised or trainers of higher priority left.

    Args:
        pods: All trainers' pods that exist.
        minimum: How many trainers need the higher priority.
        desired: How many trainers the job should have.
        drain: The drain list in etcd.
        surplus: The lower PriorityClass.
    """
    alive = [pod for pod in pods if not (pod.ended or pod.deleting or pod.lost or pod.index in drain)]
    if len(alive) == 1:
        return set()  # the only trainer keeps working at low priority until another one works
    free = set(range(minimum)) - {pod.index for pod in alive}
    coming = min(len(free), max(0, desired - len(alive)))
    lower = sorted((pod for pod in alive if pod.priority == surplus), key=lambda pod: pod.index)
    lacking = minimum - (len(alive) - len(lower)) - coming
    return {pod.uid for pod in lower[: max(0, lacking)]}


def _created(missing: int, alive: Sequence[TrainerPod], blocked: Collection[int]) -> list[CreateTrainer]:
    """Create pods for the lowest indices that no live trainer has, except where the former pod still exists.

    So the indices stay contiguous: the lowest ones have the higher priority.
    """
    held = {pod.index for pod in alive}
    lowest = (index for index in itertools.count() if index not in held)
    return [CreateTrainer(index) for index in itertools.islice(lowest, max(0, missing)) if index not in blocked]


def _leaving(
    desired: int, alive: Sequence[TrainerPod], drain: Collection[int], kept: Mapping[str, int] | None
) -> set[int]:
    """Return the indices that have to leave: those in the drain list, then those above `desired`, then one of an older template."""
    draining = {pod.index for pod in alive if pod.index in drain}
    # A trainer that does not work yet loses nothing; then the highest index, whose PriorityClass is the lower one.
    candidates = sorted(
        (pod for pod in alive if pod.index not in draining), key=lambda pod: (not pod.works, not pod.ready, pod.index)
    )
    if kept is not None:
        # The plan needs the room there for another pod, now or later.
        more = _beyond(candidates, kept)
        candidates.sort(key=lambda pod: pod.index in more)
    if len(candidates) in {desired, desired + 1} and any(pod.cordoned for pod in candidates):
        return draining | (_moved(candidates) if len(candidates) > desired else set())
    leaving = draining | {pod.index for pod in candidates[desired:]}
    # One at a time: a trainer that is leaving may still count as a working member.
    return leaving | (set() if draining else _rolled(desired, candidates[:desired]))


def _beyond(pods: Sequence[TrainerPod], kept: Mapping[str, int]) -> set[int]:
    """Return the indices of trainers above the number that stays on their node, the last ones in the order of `pods`."""
    there: dict[str, int] = {}
    more = set()
    for pod in pods:
        there[pod.node] = there.get(pod.node, 0) + 1
        if pod.node and there[pod.node] > kept.get(pod.node, 0):
            more.add(pod.index)
    return more


def _moved(pods: Sequence[TrainerPod]) -> set[int]:
    """Return the next trainer to leave a cordoned node, once all others work; a successor elsewhere exists already."""
    if not all(pod.works for pod in pods if not pod.cordoned):
        return set()
    return {max((pod for pod in pods if pod.cordoned), key=lambda pod: (not pod.works, pod.index)).index}


def _rolled(desired: int, remaining: Sequence[TrainerPod]) -> set[int]:
    """Return the next trainer of an older template to leave: one at a time, and a working one only if all trainers work."""
    old = [pod for pod in remaining if not pod.current]
    if not old:
        return set()
    idle = [pod for pod in old if not pod.works]
    if not idle and (len(remaining) < desired or not all(pod.works for pod in remaining)):
        return set()
    return {max(idle or old, key=lambda pod: pod.index).index}
