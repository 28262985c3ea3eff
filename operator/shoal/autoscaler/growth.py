"""How the jobs of one class grow, and what they exchange: the one with the smallest share is always the next.

Many are placed at a time as long as there is room for all of them: the highest level is found to which every job can be
raised at once. From there on it goes one by one, until nobody finds room any more.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from shoal.autoscaler.board import Board, Leaver
from shoal.autoscaler.model import Counts, Memory, Snapshot

__all__ = ["Growth"]

_CLOSE: Final = 1e-9
_NODES: Final = 32
"""Nodes that are looked at closely where one trainer's room is not enough for another."""
_FEW: Final = 4
"""So many are placed one by one rather than by one more search for the level."""
Floats = npt.NDArray[np.float64]
Placement = tuple[int, Counts, Counts, Counts]
"""Shape, nodes, how many on each, and the job of each trainer."""


class Growth:
    """Growth of all classes, one after the other.

    Args:
        board: Where things stand; minimums are settled.
        step: [J] by how much one trainer more raises a job's share.
        top: [J] most trainers.
        snapshot: The cluster.
        memory: Of the last plan.
    """

    def __init__(self, board: Board, *, step: Floats, top: Counts, snapshot: Snapshot, memory: Memory) -> None:
        self._board = board
        self._step = step
        self._top = top
        self._now = snapshot.now
        self._memory = memory
        self.moved: dict[str, tuple[float, bool]] = {}
        """Who gave (False) or got (True) a trainer for fairness alone."""
        self.blocked: set[int] = set()
        """Who would have got one, but for the limits on such moves."""

    def grow(self, jobs: list[int], rank: int, *, moves: int, cool_down: float) -> int:
        """All jobs of a class; how many moves for fairness are left."""
        board = self._board
        board.settle_many(jobs, minimum=False)
        while True:
            self._fill(jobs, rank)
            traded = self._exchange(jobs, moves=moves, cool_down=cool_down)
            moves -= traded
            if not traded:
                return moves

    def _level(self, job: int) -> float:
        return float((self._board.count[job] + 1) * self._step[job])

    def _share(self, job: int) -> float:
        return float(self._board.count[job] * self._step[job])

    def _order(self, job: int) -> tuple[float, int, float, str]:
        each = self._board.jobs[job]
        return self._level(job), -each.trainers, each.since, each.uid

    def _room_to_grow(self, jobs: Sequence[int], closed: set[int]) -> list[int]:
        numbers = np.array(jobs, dtype=np.int64)
        below = numbers[self._board.count[numbers] < self._top[numbers]]
        if closed:
            below = below[~np.isin(self._board.shape[below], list(closed))]
        grow: list[int] = below.tolist()
        return grow

    # --- Into room that is free, and that lower classes give ---

    def _fill(self, jobs: Sequence[int], rank: int) -> None:
        board = self._board
        closed: set[int] = set()
        tiers = board.tiers(surplus_below=rank, minimums_below=0)
        hungry = self._room_to_grow(jobs, closed)
        while hungry:
            if not tiers:
                closed |= {shape for shape in set(board.shape[hungry].tolist()) if not board.fits(shape).any()}
                hungry = self._room_to_grow(hungry, closed)
            self._raise_together(hungry)
            hungry = self._room_to_grow(hungry, closed)
            self._one_by_one(hungry, tiers, closed)
            hungry = self._room_to_grow(hungry, closed)

    def _one_by_one(self, jobs: Sequence[int], tiers: Sequence[int], closed: set[int]) -> None:
        """Until a shape finds no room any more: those that are left may be raised together again."""
        board = self._board
        line = [(self._order(job), job) for job in jobs]
        heapq.heapify(line)
        while line:
            _, job = heapq.heappop(line)
            shape = int(board.shape[job])
            node = board.free_node(shape)
            if node < 0:
                found = board.make_room(shape, tiers, share=self._share) if tiers else None
                if found is None:
                    closed.add(shape)
                    return
                node = found[0]
                for each in found[1]:
                    board.leave(each.job, each.node)
            board.add(job, node)
            if board.count[job] < self._top[job]:
                heapq.heappush(line, (self._order(job), job))

    def _raise_together(self, jobs: Sequence[int]) -> None:
        """To the highest level at which all of them find room."""
        if not jobs:
            return
        board, numbers = self._board, np.array(jobs, dtype=np.int64)
        counts, step, top = board.count[numbers], self._step[numbers], self._top[numbers]
        shapes, of = np.unique(board.shape[numbers], return_inverse=True)
        room = np.array([int(board.fits(int(shape)).sum()) for shape in shapes])

        def at(level: float) -> Counts:
            wanted = np.minimum(np.floor(level / step + _CLOSE), top).astype(np.int64)
            more: Counts = np.maximum(wanted, counts) - counts
            return more

        def placed(more: Counts) -> list[Placement] | None:
            if (np.bincount(of, more, minlength=len(shapes)) > room).any():
                return None
            return self._placed(numbers, more)

        low, high = 0.0, float((top * step).max())
        best = placed(at(high))
        if best is None:
            # Closer than a step of anybody's there is nothing between them but who goes first.
            while high - low > step.min() / 4 and int((at(high) - at(low)).sum()) > _FEW:
                level = (low + high) / 2
                low, high = (low, level) if placed(at(level)) is None else (level, high)
            best = placed(at(low))
        for shape, nodes, each, takers in best or ():
            board.add_many(takers, shape, nodes, each)

    def _placed(self, jobs: Counts, more: Counts) -> list[Placement] | None:
        """Where so many more of each job find room; None: they do not."""
        board = self._board
        room: Counts | None = None
        placed: list[Placement] = []
        shapes = board.shape[jobs]
        needs = {int(shape): int(more[shapes == shape].sum()) for shape in np.unique(shapes)}
        needs = {shape: count for shape, count in needs.items() if count}
        for shape in sorted(needs, key=lambda shape: (-int(board.request[shape].max()), shape)):
            most = board.fits(shape) if room is None else board.capacity(shape, room)
            found = board.fit(needs[shape], most)
            if found is None:
                return None
            nodes, each = found
            if len(needs) > 1:
                room = board.free.copy() if room is None else room
                room[nodes] -= each[:, None] * board.request[shape]
            mine = shapes == shape
            placed.append((shape, nodes, each, np.repeat(jobs[mine], more[mine])))
        return placed

    # --- Among themselves ---

    def _exchange(self, jobs: Sequence[int], *, moves: int, cool_down: float) -> int:
        """Who finds no room takes from those who would still have no less than he; how many gave."""
        board = self._board
        closed: set[int] = set()
        for job in sorted(self._room_to_grow(jobs, closed), key=self._order):
            shape = int(board.shape[job])
            if shape in closed or self._rests(job, got=False, cool_down=cool_down):
                continue
            found = self._giver(job, jobs, cool_down=cool_down)
            # Who holds more than the poorest of a shape has no more givers than he.
            closed.add(shape)
            if found is None:
                continue
            node, leavers = found
            if len(leavers) > moves:
                self.blocked.add(job)
                continue
            for each in leavers:
                board.leave(each.job, each.node)
                self.moved[board.jobs[each.job].uid] = (self._now, False)
            board.add(job, node)
            self.moved[board.jobs[job].uid] = (self._now, True)
            # Who gave may want to grow elsewhere, and what one trainer leaves may be too much for another.
            return len(leavers)
        return 0

    def _rests(self, job: int, *, got: bool, cool_down: float) -> bool:
        """Whether a job's last move for fairness was the other way, and not long ago."""
        before = self._memory.moved.get(self._board.jobs[job].uid)
        return before is not None and before[1] is got and self._now - before[0] < cool_down

    def _giver(self, job: int, jobs: Sequence[int], *, cool_down: float) -> tuple[int, list[Leaver]] | None:
        """A node where richer jobs make room for one trainer, and who leaves there: fewest, of the richest."""
        board = self._board
        level = self._level(job)
        givers = list(self._richer(job, jobs, level, cool_down))
        if not givers:
            return None
        rich = np.zeros(len(board.jobs), dtype=np.bool_)
        rich[givers] = True
        request, where = board.request[board.shape[job]], board.eligible[board.shape[job]]
        of, node, count = board.entries()
        able = rich[of] & where[node]
        of, node, count = of[able], node[able], count[able]
        enough = np.flatnonzero((board.free[node] + board.request[board.shape[of]] >= request).all(axis=1))
        share = board.count * self._step
        for each in enough[np.lexsort((node[enough], of[enough], -share[of[enough]]))].tolist():
            giver, there = int(of[each]), int(node[each])
            if board.at[giver].get(there):
                return there, [Leaver(giver, there)]
        sums = board.sum_of(node, of, count)
        wide = np.flatnonzero(where & (board.free + sums >= request).all(axis=1))
        found = (self._together(int(there), givers, level, request) for there in wide[:_NODES])
        several = [each for each in found if each is not None]
        return min(several, key=lambda each: (len(each[1]), each[0])) if several else None

    def _together(
        self, node: int, givers: Sequence[int], level: float, request: Counts
    ) -> tuple[int, list[Leaver]] | None:
        """Several that leave a node so that there is room; None: that is not enough."""
        board = self._board
        lacks = request - board.free[node]
        chosen: list[Leaver] = []
        for giver in givers:
            own = board.request[board.shape[giver]]
            for _ in range(min(board.at[giver].get(node, 0), self._may_give(giver, level))):
                if not (own[lacks > 0] > 0).any():
                    break
                chosen.append(Leaver(giver, node))
                lacks = lacks - own
        return (node, chosen) if chosen and (lacks <= 0).all() else None

    def _richer(self, job: int, jobs: Sequence[int], level: float, cool_down: float) -> Iterator[int]:
        """The richest first."""
        board, numbers = self._board, np.array(jobs, dtype=np.int64)
        count, step = board.count[numbers], self._step[numbers]
        able = numbers[(count * step - level >= step * (1 - _CLOSE)) & (count > board.min[numbers]) & (numbers != job)]
        for giver in sorted(able.tolist(), key=lambda each: (-self._share(each), each)):
            if not self._rests(giver, got=True, cool_down=cool_down):
                yield giver

    def _may_give(self, giver: int, level: float) -> int:
        """How many it can give and have no less than this share, and its minimum."""
        board = self._board
        over = int(np.floor((self._share(giver) - level) / self._step[giver] + _CLOSE))
        return max(0, min(over, int(board.count[giver] - board.min[giver])))
