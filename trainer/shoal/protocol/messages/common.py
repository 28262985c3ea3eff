"""The types, parts and messages that several links have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

__all__ = [
    "NO_GRANT",
    "Attempt",
    "Count",
    "File",
    "Holder",
    "JobEvent",
    "KeepAlive",
    "KeepAliveReply",
    "Lease",
    "Leave",
    "Level",
    "Message",
    "Name",
    "Part",
    "Place",
    "Positive",
    "Score",
    "Seed",
    "SlotMap",
    "SlotReport",
    "parallel",
]

NO_GRANT = 0

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
"""A count or an index from 0. The bound is far above a job's numbers; sums still fit into a 64-bit integer."""
Place = Annotated[int, msgspec.Meta(ge=-1, le=1 << 40)]
"""An epoch or a task number from 0; -1 means none."""
Positive = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
"""A count of at least 1."""
Attempt = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Seed = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Name = Annotated[str, msgspec.Meta(max_length=4096)]
"""The name of a file, a host, an address, a tensor or a logged value."""
Score = Annotated[str, msgspec.Meta(max_length=64_000)]
Level = Literal["info", "warning", "error"]


def parallel(*columns: Sequence[Any]) -> None:
    """Raise ValueError if the columns of a table differ in length."""
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"columns of {', '.join(str(len(column)) for column in columns)} rows")


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A piece of a message."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """A message; its class name is its tag."""


# --- Common parts -----------------------------------------------------------------------------------------------


class Lease(Part, frozen=True):
    """A trainer's hold on a task. ``attempt`` counts the leases of the whole job."""

    epoch: Count
    task: Count
    attempt: Attempt


class Holder(Part, frozen=True):
    """A parameter server that holds slots, with the addresses at which it listens (``unix://`` before ``tcp://``)."""

    index: int
    life: int
    addresses: list[Name]


class SlotMap(Message, frozen=True):
    """The slot map, sent by the master to trainers: when all slots are served, and in reply to ``GetSlotMap``.

    ``holders[owner[s]]`` serves slot s under ``grants[s]``; owner -1 and grant 0 mean that no server does.
    """

    holders: list[Holder]
    owner: list[int]
    grants: list[int]

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        parallel(self.owner, self.grants)


class SlotReport(Part, frozen=True):
    """The state of slots with the same history; ``tasks`` are the finished tasks, written by ``TaskSet.encode``.

    ``counts``: batches applied, per slot. ``reached``: epoch and number of the last task of which the slots have any
    batch; (-1, -1) if they have none.
    """

    slots: list[int]
    grants: list[int]
    counts: list[Count]
    tasks: bytes
    reached: tuple[Place, Place]

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        parallel(self.slots, self.grants, self.counts)


class File(Part, frozen=True):
    """A snapshot file of a server: its name and, per slot in it, the number of batches that the slot had applied."""

    name: Name
    slots: list[int]
    counts: list[Count]

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        parallel(self.slots, self.counts)


# --- Every role to the master ------------------------------------------------------------------------------------


class KeepAlive(Message, frozen=True):
    """Keep-alive; sent to the master when nothing was sent or nothing was received for a quarter of the lease."""


class KeepAliveReply(Message, frozen=True):
    """The master's reply to ``KeepAlive``."""


class JobEvent(Message, frozen=True):
    """An event of a trainer or server for the job's log; ``level`` is ``info``, ``warning`` or ``error``."""

    level: Level
    text: str


class Leave(Message, frozen=True):
    """Sent by a trainer or server that leaves in an orderly way (SIGTERM, drained, finished); it returns its leases.

    ``reason``: why the script ended by itself before the job was complete; empty if it did not.
    """

    leases: list[Lease]
    reason: str = ""
