"""Checks of messages: numbers of tasks, slots and epochs that the job does not have.

The token is the boundary: a member that sends false numbers can spoil its own job's model. It must not end the master,
nor cause a record that the next master cannot read. So a message is checked as a whole before any part of it is used,
and the connection of an invalid message is closed. A message that is only outdated (its grant, lease or task is of an
earlier state) is valid.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from shoal.master.state.task_queue import TaskQueue
from shoal.protocol import messages as m
from shoal.protocol.task_set import TaskSet
from shoal.transport.auth import Identity

__all__ = ["member_problem", "message_problem"]

ROLES: Final = frozenset({"trainer", "pserver", "observer"})


def member_problem(identity: Identity, *, servers: int) -> str:
    """Return why a process cannot be a member of a job with ``servers`` parameter servers; empty if it can."""
    if identity.role not in ROLES:
        return f"a {identity.role} does not connect to the master"
    if identity.role == "pserver" and identity.index >= servers:
        return f"there is no {identity}: the job has {servers} parameter servers"
    return ""


def message_problem(message: Any, queue: TaskQueue | None, *, slots: int) -> str:
    """Return why a message is invalid; empty if it is valid.

    Args:
        message: The decoded message; its types are valid.
        queue: The job's task queue; None before the model is registered, when messages about tasks are ignored.
        slots: The number of slots of the job.
    """
    if queue is None:
        return ""
    problem = ""
    match message:
        case m.Register() | m.ReturnTasks() | m.Leave() | m.ScriptFailed():
            problem = _invalid_lease(message.leases, queue)
        case m.ScriptHung() if message.lease is not None:
            problem = _invalid_lease([message.lease], queue)
        case m.BatchBegan():
            problem = _invalid_lease([message.lease], queue)
        case m.TaskDone():
            # A trainer with a lease of an earlier master reported it when it registered.
            problem = _invalid_lease([message.lease], queue) or _unopened(message.lease, queue)
        case m.ReportState():
            named = [slot for file in message.files for slot in file.slots]
            problem = _invalid_slot([*named, *message.waiting], slots) or _invalid_report(message.held, queue, slots)
        case m.GrantReport() | m.MissingTasks():
            problem = _invalid_report(message.reports, queue, slots)
        case m.AwaitingInitialValues() | m.SnapshotWritten() | m.FinalSnapshotPinned() | m.InitialValuesGiven():
            problem = _invalid_slot(message.slots, slots)
    return problem


def _invalid_lease(leases: Iterable[m.Lease], queue: TaskQueue) -> str:
    for lease in leases:
        if not _exists((lease.epoch, lease.task), queue):
            return f"there is no task {lease.task} of epoch {lease.epoch}"
    return ""


def _unopened(lease: m.Lease, queue: TaskQueue) -> str:
    return f"no task of epoch {lease.epoch} was begun" if lease.epoch > queue.open else ""


def _invalid_slot(named: Iterable[int], slots: int) -> str:
    for slot in named:
        if not 0 <= slot < slots:
            return f"there is no slot {slot}: the job has {slots}"
    return ""


def _invalid_report(reports: Iterable[m.SlotReport], queue: TaskQueue, slots: int) -> str:
    for report in reports:
        problem = _invalid_slot(report.slots, slots)
        if problem:
            return problem
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
