"""A job's status in words and lines. Pure; shared by the views of `shoal run` and by `shoal status`."""

from __future__ import annotations

import json

from shoal.local.status import Status, is_good
from shoal.wire.messages import Account, Progress

__all__ = ["account_lines", "duration", "number", "progress_line", "score", "values"]


def number(value: float) -> str:
    """A logged value, short."""
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """``12s``, ``3m05s``, ``2h10m``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def values(progress: Progress) -> str:
    """What the script logged last: ``loss 0.41  accuracy 0.9``."""
    return "  ".join(f"{name} {number(value)}" for name, value in progress.values.items())


def score(text: str) -> str:
    """A score (JSON text) for people."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    if isinstance(found, dict):
        return "  ".join(f"{name} {_one(value)}" for name, value in found.items())
    return _one(found)


def _one(value: object) -> str:
    return number(value) if isinstance(value, float) else str(value)


def progress_line(status: Status) -> str:
    """``epoch 1/3  41%  12,345 samples/s  loss 0.41  trainers 3/4  left 12s``; or why nothing moves."""
    progress = status.progress
    active = sum(row.role == "trainer" and row.state not in {"starting", "waits"} for row in status.members)
    trainers = f"trainers {active}/{status.trainers}"
    if status.state == "Stopping":
        return f"stopping  processes {len(status.members)}"
    if progress is None:
        return f"starting  {trainers}"
    if progress.state == "Starting":
        return f"starting  {trainers}" + (f"  ({progress.why})" if progress.why else "")
    parts = [f"epoch {min(progress.epoch + 1, progress.epochs)}/{progress.epochs}"]
    if progress.state == "Running":
        share = progress.samples_done / progress.samples_epoch if progress.samples_epoch else 0.0
        parts += [f"{share:4.0%}", f"{progress.rate:,.0f} samples/s"]
    else:
        parts.append(progress.state.lower())
    parts += [part for part in (values(progress), trainers) if part]
    if progress.left_seconds >= 0 and progress.state == "Running":
        parts.append(f"left {duration(progress.left_seconds)}")
    if progress.why:
        parts.append(f"({progress.why})")
    return "  ".join(parts)


def account_lines(name: str, account: Account, *, reason: str = "") -> list[str]:
    """The final account, for people."""
    samples = account.samples
    epochs = f"{account.epochs} epoch{'' if account.epochs == 1 else 's'}"
    head = f"{name}: {account.state}, {epochs}, {duration(account.seconds)}"
    counts = "samples: none, the training had not begun"
    if samples.expected:
        counts = f"samples: {samples.counted:,} of {samples.expected:,} counted, {samples.lost:,} lost, {samples.twice:,} twice"
    if samples.skipped:
        counts += f", {samples.skipped:,} skipped by the script"
    members = (
        f"trainers: {account.joins} joined, {account.leaves} left; "
        f"trainers or servers that died: {account.deaths}; batches computed again: {account.replayed}"
    )
    lines = [head, f"  {counts}", f"  {members}"]
    if account.state == "Complete" and not is_good(account):
        lines.append("  this must not happen: please report it with the folder of the job's state")
    if reason:
        lines.append(f"  reason: {reason}")
    return lines
