"""Messages between trainers and the master."""

from __future__ import annotations

from shoal.protocol.messages.common import Count, Holder, Lease, Message, Name, Positive, Score, Seed, parallel
from shoal.protocol.messages.model import Group, ModelSpec
from shoal.protocol.messages.observer import Evaluation

__all__ = [
    "BatchBegan",
    "Complete",
    "Drain",
    "EpochDone",
    "Evaluate",
    "EvaluateTurn",
    "Evaluated",
    "GetSlotMap",
    "InitialValuesGiven",
    "LogValues",
    "LoopFinished",
    "Metric",
    "NotComplete",
    "ProvideInitialValues",
    "Register",
    "Registered",
    "RegistrationRefused",
    "RequestTask",
    "ReturnTasks",
    "Save",
    "SaveTurn",
    "Saved",
    "ScriptFailed",
    "ScriptHung",
    "Stop",
    "StopEarly",
    "Stopping",
    "TaskCommitted",
    "TaskDone",
    "TaskLeased",
    "TaskReopened",
]


# --- Trainer to master -------------------------------------------------------------------------------------------


class Register(Message, frozen=True):
    """Register this trainer: what it trains, and the leases that it still holds; the first message of a connection.

    ``epochs`` and ``seed`` are the script's, used where the manifest does not set them. The master replies with
    ``Registered`` or ``RegistrationRefused``.
    """

    shape: ModelSpec
    epochs: Positive
    seed: Seed
    leases: list[Lease]
    pid: Count
    host: Name


class RequestTask(Message, frozen=True):
    """Request one more task; the trainer's loop is in ``epoch``. The reply is ``TaskLeased`` or ``EpochDone``."""

    epoch: Count


class TaskDone(Message, frozen=True):
    """Report that every slot s acknowledged a task's last batch under ``grants[s]`` (rule 1).

    The master replies with ``TaskCommitted`` or ``TaskReopened``.
    """

    lease: Lease
    grants: list[int]


class ReturnTasks(Message, frozen=True):
    """Return leases whose tasks this trainer will not finish; the master leases the tasks anew. There is no reply."""

    leases: list[Lease]


class GetSlotMap(Message, frozen=True):
    """Request the slot map; sent while a server does not answer, refuses a grant or is unreachable (rule 12)."""


class LogValues(Message, frozen=True):
    """The values that the script logged last, by name, and counts of batches since the last such message.

    Sent every 0.2 s at most. ``not_finite`` counts logged values that are not finite.
    """

    values: dict[Name, float]
    batches: Count
    skipped: Count
    replayed: Count
    not_finite: Count


class Evaluate(Message, frozen=True):
    """Request the score of an evaluation: the script's ``number``-th call of ``evaluate`` in ``epoch``, from 0.

    The master replies to one trainer with ``EvaluateTurn``, and to all with ``Evaluated`` once the score is known.
    """

    epoch: Count
    number: Count


class Evaluated(Message, frozen=True):
    """The score of an evaluation, as JSON text.

    Sent to the master by the trainer that had the turn, then by the master to all trainers that wait for the score.
    """

    epoch: Count
    number: Count
    score: Score


class Metric(Message, frozen=True):
    """A value that the script passed to a learning rate scheduler: the ``number``-th within ``epoch``, from 0.

    The master keeps the first value that it receives for (epoch, number); there is no reply.
    """

    epoch: Count
    number: Count
    value: float


class LoopFinished(Message, frozen=True):
    """Report that the trainer's loop has ended all epochs; the reply is ``Complete`` or ``NotComplete``."""


class Save(Message, frozen=True):
    """Request that the current model is written to ``path``: the ``number``-th call for it in ``epoch``, from 0.

    After the last epoch, ``epoch`` is the number of epochs. The master replies to one trainer at a time with
    ``SaveTurn``, and to all with ``Saved`` once the file is written.
    """

    path: Name
    epoch: Count
    number: Count


class Saved(Message, frozen=True):
    """The model of a call of ``save``, or of a later call for the same path, is written.

    Sent to the master by the trainer that had the turn, then by the master to all trainers that wait for the file.
    """

    path: Name
    epoch: Count
    number: Count


class StopEarly(Message, frozen=True):
    """Request, from the script in ``epoch``, that the job ends once all tasks that were begun are done.

    The master replies with ``Stopping``. The trainer repeats the request to a new master that has no record of it.
    """

    reason: str
    epoch: Count


