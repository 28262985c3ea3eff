"""What a plan says in the end: of each job how many, where, how many of them now, and why not more."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from shoal.autoscaler.board import Board
from shoal.autoscaler.model import Allocation, Claim, Counts, Given, Snapshot, Why

__all__ = ["outcome"]


def outcome(
    snapshot: Snapshot,
    board: Board,
    *,
    top: Counts,
    queued: Collection[int],
    claims: tuple[Claim, ...],
    caps: Mapping[str, tuple[int, float]],
    moved: Collection[int],
) -> Allocation:
    """From where things stand at the end of a plan."""
    # What leaves is still there, and what is kept for others is no trainer's.
    now: Counts = snapshot.nodes.room - snapshot.nodes.leaving - board.kept - board.taken
    given = {}
    for number, job in enumerate(board.jobs):
        stays = {node: min(count, job.held.get(node, 0)) for node, count in board.at[number].items()}
        comes = {node: count - stays[node] for node, count in board.at[number].items() if count > stays[node]}
        request = board.request[job.shape]
        soon = 0
        for node, count in comes.items():
            for _ in range(count):
                if not (now[node] >= request)[request > 0].all():
                    break
                now[node] -= request
                soon += 1
        why, words = _why(snapshot, board, number, top=top, queued=queued, claims=claims, caps=caps, moved=moved)
        given[job.uid] = Given(
            trainers=int(board.count[number]),
            stays={node: count for node, count in stays.items() if count},
            comes=comes,
            now=soon,
            why=why,
            words=words,
        )
    return Allocation(jobs=given, claims=claims)


def _why(  # noqa: PLR0911 - one line for each reason
    snapshot: Snapshot,
    board: Board,
    number: int,
    *,
    top: Counts,
    queued: Collection[int],
    claims: tuple[Claim, ...],
    caps: Mapping[str, tuple[int, float]],
    moved: Collection[int],
) -> tuple[Why, str]:
    job = board.jobs[number]
    count = int(board.count[number])
    pod = _pod(snapshot, job.shape)
    if number in queued:
        best = int(np.minimum(board.capacity(job.shape, snapshot.nodes.room), job.max).sum())
        others = f" beside its {sum(each for _, each in job.fixed)} other pods" if job.fixed else ""
        return Why.QUEUED, f"needs {job.min} x {pod}{others}, the cluster has room for {best} at best"
    if job.pinned and count == job.max:
        return Why.PINNED, f"pinned at {count}"
    if job.uid in caps and count >= top[number] and count < job.max:
        return (
            Why.REFUSED,
            f"the scheduler finds no node for more than {count}, though there seems to be room for {pod}",
        )
    if count >= job.max:
        return Why.MAX, f"at max {job.max}"
    for claim in claims:
        if job.uid in claim.victims:
            return Why.CLAIM, f"makes room for {claim.name}"
    waiting = [claim.name for claim in claims if board.eligible[job.shape, claim.node]]
    if number in moved:
        return Why.SHARE, "others of its priority hold more; it gets its share step by step"
    if waiting:
        more = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
        return Why.CLAIM, f"no node has room for {pod}, as room is made for {waiting[0]}{more}"
    return Why.FULL, f"no node has room for {pod}"


def _pod(snapshot: Snapshot, shape: int) -> str:
    """What a pod needs, in words."""
    said = []
    for name, amount in zip(snapshot.resources, snapshot.shapes.request[shape].tolist(), strict=True):
        if not amount or name == "pods":
            continue
        said.append(f"{name} {_amount(name, amount)}")
    return ", ".join(said) or "a pod"


def _amount(name: str, amount: int) -> str:
    if name == "cpu":
        return f"{amount / 1000:g}"
    for unit, size in (("Ti", 2**40), ("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10)):
        if (amount >= size and name in {"memory", "ephemeral-storage"}) or (
            name.startswith("hugepages-") and amount >= size
        ):
            return f"{amount / size:.4g}{unit}"
    return str(amount)
