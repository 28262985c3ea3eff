"""Formatting of a job's status as text. Pure; used by the views of `shoal run` and by `shoal status`."""

from __future__ import annotations

import json
import signal
from typing import Final

from shoal.local.view.status import RunStatus, is_good
from shoal.protocol.messages import Evaluation, JobAccount, JobProgress

__all__ = [
    "NEVER_JOINED",
    "account_lines",
    "counted",
    "duration",
    "evaluated",
    "number",
    "output_suffix",
    "plain",
    "process_name",
    "progress_line",
    "score",
    "signal_name",
    "stall_reason",
    "values",
]


NEVER_JOINED: Final = (
    "the script ended without joining the job: it never called trainer.join(), or ended before job.prepare(); a script "
    "that Shoal trains calls both"
)
_MANY_SKIPPED: Final = 0.1
"""Share of skipped samples above which the account has a warning."""


def number(value: float) -> str:
    """Format a logged value with four significant digits."""
    return f"{value:.4g}"


def counted(count: int, noun: str) -> str:
    """Format a count with its noun: ``1 trainer``, ``2 trainers``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Format a duration in seconds: ``12s``, ``3m05s``, ``2h10m``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def values(progress: JobProgress) -> str:
    """Format the values that the script logged last: ``loss 0.41  accuracy 0.9``."""
    return "  ".join(f"{name} {number(value)}" for name, value in progress.values.items())


def score(text: str) -> str:
    """Format a score, which is JSON text."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    if isinstance(found, dict):
        return "  ".join(f"{name} {_one(value)}" for name, value in found.items())
    return _one(found)


def evaluated(evaluation: Evaluation, epochs: int) -> str:
    """Format an evaluation: ``epoch 2 evaluated: auc 0.9``; the second one of an epoch has the number 2, and so on.

    Args:
        evaluation: The evaluation.
        epochs: Number of epochs of the job; a later evaluation is named "after the last epoch".
    """
    time = f" ({evaluation.number + 1})" if evaluation.number else ""
    when = f"epoch {evaluation.epoch + 1}" if evaluation.epoch < epochs else "after the last epoch"
    return f"{when} evaluated{time}: {score(evaluation.score)}"


def _one(value: object) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {_one(each)}" for name, each in value.items()) + ")"
    return number(value) if isinstance(value, float) else str(value)


def plain(text: str) -> str:
    """Shorten a message of the master, without the details that only its log needs."""
    if text.startswith("etcd at ") and "UNAVAILABLE" in text:
        return "etcd does not answer; finished tasks wait to be recorded"
    return text


def stall_reason(status: RunStatus) -> str:
    """Return why no samples are committed, or, while a job starts, the progress of its start; empty if it trains."""
    progress = status.progress
    if status.state == "Starting":
        return _starting(status)
    return plain(progress.stall_reason) if progress is not None and status.state in {"Running", "Saving"} else ""


def _starting(status: RunStatus) -> str:
    progress = status.progress
    if progress is None:
        return "the master is starting"
    servers = [row for row in status.members if row.role == "pserver"]
    here = sum(bool(row.address) for row in servers)
    if here < len(servers):
        return f"{here} of {counted(len(servers), 'parameter server')} up, PyTorch is being imported"
    if progress.stall_reason.startswith("etcd "):
        return plain(progress.stall_reason)
    if not any(member.role == "trainer" for member in progress.members):
        return "waiting for a trainer: no script has called job.prepare() yet"
    return "the servers receive the initial parameters"


def progress_line(status: RunStatus) -> str:
    """Format the progress: ``epoch 1/3  41%  12,345 samples/s  loss 0.41  trainers 3/4  left 12s``, or why it stalls."""
    progress = status.progress
    active = sum(row.role == "trainer" and row.state not in {"starting", "waits"} for row in status.members)
    trainers = f"trainers {active}/{status.trainers}"
    if status.state == "Stopping":
        return f"stopping  processes {len(status.members)}"
    if progress is None or status.state == "Starting":
        return f"starting  {trainers}" + (f"  ({stall_reason(status)})" if stall_reason(status) else "")
    parts = [f"epoch {min(progress.epoch + 1, progress.epochs)}/{progress.epochs}"]
    if progress.state == "Running":
        share = progress.samples_done / progress.samples_epoch if progress.samples_epoch else 0.0
        parts += [f"{share:4.0%}", f"{progress.rate:,.0f} samples/s"]
    else:
        parts.append(progress.state.lower())
    parts += [part for part in (values(progress), trainers) if part]
    if progress.left_seconds >= 0 and progress.state == "Running":
        parts.append(f"left {duration(progress.left_seconds)}")
    if stall_reason(status):
        parts.append(f"({stall_reason(status)})")
    return "  ".join(parts)


def account_lines(name: str, account: JobAccount, *, reason: str = "") -> list[str]:
    """Format the final account as lines of text."""
    samples = account.samples
    done = f"{counted(account.epochs, 'epoch')}, " if account.state == "Complete" else ""
    head = f"{name}: {account.state}, {done}{duration(account.seconds)}"
    counts = "samples: none, the training had not begun"
    if samples.expected:
        counts = f"samples: {samples.counted:,} of {samples.expected:,} counted, {samples.lost:,} lost, {samples.twice:,} twice"
    if samples.skipped:
        counts += f", {samples.skipped:,} skipped by the script"
    skips = samples.skipped > _MANY_SKIPPED * samples.counted
    members = (
        f"trainers: {account.joins} joined, {account.leaves} left; trainers or servers that failed: {account.deaths}"
    )
    lines = [head, f"  {counts}"]
    if skips:
        lines += [
            f"  {samples.skipped / samples.counted:.0%} of the samples made no optimizer step: a check for NaN that",
            "  always fires, overflows of a GradScaler, or no step() after backward();",
            "  see docs/scripts.md",
        ]
    if account.joins or account.deaths:
        lines.append(f"  {members}")
    if account.replayed:
        lines.append(f"  batches computed again: {account.replayed:,}")
    if account.state == "Complete" and not is_good(account):
        lines.append("  this must not happen: please report it with the folder of the job's state")
    if reason:
        lines.append(f"  reason: {reason}")
    return lines


def output_suffix(last_lines: str) -> str:
    """Return the suffix of a failure's reason with the script's last output; empty if there is none."""
    return f"; its last output:\n{last_lines}" if last_lines else ""


def process_name(role: str, index: int) -> str:
    """Format the name of a process: ``trainer-0``; the role alone for master and etcd."""
    return role if role in {"master", "etcd"} else f"{role}-{index}"


def signal_name(code: int) -> str:
    """Return the name of the signal that terminated a process, from its negative exit code."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
