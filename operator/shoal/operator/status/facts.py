"""What a status says beside what actions follow from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from shoal.api.status import Account, Reason

__all__ = ["Facts"]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a status says beside what actions follow from. None: not known.

    Attributes:
        etcd: Whether etcd can be reached; if not, all that is from there is old.
        placed: Names of the job's pods that have a node.
        ready: Names of the job's pods that are ready.
        generation: Of the present master, from its election record.
        heard: When the master's record was last seen to change.
        moved: When samples were last seen to be committed, or the job to come a stage further; by the same clock.
        account: The final one.
        failures: Errors of the script's own in a row.
        restarts: How often the job began again.
        last_failure: When the last of them was.
        why: Why the autoscaler gives no more; empty: nothing was said.
        autoscaled: How the autoscaler treats the job, and more words; None: there is no autoscaler.
    """

    etcd: bool = True
    placed: frozenset[str] | None = None
    ready: frozenset[str] | None = None
    generation: int | None = None
    heard: datetime | None = None
    moved: datetime | None = None
    account: Account | None = None
    failures: int | None = None
    restarts: int | None = None
    last_failure: datetime | None = None
    why: str = ""
    autoscaled: tuple[Reason, str] | None = None
