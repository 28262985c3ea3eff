"""Messages between observers (the local runner, `shoal status`) and the master."""

from __future__ import annotations

from shoal.protocol.messages.common import Message, Part

__all__ = ["Evaluation", "JobAccount", "JobProgress", "Member", "Observe", "Samples"]


class Observe(Message, frozen=True):
    """Request the job's progress: at once, and then every 0.2 s; sent by an observer to the master."""


class Member(Part, frozen=True):
    """One process of the job; ``since`` is the number of seconds since it connected."""

    role: str
    index: int
    life: int
    pid: int
    host: str
    address: str
    state: str
    task: str
    since: float


class Evaluation(Part, frozen=True):
    """The score of the ``number``-th evaluation within an epoch, as JSON text."""

    epoch: int
    number: int
    score: str


class Samples(Part, frozen=True):
    """The account of samples, over all epochs. ``counted`` includes ``skipped``."""

    expected: int
    counted: int
    lost: int
    twice: int
    skipped: int


class JobAccount(Part, frozen=True):
    """The job's final account."""

    state: str
    epochs: int
    samples: Samples
    joins: int
    leaves: int
    deaths: int
    replayed: int
    seconds: float


class JobProgress(Message, frozen=True):
    """The job's progress; the master's reply to ``Observe``.

    ``state``: Starting, Running, Saving, Complete or Failed. ``samples_done`` and ``samples_epoch`` are of the open
    epoch, ``samples_total`` over all epochs; ``rate`` is in samples per second; ``left_seconds`` < 0 when unknown;
    ``stall_reason``: the reason when no task is being finished; ``events`` are (number, time, level, text), newest last.
    """

    state: str
    reason: str
    generation: int
    etcd: str
    epoch: int
    epochs: int
    samples_done: int
    samples_epoch: int
    samples_total: int
    samples_expected: int
    rate: float
    left_seconds: float
    values: dict[str, float]
    members: list[Member]
    evaluations: list[Evaluation]
    retries: int
    skipped: int
    replayed: int
    not_finite: int
    joins: int
    leaves: int
    deaths: int
    saved: list[str]
    stall_reason: str
    events: list[tuple[int, float, str, str]]
    account: JobAccount | None
