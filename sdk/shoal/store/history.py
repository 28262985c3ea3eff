"""Whether etcd still remembers what it once acknowledged: pure, told of every answer's header.

An etcd can come back older than it was: its folder was restored from a copy, it lost the tail of its log, or somebody
wiped it. It says so in no error. Three things give it away, each alone too weak: another cluster id (but a wiped etcd
at the same address has the same again), a lower revision (but others' writes may have made up for it), and the
*witness*: a write we know of, which must be found at its revision. The witness costs a read, so it is asked only when
there is a doubt: after a lost connection, or after an election (every restart of etcd is one).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto

__all__ = ["Header", "HistoryVerdict", "Seen", "Witness", "judge"]


@dataclass(frozen=True, slots=True)
class Header:
    """What etcd says of itself in every answer."""

    cluster_id: int
    revision: int
    term: int


@dataclass(frozen=True, slots=True)
class Witness:
    """A write that etcd acknowledged: at ``revision``, ``key`` got ``value`` (None: was removed)."""

    key: bytes
    value: bytes | None
    revision: int


class HistoryVerdict(Enum):
    """What a header tells."""

    SAME = auto()
    DOUBT = auto()
    FORGOT = auto()


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of etcd's history. ``life`` counts how often it forgot; everything else is of this life."""

    life: int = 0
    header: Header | None = None
    witness: Witness | None = None

    def with_answer(self, header: Header, witness: Witness | None) -> Seen:
        """The same history, with one more answer."""
        known, newest = self.header, self.witness
        if known is not None and known.revision > header.revision:
            header = replace(header, revision=known.revision)
        if witness is not None and (newest is None or newest.revision <= witness.revision):
            newest = witness
        return Seen(self.life, header, newest)

    def forgotten(self, header: Header, witness: Witness | None) -> Seen:
        """The first answer of another history."""
        return Seen(self.life + 1, header, witness)


def judge(before: Seen, header: Header) -> HistoryVerdict:
    """Compare an answer with what had been seen when its question was asked.

    (With what is seen *now* would be wrong: answers of two threads overtake each other.)
    """
    known = before.header
    if known is None:
        return HistoryVerdict.SAME
    if header.cluster_id != known.cluster_id or header.revision < known.revision:
        return HistoryVerdict.FORGOT
    return HistoryVerdict.SAME if header.term == known.term else HistoryVerdict.DOUBT
