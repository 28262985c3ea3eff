"""What jobs of one class exchange: who finds no room takes from those who would still have no less than he.

One sweep looks at each shape once, from that of the poorest job on; of a shape only its poorest is looked at, as who holds
more has no more givers than he.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from shoal.autoscaler.board import Board, Leaver, fitting
from shoal.autoscaler.model import Counts, Flags

__all__ = ["Exchange"]

_CLOSE: Final = 1e-9
_NODES: Final = 8
"""Nodes that are looked at closely where one trainer's room is not enough for another."""
Floats = npt.NDArray[np.float64]


class Exchange:
    """Exchange within classes, and who took part.

    Args:
        board: Where things stand.
        step: [J] by how much one trainer more raises a job's share.
        top: [J] most trainers.
        tie: [J] who of several at one level is the next.
        now: Seconds.
        before: Job's uid -> (when it last gave or got one, whether it got it), by the last plan.
    """

    def __init__(
        self,
        board: Board,
        *,
        step: Floats,
        top: Counts,
        tie: Counts,
        now: float,
        before: Mapping[str, tuple[float, bool]],
    ) -> None:
        self._board, self._step, self._top, self._tie, self._now = board, step, top, tie, now
        self._got = np.full(len(step), -np.inf)
        self._gave = np.full(len(step), -np.inf)
        for number, job in enumerate(board.jobs if before else ()):
            if job.uid in before:
                when, got = before[job.uid]
                (self._got if got else self._gave)[number] = when
        self.moved: dict[str, tuple[float, bool]] = {}
        """Who gave (False) or got (True) a trainer for fairness alone."""
        self.blocked: set[int] = set()
        """Who would have got one, but for the limits on such moves."""

    def trades(self, jobs: Counts, *, moves: int, cool_down: float) -> Iterator[int]:
        """One sweep over all shapes of a class; after each trade: how many gave."""
        board = self._board
        for shape in board.shape[self._poorest(jobs, cool_down)].tolist():
            poorest = self._poorest(jobs[board.shape[jobs] == shape], cool_down)
            if not len(poorest):
                continue
            job = int(poorest[0])
            found = self._givers(job, jobs, self._now - self._got >= cool_down)
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
            moves -= len(leavers)
            yield len(leavers)

    def _poorest(self, jobs: Counts, cool_down: float) -> Counts:
        """Of each shape the job that is the next, the poorest first; none that gave a short time ago."""
        board = self._board
        able = jobs[(board.count[jobs] < self._top[jobs]) & (self._now - self._gave[jobs] >= cool_down)]
        level = (board.count[able] + 1) * self._step[able]
        able = able[np.lexsort((self._tie[able], level))]
        first = np.unique(board.shape[able], return_index=True)[1]
        first.sort()
        poorest: Counts = able[first]
        return poorest

    def _givers(self, job: int, jobs: Counts, rested: Flags) -> tuple[int, list[Leaver]] | None:
        """A node where richer jobs make room for one trainer, and who leaves there: fewest, of the richest."""
        board, shape = self._board, int(self._board.shape[job])
        gives = self._may_give(job, jobs, rested)
        if not gives.any():
            return None
        of, node, count = board.places.of_jobs(int(jobs[0]), int(jobs[-1]) + 1)
        count = np.minimum(count, gives[of])
        some = np.flatnonzero(count * board.eligible[shape, node])
        of, node, count = of[some], node[some], count[some]
        request = board.request[shape]
        enough = np.flatnonzero(fitting(board.free[node] + board.request[board.shape[of]], request))
        if len(enough):
            share = (board.count * self._step)[of[enough]]
            best = int(enough[share.argmax()])
            return int(node[best]), [Leaver(int(of[best]), int(node[best]))]
        wide = np.flatnonzero(fitting(board.free + board.sum_of(node, of, count), request) & board.eligible[shape])
        nodes = wide[:_NODES].tolist()
        found = [(each, self._together(each, here, gives, request)) for each, here in board.places.at(nodes).items()]
        return min((each for each in found if each[1]), key=lambda each: (len(each[1]), each[0]), default=None)

    def _may_give(self, job: int, jobs: Counts, rested: Flags) -> Counts:
        """[J] how many each can give and have no less than this job would have, and its minimum."""
        board, gives = self._board, np.zeros(len(self._step), dtype=np.int64)
        level = float((board.count[job] + 1) * self._step[job])
        over = np.floor((board.count[jobs] * self._step[jobs] - level) / self._step[jobs] + _CLOSE).astype(np.int64)
        most = np.minimum(over, board.count[jobs] - board.min[jobs])
        gives[jobs] = np.where(rested[jobs] & (jobs != job), np.maximum(most, 0), 0)
        return gives

    def _together(self, node: int, here: Mapping[int, int], gives: Counts, request: Counts) -> list[Leaver]:
        """Who leaves a node so that there is room, the richest first; all of them together would be enough."""
        board = self._board
        lacks = request - board.free[node]
        chosen: list[Leaver] = []
        for giver in sorted(here, key=lambda each: (-board.count[each] * self._step[each], each)):
            own = board.request[board.shape[giver]]
            for _ in range(min(here[giver], int(gives[giver]))):
                if not (own[lacks > 0] > 0).any():
                    break
                chosen.append(Leaver(giver, node))
                lacks = lacks - own
        return chosen