class BatchBegan(Message, frozen=True):
    """Announce that the script starts a batch of a watched task; ``samples`` are its indices, 20 at most."""

    lease: Lease
    batch: Count
    samples: list[int]


class InitialValuesGiven(Message, frozen=True):
    """Report that slots have received their initial values under these grants; empty if that failed.

    Sent by the server to the trainer in reply to ``InitialValues``, and by the trainer to the master.
    """

    slots: list[int]
    grants: list[int]


class ScriptFailed(Message, frozen=True):
    """Report that the user's script raised an exception while the trainer held these leases."""

    error: str
    leases: list[Lease]


class ScriptHung(Message, frozen=True):
    """Report that the script has made no progress for ``seconds``; the trainer process exits after it.

    ``activity`` describes the activity (``in batch 2 of ...: samples 5, 7``), ``lease`` is the task if the script is in a
    batch, and ``stack`` has the script's current lines.
    """

    seconds: float
    activity: str
    stack: str
    lease: Lease | None


# --- Master to trainer -------------------------------------------------------------------------------------------


class Registered(Message, frozen=True):
    """The trainer is registered; the reply to ``Register``.

    ``epoch`` is the open epoch; ``slots`` is the number of slots; ``output`` is the manifest's output path or ''.
    ``step_seconds`` is the step timeout of the script, in seconds. ``evaluations`` (the last 1,000) and ``metrics``
    (the last 10,000) are ordered by epoch and number. ``groups`` are the job's registered parameter groups. ``joins``
    is a number that no other life of a trainer has. ``stopping`` is why the script stopped the job, or ''.
    """

    epochs: int
    seed: int
    epoch: int
    slots: int
    output: str
    lease_seconds: float
    step_seconds: float
    trainers: int
    joins: int
    groups: list[Group]
    evaluations: list[Evaluation]
    metrics: list[Metric]
    stopping: str


class RegistrationRefused(Message, frozen=True):
    """The trainer is refused; ``reason`` names the field and the fix. Final for this process."""

    reason: str


class TaskLeased(Message, frozen=True):
    """A task is leased to the trainer; the reply to ``RequestTask``.

    ``left``: batches of the task's epoch that are not done. ``trainers``: the number of registered trainers.
    ``watched``: a trainer died while it held the task, so the trainer must announce each batch (``BatchBegan``).
    """

    lease: Lease
    left: int
    trainers: int
    watched: bool


class EpochDone(Message, frozen=True):
    """Every task up to ``epoch`` is done, or left out as the script stopped the job; the trainer's loop must end.

    The reply to ``RequestTask`` when no task of the loop's epoch is left.
    """

    epoch: int


class TaskCommitted(Message, frozen=True):
    """The trainer's lease has ended: the task is done, or another trainer has the lease; the reply to ``TaskDone``."""

    lease: Lease


class TaskReopened(Message, frozen=True):
    """The task is not done: a slot lost it, or is served under a new grant; the reply to ``TaskDone``.

    The trainer keeps the lease, reads the slot map and continues from the slots' watermarks.
    """

    lease: Lease


class EvaluateTurn(Message, frozen=True):
    """Assign the evaluation to this trainer; the reply is ``Evaluated``."""

    epoch: int
    number: int


class SaveTurn(Message, frozen=True):
    """Assign the writing of the model to this trainer; the reply is ``Saved``."""

    path: str
    epoch: int
    number: int


class Stopping(Message, frozen=True):
    """The script stopped the job, for the script's ``reason``: only tasks that were begun are done. To all trainers."""

    reason: str


class ProvideInitialValues(Message, frozen=True):
    """Request that one trainer sends these slots their initial values, under these grants (rule 11).

    ``holders[owner[i]]`` serves the slot ``slots[i]``. The trainer replies with ``InitialValuesGiven``.
    """

    slots: list[int]
    grants: list[int]
    holders: list[Holder]
    owner: list[int]

    def __post_init__(self) -> None:
        """Refuse columns of different lengths."""
        parallel(self.slots, self.grants, self.owner)


class NotComplete(Message, frozen=True):
    """Tasks are open again or still open: the trainer must loop again. Sent to trainers that finished their loop."""


class Complete(Message, frozen=True):
    """The job is complete: every slot's last snapshot is pinned. Sent to finished trainers and to all servers."""


class Drain(Message, frozen=True):
    """The trainer is drained: it must finish its batch, return its leases and leave."""


class Stop(Message, frozen=True):
    """The job has failed, for this ``reason``; sent to all trainers."""

    reason: str
