"""The state of one job in its master, shared by the handlers of its messages.

The handlers are ``servers``, ``trainers``, ``evaluations``, ``model_files`` and ``completion``; ``progress`` reports to
observers. All are pure: they put messages and closes into the outbox, note changes in the records, and receive the time
as an argument. ``service`` carries out the outbox; it sends an acknowledgement only after the records noted with it are
written.
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
    """The settings of a master, from the job's manifest."""

    name: str
    epochs: int | None
    """The manifest's number of epochs; None: the first script's number is used."""
    seed: int | None
    """The manifest's seed; None: the first script's seed is used."""
    servers: int
    checkpoint_seconds: float
    checkpoint_keep: int
    output: str
    lease_seconds: float
    """The lease of a member, in seconds: the master closes a connection that was silent for longer.

    It detects hosts and processes that hang; a closed socket is detected at once.
    """
    step_seconds: float = 600.0
    """The step timeout of a script, in seconds; the trainer measures it. Default: 600."""

    @property
    def slots(self) -> int:
        """The number of slots that the parameters are divided into; constant for a job."""
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
    reason: str


@dataclass
class TrainerView:
    """A trainer that has registered."""

    identity: Identity
    connection: int
    pid: int
    host: str
    since: float
    requests: deque[int] = field(default_factory=deque)
    """Unanswered task requests: the epoch of the trainer's loop, per request."""
    evaluating: tuple[int, int] | None = None
    """Epoch and number of the evaluation whose score the trainer waits for; None: it waits for no score."""
    finished: bool = False
    saving: Save | None = None
    """The model file that the trainer waits for; None: it waits for no file."""
    draining: bool = False
    working_since: float = 0.0


@dataclass
class JobState:
    """The whole state of one job.

    Args:
        settings: The settings from the manifest.
        records: The records that were read from etcd.
        generation: The master's generation: how many masters the job has had, from 1.
        new_grant: Returns a random grant.
        now: The time at the start, in seconds, monotonic.
        clock: Returns the time in seconds, monotonic.
        wall: Returns the time in seconds since 1970.
    """

    settings: MasterSettings
    records: Records
    generation: int
    new_grant: Callable[[], int]
    now: float
    outbox: list[Send | Close] = field(default_factory=list)
    trainers: dict[int, TrainerView] = field(default_factory=dict)
    """Registered trainers by life."""
    servers: dict[int, int] = field(default_factory=dict)
    """A parameter server's life -> its connection."""
    server_details: dict[int, tuple[Identity, int, str, str, float]] = field(default_factory=dict)
    """A parameter server's life -> identity, pid, host, address, time of its connect."""
    expected_back: dict[int, float] = field(default_factory=dict)
    """Members of an earlier master, by life -> the time until which they must reconnect."""
    events: deque[tuple[int, float, str, str]] = field(default_factory=lambda: deque(maxlen=EVENTS_KEPT))
    values: dict[str, float] = field(default_factory=dict)
    failures: dict[tuple[int, int], int] = field(default_factory=dict)
    early_ends: int = 0
    """The number of times that a script ended by itself before the job was complete."""
    plan: EpochPlan | None = None
    queue: TaskQueue | None = None
    evaluates: bool | None = None
    """Whether the script uses ``evaluate``; None until the first request of a later epoch shows it."""
    evaluators: dict[tuple[int, int], int] = field(default_factory=dict)
    """Epoch and number of an evaluation -> life of the trainer that makes it."""
    saver: int | None = None
    last_reason: str = ""
    """The reason of the last script that ended by itself before the job was complete."""
    desired: DesiredState = field(default_factory=DesiredState)
    """The desired state, written by the operator."""
    etcd_problem: str = ""
    """Why etcd cannot be written at present; empty if it can."""
    last_progress: float = 0.0
    """The time of the last progress, in seconds, monotonic."""
    moved_at: float = 0.0
    """The time of the last progress, in seconds since 1970; 0: none yet."""
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
        """Create the task queue for the registered model: divide the epochs into tasks."""
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
        """The number of epochs: the manifest's, else the first script's."""
        return self.settings.epochs or self.records.schedule.epochs

    @property
    def seed(self) -> int:
        """The seed of the samples' order: the manifest's, else the first script's."""
        return self.settings.seed if self.settings.seed is not None else self.records.schedule.seed

    @property
    def ended(self) -> bool:
        """Whether the job is complete or has failed."""
        return self.records.outcome is not None

    def send(self, connection: int, message: Any) -> None:
        """Put a message into the outbox."""
        self.outbox.append(Send(connection, message))

    def event(self, text: str, level: str = "info") -> None:
        """Add an event for people to the job's log."""
        self._event_number += 1
        self.events.append((self._event_number, self.wall(), level, clipped(text)))

    @property
    def final_tasks(self) -> bytes:
        """The tasks that every slot must have at the end, as ``TakeFinalSnapshot`` encodes them."""
        return self.queue.begun().encode() if self.queue is not None and self.queue.stopped else b""

    def note_reached(self) -> bool:
        """Record the last task that was begun; return whether the tasks of a stopped job have grown by it."""
        queue = self.queue
        if queue is None or queue.reached == self.records.reached:
            return False
        self.records.reached = queue.reached
        self.records.note_changed("reached")
        if queue.stopped:
            self.slots.not_final()
        return queue.stopped

    def evaluations_stale(self) -> bool:
        """Discard the last epoch's scores, as reopened tasks will change the model; return whether there were any."""
        return self.queue is not None and self.records.scores_stale(self.queue.last)

    def label(self, life: int) -> str:
        """Return a member's name, such as ``trainer-3``."""
        if life in self.trainers:
            return str(self.trainers[life].identity)
        if life in self.server_details:
            return str(self.server_details[life][0])
        member = self.records.members.get(life)
        return f"{member.role}-{member.index}" if member else "an unknown member"

    def moved(self) -> None:
        """Record progress: samples were committed, or the job entered its next stage."""
        self.last_progress = self.clock()
        self.moved_at = self.wall()
