"""How long a trainer waits for a parameter server's reply before it closes the connection.

A connection can be half-open without TCP detecting it: a proxy, a NAT or a service mesh acknowledges the bytes but does not
deliver them. The server is still live, and the master has no reason to move its slots. A request without a reply within one
lease is therefore abandoned with its connection and sent again on a new one. This is safe, as a slot ignores a batch that it
already has (rule 12). So that a slow server does not get ever more requests, the timeout doubles with every consecutive
timeout.
"""

from __future__ import annotations

__all__ = ["AnswerTimeout"]

DOUBLINGS = 5
"""Maximum number of doublings: the timeout is at most 320 s with the default lease of 10 s."""


class AnswerTimeout:
    """The reply timeouts of a job's parameter servers, by the ``life`` of the server's process."""

    def __init__(self) -> None:
        self.lease_seconds = 10.0
        """The first timeout. Seconds."""
        self._in_a_row: dict[int, int] = {}

    def seconds(self, life: int) -> float:
        """Return the current timeout for this server, in seconds."""
        return self.lease_seconds * float(2 ** min(DOUBLINGS, self._in_a_row.get(life, 0)))

    def answered(self, life: int) -> None:
        """Reset the timeout of a server that replied."""
        self._in_a_row.pop(life, None)

    def timed_out(self, life: int) -> None:
        """Double the timeout of a server after a request to it timed out."""
        self._in_a_row[life] = self._in_a_row.get(life, 0) + 1

    def retain(self, lives: set[int]) -> None:
        """Forget all servers but these."""
        self._in_a_row = {life: count for life, count in self._in_a_row.items() if life in lives}
