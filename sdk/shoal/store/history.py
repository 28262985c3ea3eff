"""Detection of lost writes from the headers of etcd's responses; pure functions.

Etcd can return with older data: its folder was restored from a copy, it lost the tail of its log, or it was wiped. It
reports no error in these cases. Three signs show the loss, none of which is sufficient alone: a different cluster id
(a wiped etcd at the same address has the same id again), a lower revision (other clients' writes may have raised it
again), and the *witness*: an acknowledged write that must be found at its revision. The witness costs a read, so it is
checked only when in doubt: after a lost connection, or after an election (every restart of etcd causes one).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto

__all__ = ["Header", "HistoryVerdict", "KnownWrite", "Seen", "compare_history"]


@dataclass(frozen=True, slots=True)
class Header:
    """Header of every response of etcd: cluster id, revision, and raft term."""

    cluster_id: int
    revision: int
    term: int


@dataclass(frozen=True, slots=True)
class KnownWrite:
    """A write that etcd acknowledged: ``key`` was set to ``value`` (None: deleted) at ``revision``."""

    key: bytes
    value: bytes | None
    revision: int


class HistoryVerdict(Enum):
    """Result of the comparison of two headers."""

    SAME = auto()
    DOUBT = auto()
    FORGOT = auto()


@dataclass(frozen=True, slots=True)
class Seen:
    """Known history of etcd. ``losses`` counts the losses so far; the other fields belong to the present life."""

    losses: int = 0
    header: Header | None = None
    known_write: KnownWrite | None = None

    def with_answer(self, header: Header, known_write: KnownWrite | None) -> Seen:
        """Return this history, updated by a response."""
        known, newest = self.header, self.known_write
        if known is not None and known.revision > header.revision:
            header = replace(header, revision=known.revision)
        if known_write is not None and (newest is None or newest.revision <= known_write.revision):
            newest = known_write
        return Seen(self.losses, header, newest)

    def forgotten(self, header: Header, known_write: KnownWrite | None) -> Seen:
        """Return a new history that begins with this response."""
        return Seen(self.losses + 1, header, known_write)


def compare_history(before: Seen, header: Header) -> HistoryVerdict:
    """Compare a response with the history that was known when its request was sent.

    The present history must not be used: responses to two threads may arrive in another order than they were made.
    """
    known = before.header
    if known is None:
        return HistoryVerdict.SAME
    if header.cluster_id != known.cluster_id or header.revision < known.revision:
        return HistoryVerdict.FORGOT
    return HistoryVerdict.SAME if header.term == known.term else HistoryVerdict.DOUBT
