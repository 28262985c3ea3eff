"""How long a trainer waits for a parameter server's answer before it takes the connection for dead.

A connection can be half-open without TCP's notice: a proxy, a NAT or a service mesh acknowledges the bytes, and nothing
comes of them. The server lives then, and the master has no reason to move its slots. So a request that is not answered
within a lease is given up with its connection, and made again on a new one; nothing is lost by that, as a batch that
the slot has already is known to it (rule 12). A server that is merely slow must not be asked ever more often for it:
each time in a row the wait is twice as long.
"""

from __future__ import annotations

__all__ = ["AnswerTimeout"]

DOUBLINGS = 5
"""The longest wait is so many times doubled: 320 s with the usual lease of 10 s."""


class AnswerTimeout:
    """The waits for the answers of a job's parameter servers, told apart by their lives."""

    def __init__(self) -> None:
        self.lease_seconds = 10.0
        """The first wait, in seconds."""
        self._in_a_row: dict[int, int] = {}

    def seconds(self, life: int) -> float:
        """How long this server may leave a request without an answer, in seconds."""
        return self.lease_seconds * float(2 ** min(DOUBLINGS, self._in_a_row.get(life, 0)))

    def answered(self, life: int) -> None:
        """The server answered."""
        self._in_a_row.pop(life, None)

    def gave_up(self, life: int) -> None:
        """A request to the server was given up."""
        self._in_a_row[life] = self._in_a_row.get(life, 0) + 1

    def only(self, lives: set[int]) -> None:
        """These are all servers that there are; nothing is kept of others."""
        self._in_a_row = {life: count for life, count in self._in_a_row.items() if life in lives}
