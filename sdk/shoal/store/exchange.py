"""The records that the operator and a job's master exchange through etcd, each written by one side only.

Both are level-triggered: reading one late, twice or after a restart has the same effect. A reader ignores unknown
fields, so that operator and masters may have different versions during an upgrade.
"""

from __future__ import annotations

import msgspec

__all__ = ["DesiredState", "MasterRecord", "ReportedScore", "ReportedState"]


class DesiredState(msgspec.Struct, frozen=True):
    """Desired state of a job, written by the operator and enforced by the master.

    Attributes:
        drain: Indices of trainers to drain: they return their leases and exit, and get no new tasks. Default: none.
        suspend: Whether all trainers are drained. Default: false.
    """

    drain: list[int] = []
    suspend: bool = False

    def leaves(self, index: int) -> bool:
        """Return whether the trainer with this index is drained."""
        return self.suspend or index in self.drain


class MasterRecord(msgspec.Struct, frozen=True):
    """The election record of a job's masters: the value of the key ``master``.

    Attributes:
        generation: Generation of the master that leads, from 1.
        nonce: Random text of that master. Default: empty.
        address: Address at which members connect to it. Default: empty.
        commits: Number of commits of that master. Default: 0.
    """

    generation: int
    nonce: str = ""
    address: str = ""
    commits: int = 0


class ReportedScore(msgspec.Struct, frozen=True):
    """The score of an evaluation.

    Attributes:
        epoch: Number of the epoch that was evaluated, from 0.
        values: The finite numbers of the score, by name.
    """

    epoch: int
    values: dict[str, float]


class ReportedState(msgspec.Struct, frozen=True):
    """Progress of a job, written by its master after a change, at most once per second.

    Attributes:
        generation: Generation of the master that wrote the record, from 1.
        state: Starting, Running, Saving, Complete or Failed.
        epoch: Number of the open epoch, from 0.
        epochs: Number of epochs; 0 while unknown.
        samples: Samples committed over all epochs.
        expected: Samples of all epochs together; 0 while unknown.
        rate: Samples per second; 0 while unknown.
        moved: Time of the last committed task, in seconds since 1970; 0 before the first.
        trainers: Indices of the joined trainers.
        servers: Indices of the joined parameter servers.
        served: Whether every slot is served, which trainers need to make steps.
        stall_reason: Why no samples are committed; empty while they are.
        values: The values that the script logged last, by name: at most 20, finite. Default: none.
        scores: Scores of the last evaluations, the oldest first; at most 4. Default: none.
    """

    generation: int
    state: str
    epoch: int
    epochs: int
    samples: int
    expected: int
    rate: float
    moved: float
    trainers: list[int]
    servers: list[int]
    served: bool
    stall_reason: str
    values: dict[str, float] = {}
    scores: list[ReportedScore] = []
