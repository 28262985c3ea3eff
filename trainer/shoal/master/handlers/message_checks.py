"""What a member of the job cannot mean: numbers of tasks, slots and epochs that the job does not have.

The token is the boundary: a member that lies can spoil its own job's model. It must not end the master, nor leave a
record that the next master cannot read. So a message is checked whole, before any part of it is taken; the connection
that it came on is closed. What is merely late (a grant, a lease or a task from before a change) is no such thing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from shoal.master.state.task_queue import TaskQueue
from shoal.protocol import messages as m
from shoal.protocol.task_set import TaskSet
from shoal.transport.auth import Identity

__all__ = ["unfit", "unfit_member"]

ROLES: Final = frozenset({"trainer", "pserver", "observer"})


def unfit_member(identity: Identity, *, servers: int) -> str:
    """Why a process cannot be of a job with so many parameter servers; empty: it can."""
    if identity.role not in ROLES:
        return f"a {identity.role} does not speak to the master"
    if identity.role == "pserver" and identity.index >= servers:
        return f"there is no {identity}: the job has {servers} parameter servers"
    return ""


def unfit(message: Any, queue: TaskQueue | None, *, slots: int) -> str:
    """Why a message cannot be meant; empty: it can.

    Args:
        message: Decoded, so that its types are right.
        queue: The job's tasks; None: the job has no shape yet, and nothing is taken of what speaks of tasks.
        slots: The job's.
    """
    if queue is None:
        return ""
    strange = ""
    match message:
        case m.Register() | m.ReturnTasks() | m.Leave() | m.ScriptFailed():
            strange = _strange_lease(message.leases, queue)
        case m.ScriptHung() if message.lease is not None:
            strange = _strange_lease([message.lease], queue)
        case m.BatchBegan():
            strange = _strange_lease([message.lease], queue)
        case m.TaskDone():
            # A trainer that had a task of an earlier master has said so when it registered.
            strange = _strange_lease([message.lease], queue) or _unopened(message.lease, queue)
        case m.ReportState():
            named = [slot for file in message.files for slot in file.slots]
            strange = _strange_slot([*named, *message.waiting], slots) or _strange_report(message.held, queue, slots)
        case m.GrantReport() | m.MissingTasks():
            strange = _strange_report(message.reports, queue, slots)
        case m.AwaitingInitialValues() | m.SnapshotWritten() | m.FinalSnapshotPinned() | m.InitialValuesGiven():
            strange = _strange_slot(message.slots, slots)
    return strange


def _strange_lease(leases: Iterable[m.Lease], queue: TaskQueue) -> str:
    for lease in leases:
        if not _exists((lease.epoch, lease.task), queue):
            return f"there is no task {lease.task} of epoch {lease.epoch}"
    return ""


def _unopened(lease: m.Lease, queue: TaskQueue) -> str:
    return f"no task of epoch {lease.epoch} was begun" if lease.epoch > queue.open else ""


def _strange_slot(named: Iterable[int], slots: int) -> str:
    for slot in named:
        if not 0 <= slot < slots:
            return f"there is no slot {slot}: the job has {slots}"
    return ""


def _strange_report(reports: Iterable[m.SlotReport], queue: TaskQueue, slots: int) -> str:
    for report in reports:
        strange = _strange_slot(report.slots, slots)
        if strange:
            return strange
        try:
            tasks = TaskSet.decode(report.tasks)
        except ValueError as error:
            return str(error)
        if tasks.tasks != queue.plan.tasks:
            return f"a report of {tasks.tasks} tasks an epoch; this job has {queue.plan.tasks}"
        for reached in (tasks.highest, report.reached):
            if reached != (-1, -1) and not _exists(reached, queue):
                return f"there is no task {reached[1]} of epoch {reached[0]}"
    return ""


def _exists(task: tuple[int, int], queue: TaskQueue) -> bool:
    return 0 <= task[0] < queue.epochs and 0 <= task[1] < queue.plan.tasks
