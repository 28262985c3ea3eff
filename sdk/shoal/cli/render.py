"""Texts of jobs for the terminal, and their mappings for programs. Pure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from shoal.local.view.formatting import duration
from shoal.sdk.types import Event, JobStatus, Member, SizeChange

__all__ = [
    "JOB_COLUMNS",
    "WIDE_COLUMNS",
    "account_text",
    "age",
    "as_text",
    "event_row",
    "history_row",
    "job_row",
    "plain",
    "progress_text",
    "status_lines",
    "wide_row",
]

JOB_COLUMNS = ("NAME", "STATE", "TRAINERS", "RANGE", "PROGRESS", "RATE", "LEFT", "AGE")
WIDE_COLUMNS = (*JOB_COLUMNS, "SERVERS", "REASON", "MESSAGE")


def plain(value: Any) -> Any:
    """Return a value of the SDK as JSON has it: mappings, lists, numbers and texts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
        if isinstance(value, JobStatus):
            found["progress"]["percent"] = value.progress.percent
        return found
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def as_text(value: Any, output: str) -> str:
    """Return a value as JSON or YAML."""
    if output == "yaml":
        return yaml.safe_dump(plain(value), sort_keys=False, allow_unicode=True)
    return json.dumps(plain(value), ensure_ascii=False) + "\n"


def age(since: datetime | None, now: datetime | None = None) -> str:
    """Return the time since a time, in its two largest units; empty for None."""
    if since is None:
        return ""
    return duration(max(0.0, ((now or datetime.now(UTC)) - since).total_seconds()))


def job_row(status: JobStatus, *, with_namespace: bool = False) -> tuple[str, ...]:
    """Return a job's row of a table with `JOB_COLUMNS`."""
    trainers, progress = status.trainers, status.progress
    bounds = f"{trainers.min}-{trainers.max}" if trainers.max > trainers.min else str(trainers.min or "")
    left = progress.seconds_left if status.state.value == "Running" else None
    return (
        f"{status.namespace}/{status.name}" if with_namespace else status.name,
        status.state.value,
        f"{trainers.ready}/{trainers.desired}",
        bounds,
        f"{progress.percent:.0f}%" if progress.percent is not None else "",
        f"{progress.rate:,.0f}" if progress.rate else "",
        duration(left) if left is not None else "",
        age(status.created),
    )


def wide_row(status: JobStatus, *, with_namespace: bool = False) -> tuple[str, ...]:
    """Return a job's row of a table with `WIDE_COLUMNS`."""
    servers = status.parameter_servers
    message = (status.message or status.progress.message).partition("\n")[0]
    row = job_row(status, with_namespace=with_namespace)
    return (*row, f"{servers.ready}/{servers.desired}", status.reason, message)


def progress_text(status: JobStatus) -> str:
    """Return the progress in one line."""
    progress = status.progress
    parts = []
    if progress.epoch is not None and progress.epochs is not None:
        parts.append(f"epoch {progress.epoch}/{progress.epochs}")
    if progress.percent is not None:
        parts.append(f"{progress.percent:.0f}%")
    if status.state.value == "Running":
        if progress.rate:
            parts.append(f"{progress.rate:,.0f} samples/s")
        if (left := progress.seconds_left) is not None:
            parts.append(f"{duration(left)} left")
    reason = ": ".join(filter(None, (status.reason, status.message or progress.message)))
    if reason and (status.state.value != "Running" or progress.message):
        parts.append(f"({reason})")
    return "  ".join(parts)


def account_text(status: JobStatus) -> str:
    """Return the account of every sample in one line; empty before the end."""
    account = status.account
    if account is None:
        return ""
    return (
        f"samples: {account.counted:,} of {account.expected:,} counted, {account.lost:,} lost, {account.twice:,} twice; "
        f"trainers: {account.joins} joined, {account.leaves} left, {account.deaths} died; {duration(account.seconds)}"
    )


def status_lines(status: JobStatus, members: Sequence[Member]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return the head of a job's status, and the rows of its processes: name, state, node, restarts, message."""
    trainers = status.trainers
    bounds = f"{trainers.min} to {trainers.max}" if trainers.max > trainers.min else str(trainers.min)
    place = f"namespace {status.namespace}; " if status.namespace else ""
    head = [
        f"{status.name}: {status.state.value} ({place}trainers: {trainers.ready} of {trainers.desired}, bounds {bounds})"
    ]
    head += [f"  {line}" for line in (progress_text(status), account_text(status)) if line]
    rows: list[tuple[str, ...]] = [
        (each.name, each.state, each.node or "-", str(each.restarts), each.message.partition("\n")[0])
        for each in members
    ]
    return head, rows


def event_row(event: Event) -> tuple[str, ...]:
    """Return an event's row: age, type, reason, count, message."""
    return age(event.time), event.kind, event.reason, str(event.count), event.message.partition("\n")[0]


def history_row(change: SizeChange) -> tuple[str, ...]:
    """Return a row for a change of size: time, change, cause, who asked."""
    return change.time.isoformat(timespec="seconds"), f"{change.before} -> {change.after}", change.cause, change.by
