"""The state of one job in its master, shared by the desks that handle its messages.

``serving`` deals with parameter servers, ``training`` with trainers, ``evaluating`` with scores, ``saving`` with models'
files, ``ending`` with the job's end, ``progress`` with those who look on. They are pure: what is to be sent or closed goes into the outbox, what is to be kept is noted in the
records, time is handed in. ``service`` carries it out, and sends nothing before the records noted with it are written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shoal.master.state.records import Records
from shoal.master.state.slot_map import SlotAssignments
from shoal.master.state.task_queue import TaskQueue
from shoal.protocol.epoch_plan import EpochPlan
from shoal.protocol.messages import ModelSpec, Save
from shoal.protocol.text_limits import clipped
from shoal.store import DesiredState
from shoal.transport.auth import Identity

__all__ = ["Close", "JobState", "MasterSettings", "Send", "TrainerView"]

EVENTS_KEPT = 200


@dataclass(frozen=True, kw_only=True)
class MasterSettings:
    """What the manifest says, as far as the master must know it."""

    name: str
    epochs: int | None
    """None: as the script says."""
    seed: int | None
    servers: int
    checkpoint_seconds: float
    checkpoint_keep: int
    output: str
    lease_seconds: float
    """A member silent for so long is given up. A closed socket tells at once; this is for the rest."""
    step_seconds: float = 600.0
    """For which a trainer's script may come no further; the trainer keeps the clock."""

    @property
    def slots(self) -> int:
        """How many slots the parameters are cut into; fixed for the life of the job."""
        return max(16, 4 * self.servers)


@dataclass(frozen=True)
class Send:
    """Send a message on a connection."""

    connection: int
    message: Any


@dataclass(frozen=True)
class Close:
    """Close a connection."""

    connection: int
    why: str


@dataclass
class TrainerView:
    """A trainer that has registered."""

    identity: Identity
    connection: int
    pid: int
    host: str
    since: float
    wants: deque[int] = field(default_factory=deque)
    """Tasks asked for and not given yet: the epoch that the trainer's loop was in."""
    evaluating: tuple[int, int] | None = None
    """Epoch and number of the evaluation whose score it waits for."""
    finished: bool = False
    saving: Save | None = None
    """What it waits for to be written."""
    draining: bool = False
    working_since: float = 0.0


@dataclass
class JobState:
    """Everything that the master knows.

    Args:
        settings: From the manifest.
        records: What was read from etcd.
        generation: Which master of this job this is, from 1.
        new_grant: Makes random grants.
        now: The time at the start (seconds, monotonic).
    """

    settings: MasterSettings
    records: Records
    generation: int
    new_grant: Callable[[], int]
    now: float
    outbox: list[Send | Close] = field(default_factory=list)
    trainers: dict[int, TrainerView] = field(default_factory=dict)
    """By the trainer's life."""
    servers: dict[int, int] = field(default_factory=dict)
    """A parameter server's life -> its connection."""
    server_details: dict[int, tuple[Identity, int, str, str, float]] = field(default_factory=dict)
    """A parameter server's life -> identity, pid, host, address, since when."""
    expected_back: dict[int, float] = field(default_factory=dict)
    """Members of an earlier master's time, by life, and when they are given up."""
    events: deque[tuple[int, float, str, str]] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    values: dict[str, float] = field(default_factory=dict)
    failures: dict[tuple[int, int], int] = field(default_factory=dict)
    early_ends: int = 0
    """How often a script ended by itself before the job was complete."""
    plan: EpochPlan | None = None
    queue: TaskQueue | None = None
    evaluates: bool | None = None
    """Whether the script uses ``evaluate``; None until the first epoch's end shows it."""
    evaluators: dict[tuple[int, int], int] = field(default_factory=dict)
    """Epoch and number of an evaluation -> the life of the trainer that makes it."""
    saver: int | None = None
    last_reason: str = ""
    """Why the last script that ended by itself before the job's end did so."""
    wanted: DesiredState = field(default_factory=DesiredState)
    """By the operator."""
    trouble: str = ""
    """What keeps etcd from being written."""
    last_progress: float = 0.0
    moved_at: float = 0.0
    """The same, in seconds since 1970."""
    clock: Callable[[], float] = lambda: 0.0
    wall: Callable[[], float] = lambda: 0.0
    slots: SlotAssignments = field(init=False)
    _event_number: int = 0

    def __post_init__(self) -> None:
        self.slots = SlotAssignments(slots=self.settings.slots, servers=self.settings.servers, new_grant=self.new_grant)
        self.slots.begun = self.records.begun
        self.last_progress = self.now
        if self.records.shape is not None:
            self.adopt_shape(self.records.shape)

    def adopt_shape(self, shape: ModelSpec) -> None:
        """The job has its shape: cut the epochs into tasks."""
        self.plan = EpochPlan(
            samples=shape.samples,
            batch_size=shape.batch_size,
            drop_last=shape.drop_last,
            task_batches=shape.task_batches,
        )
        self.queue = TaskQueue(self.plan, epochs=self.epochs, slots=self.settings.slots, reached=self.records.reached)
        for _ in range(max(self.records.open_epoch, 0) + 1):
            self.queue.open_next()
        if self.records.stopped is not None:
            self.queue.stop()

    @property
    def epochs(self) -> int:
        """How often every sample counts: the manifest's word, else the first script's."""
        return self.settings.epochs or self.records.schedule.epochs

    @property
    def seed(self) -> int:
        """Of the samples' order: the manifest's word, else the first script's."""
        return self.settings.seed if self.settings.seed is not None else self.records.schedule.seed

    @property
    def ended(self) -> bool:
        """Whether the job is complete or has failed."""
        return self.records.outcome is not None

    def send(self, connection: int, message: Any) -> None:
        """Put a message into the outbox."""
        self.outbox.append(Send(connection, message))

    def event(self, text: str, level: str = "info") -> None:
        """Note something that a person wants to know."""
        self._event_number += 1
        self.events.append((self._event_number, self.wall(), level, clipped(text)))

    @property
    def final_tasks(self) -> bytes:
        """What every slot must have in the end, as ``Final`` says it."""
        return self.queue.begun().encode() if self.queue is not None and self.queue.stopped else b""

    def note_reached(self) -> bool:
        """Keep which task was begun last; whether what a stopped job has to do has grown by it."""
        queue = self.queue
        if queue is None or queue.reached == self.records.reached:
            return False
        self.records.reached = queue.reached
        self.records.touch("reached")
        if queue.stopped:
            self.slots.not_final()
        return queue.stopped

    def evaluations_stale(self) -> bool:
        """Tasks came back: the last epoch's scores, if there are any, are of a model that will change."""
        return self.queue is not None and self.records.scores_stale(self.queue.last)

    def label(self, life: int) -> str:
        """A member's name, for people."""
        if life in self.trainers:
            return str(self.trainers[life].identity)
        if life in self.server_details:
            return str(self.server_details[life][0])
        member = self.records.members.get(life)
        return f"{member.role}-{member.index}" if member else "somebody"

    def moved(self) -> None:
        """Something moved: samples were committed, or the job came a stage further."""
        self.last_progress = self.clock()
        self.moved_at = self.wall()
