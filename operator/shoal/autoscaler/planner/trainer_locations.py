"""Where trainers stand: how many each job has at each node, as arrays that are sorted by job, then by node.

Where a job is at a node already a change is made in place. New pairs of job and node are put aside, and sorted in when
somebody looks: many trainers are placed between two looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from shoal.autoscaler.planner.model import Counts, Flags, PlannerJob

__all__ = ["Row", "TrainerLocations", "row"]

_FEW = 16
"""So many nodes are searched for; for more all are sorted by node."""

Row = tuple[Mapping[int, int], Counts, Counts]
"""What a job holds, and the same as arrays: its nodes, ascending, and how many are at each."""


def row(job: PlannerJob, known: Row | None) -> Row:
    """Of a job: as the last plan read it, if it is the very same."""
    if known is not None and known[0] is job.held:
        return known
    size = len(job.held)
    nodes = np.fromiter(job.held.keys(), dtype=np.int64, count=size)
    counts = np.fromiter(job.held.values(), dtype=np.int64, count=size)
    order = nodes.argsort()
    return job.held, nodes[order], counts[order]


class TrainerLocations:
    """All trainers.

    Args:
        rows: Of each job.
        nodes: How many nodes there are.
    """

    def __init__(self, rows: Sequence[Row], nodes: int) -> None:
        nothing = np.zeros(0, dtype=np.int64)
        self._nodes = max(1, nodes)
        self._job: Counts = np.repeat(np.arange(len(rows)), [len(each[1]) for each in rows])
        self._node: Counts = np.concatenate([nothing, *(each[1] for each in rows)])
        self._count: Counts = np.concatenate([nothing, *(each[2] for each in rows)])
        self._key: Counts = self._job * self._nodes + self._node
        self._aside: dict[int, dict[int, int]] = {}
        """By node: job -> count."""
        self._late: set[int] = set()
        """Jobs that are in it."""
        self._many: list[tuple[Counts, Counts]] = []
        self._order: Counts | None = None
        """The arrays by node, and where each node begins; made when somebody has asked for some."""
        self._begins: Counts = nothing
        self._asked = 0

    def change(self, job: int, node: int, more: int) -> int:
        """One or more come to a node, or leave it; how many are there."""
        self._sort_in(many_only=True)
        key = job * self._nodes + node
        at = int(self._key.searchsorted(key))
        if at < len(self._key) and self._key[at] == key:
            self._count[at] += more
            return int(self._count[at])
        here = self._aside.setdefault(node, {})
        here[job] = here.get(job, 0) + more
        self._late.add(job)
        return here[job]

    def add(self, jobs: Counts, nodes: Counts) -> int:
        """One trainer more of each of these jobs, at each of these nodes; the most that came of one job to one node."""
        keys, counts = np.unique(jobs * self._nodes + nodes, return_counts=True)
        self._many.append((keys, counts))
        return int(counts.max(initial=0))

    def all(self) -> tuple[Counts, Counts, Counts]:
        """Jobs, nodes and counts of all, to be read only; a count may be 0."""
        self._sort_in()
        return self._job, self._node, self._count

    def of_jobs(self, first: int, end: int) -> tuple[Counts, Counts, Counts]:
        """The same of jobs that follow each other."""
        self._sort_in()
        part = self._part(first, end)
        return self._job[part], self._node[part], self._count[part]

    def of(self, job: int) -> tuple[Counts, Counts]:
        """Nodes of one job, and counts."""
        self._sort_in(many_only=job not in self._late)
        part = self._part(job, job + 1)
        return self._node[part], self._count[part]

    def _part(self, first: int, end: int) -> slice:
        return slice(*self._key.searchsorted([first * self._nodes, end * self._nodes]).tolist())

    def at(self, node: int) -> dict[int, int]:
        """Job -> how many of its trainers are at a node."""
        self._sort_in(many_only=True)
        self._asked += 1
        if self._order is None and self._asked > _FEW:
            by = self._node.astype(np.uint16) if self._nodes <= 2**16 else self._node
            self._order = by.argsort(kind="stable")
            self._begins = self._node[self._order].searchsorted(np.arange(self._nodes + 1))
        if self._order is None:
            found = np.flatnonzero(self._node == node)
        else:
            found = self._order[self._begins[node] : self._begins[node + 1]]
        here = dict(zip(self._job[found].tolist(), self._count[found].tolist(), strict=True))
        for job, count in self._aside.get(node, {}).items():
            here[job] = here.get(job, 0) + count
        return {job: count for job, count in here.items() if count}

    def rows(self, wanted: Flags) -> dict[int, dict[int, int]]:
        """Of each wanted job: node -> how many of its trainers are there."""
        self._sort_in()
        there = np.flatnonzero(wanted[self._job] & (self._count > 0))
        job, node, count = self._job[there], self._node[there].tolist(), self._count[there].tolist()
        jobs = np.flatnonzero(wanted)
        bounds = zip(
            jobs.tolist(), job.searchsorted(jobs).tolist(), job.searchsorted(jobs, "right").tolist(), strict=True
        )
        return {number: dict(zip(node[first:end], count[first:end], strict=True)) for number, first, end in bounds}

    def _sort_in(self, *, many_only: bool = False) -> None:
        if self._aside and not many_only:
            late = [
                (job * self._nodes + node, count) for node, here in self._aside.items() for job, count in here.items()
            ]
            keys, counts = np.array(late, dtype=np.int64).T
            self._many.append((keys, counts))
            self._aside, self._late = {}, set()
        if not self._many:
            return
        keys, of = np.unique(np.concatenate([each[0] for each in self._many]), return_inverse=True)
        counts = np.bincount(of, np.concatenate([each[1] for each in self._many]), len(keys)).astype(np.int64)
        self._many = []
        self._order, self._asked = None, 0
        at = self._key.searchsorted(keys)
        known = np.zeros(len(keys), dtype=np.bool_)
        inside = at < len(self._key)
        known[inside] = self._key[at[inside]] == keys[inside]
        self._count[at[known]] += counts[known]
        new, at = keys[~known], at[~known]
        self._count = np.insert(self._count, at, counts[~known])
        self._key = np.insert(self._key, at, new)
        self._job = np.insert(self._job, at, new // self._nodes)
        self._node = np.insert(self._node, at, new % self._nodes)
