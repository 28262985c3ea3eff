"""The locations of trainers: how many trainers each job has on each node, as arrays sorted by job, then by node.

A change of a known pair of job and node is made in place. New pairs are buffered, and merged into the arrays by the next
read: many trainers are placed between two reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from shoal.autoscaler.planner.model import Counts, Flags, PlannerJob

__all__ = ["Row", "TrainerLocations", "row"]

_FEW = 16
"""Up to this number of queries the arrays are searched for the node; after more queries they are sorted by node."""

Row = tuple[Mapping[int, int], Counts, Counts]
"""`PlannerJob.held` of a job, its nodes ascending as an array, and the trainers on each of these nodes as an array."""


def row(job: PlannerJob, known: Row | None) -> Row:
    """Return the row of a job.

    Args:
        job: The job.
        known: Its row in the last plan; returned if it was made of the identical `held` object. None: there is no such row.
    """
    if known is not None and known[0] is job.held:
        return known
    size = len(job.held)
    nodes = np.fromiter(job.held.keys(), dtype=np.int64, count=size)
    counts = np.fromiter(job.held.values(), dtype=np.int64, count=size)
    order = nodes.argsort()
    return job.held, nodes[order], counts[order]


class TrainerLocations:
    """The number of trainers of each job on each node.

    Args:
        rows: Row of each job.
        nodes: Number of nodes.
    """

    def __init__(self, rows: Sequence[Row], nodes: int) -> None:
        nothing = np.zeros(0, dtype=np.int64)
        self._nodes = max(1, nodes)
        self._job: Counts = np.repeat(np.arange(len(rows)), [len(each[1]) for each in rows])
        self._node: Counts = np.concatenate([nothing, *(each[1] for each in rows)])
        self._count: Counts = np.concatenate([nothing, *(each[2] for each in rows)])
        self._key: Counts = self._job * self._nodes + self._node
        self._buffered: dict[int, dict[int, int]] = {}
        """Buffered pairs: node -> job -> trainers."""
        self._buffered_jobs: set[int] = set()
        """Jobs with buffered pairs."""
        self._batches: list[tuple[Counts, Counts]] = []
        """Buffered batches: (job * nodes + node, trainers)."""
        self._order: Counts | None = None
        """Order of the arrays by node; None: not computed. `_begins` has the start of each node in this order."""
        self._begins: Counts = nothing
        self._queries = 0

    def change(self, job: int, node: int, more: int) -> int:
        """Add trainers of a job on a node (negative: remove), and return the resulting number there."""
        self._merge(batches_only=True)
        key = job * self._nodes + node
        at = int(self._key.searchsorted(key))
        if at < len(self._key) and self._key[at] == key:
            self._count[at] += more
            return int(self._count[at])
        here = self._buffered.setdefault(node, {})
        here[job] = here.get(job, 0) + more
        self._buffered_jobs.add(job)
        return here[job]

    def add(self, jobs: Counts, nodes: Counts) -> int:
        """Add one trainer for each pair of job and node; return the most that one job gets on one node."""
        keys, counts = np.unique(jobs * self._nodes + nodes, return_counts=True)
        self._batches.append((keys, counts))
        return int(counts.max(initial=0))

    def all(self) -> tuple[Counts, Counts, Counts]:
        """Return the jobs, nodes and counts of all pairs; read-only. A count may be 0."""
        self._merge()
        return self._job, self._node, self._count

    def of_jobs(self, first: int, end: int) -> tuple[Counts, Counts, Counts]:
        """Return the jobs, nodes and counts of all pairs of jobs `first` to `end` - 1; read-only. A count may be 0."""
        self._merge()
        part = self._part(first, end)
        return self._job[part], self._node[part], self._count[part]

    def of(self, job: int) -> tuple[Counts, Counts]:
        """Return the nodes of one job, and the counts there; read-only. A count may be 0."""
        self._merge(batches_only=job not in self._buffered_jobs)
        part = self._part(job, job + 1)
        return self._node[part], self._count[part]

    def _part(self, first: int, end: int) -> slice:
        return slice(*self._key.searchsorted([first * self._nodes, end * self._nodes]).tolist())

    def at(self, node: int) -> dict[int, int]:
        """Return job -> its trainers on a node."""
        self._merge(batches_only=True)
        self._queries += 1
        if self._order is None and self._queries > _FEW:
            by = self._node.astype(np.uint16) if self._nodes <= 2**16 else self._node
            self._order = by.argsort(kind="stable")
            self._begins = self._node[self._order].searchsorted(np.arange(self._nodes + 1))
        if self._order is None:
            found = np.flatnonzero(self._node == node)
        else:
            found = self._order[self._begins[node] : self._begins[node + 1]]
        here = dict(zip(self._job[found].tolist(), self._count[found].tolist(), strict=True))
        for job, count in self._buffered.get(node, {}).items():
            here[job] = here.get(job, 0) + count
        return {job: count for job, count in here.items() if count}

    def rows(self, selected: Flags) -> dict[int, dict[int, int]]:
        """Return job -> node -> trainers, for the wanted jobs.

        Args:
            selected: [J] whether the job is wanted.
        """
        self._merge()
        there = np.flatnonzero(selected[self._job] & (self._count > 0))
        job, node, count = self._job[there], self._node[there].tolist(), self._count[there].tolist()
        jobs = np.flatnonzero(selected)
        bounds = zip(
            jobs.tolist(), job.searchsorted(jobs).tolist(), job.searchsorted(jobs, "right").tolist(), strict=True
        )
        return {number: dict(zip(node[first:end], count[first:end], strict=True)) for number, first, end in bounds}

    def _merge(self, *, batches_only: bool = False) -> None:
        if self._buffered and not batches_only:
            late = [
                (job * self._nodes + node, count)
                for node, here in self._buffered.items()
                for job, count in here.items()
            ]
            keys, counts = np.array(late, dtype=np.int64).T
            self._batches.append((keys, counts))
            self._buffered, self._buffered_jobs = {}, set()
        if not self._batches:
            return
        keys, of = np.unique(np.concatenate([each[0] for each in self._batches]), return_inverse=True)
        counts = np.bincount(of, np.concatenate([each[1] for each in self._batches]), len(keys)).astype(np.int64)
        self._batches = []
        self._order, self._queries = None, 0
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
