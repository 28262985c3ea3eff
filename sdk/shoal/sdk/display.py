"""What a notebook and a terminal show of a job: its state as HTML, and one live bar while it is watched."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from html import escape

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.text import Text

from shoal.sdk.types import JobStatus, Member, State

__all__ = ["html", "shown"]

_COLOURS = {State.RUNNING: "#2e7d32", State.COMPLETE: "#1565c0", State.FAILED: "#c62828"}
_WIDTH = 240
"""Width of the bar in a notebook, in pixels."""
_MOST_ROWS = 20


def html(status: JobStatus, members: Sequence[Member]) -> str:
    """Return a job's state, progress and processes, and why it waits, as HTML without scripts."""
    colour = _COLOURS.get(status.state, "#616161")
    percent = status.progress.percent
    bar = ""
    if percent is not None:
        done = round(_WIDTH * percent / 100)
        bar = (
            f'<div style="width:{_WIDTH}px;height:8px;background:#e0e0e0;margin:4px 0">'
            f'<div style="width:{done}px;height:8px;background:{colour}"></div></div>'
        )
    reason = ": ".join(filter(None, (status.reason, status.message or status.progress.message)))
    rows = "".join(
        f"<tr><td>{escape(each.name)}</td><td>{escape(each.state)}</td><td>{escape(each.node)}</td>"
        f"<td>{escape(each.message)}</td></tr>"
        for each in members[:_MOST_ROWS]
    )
    more = len(members) - _MOST_ROWS
    if more > 0:
        rows += f"<tr><td colspan=4>and {more} more</td></tr>"
    place = f"{status.namespace}/" if status.namespace else ""
    trainers = f"trainers {status.trainers.ready}/{status.trainers.desired}"
    return (
        f'<div><b>{escape(place + status.name)}</b> <span style="color:{colour}">{status.state.value}</span> '
        f"{escape(_line(status))} &middot; {trainers}{bar}"
        f"<div>{escape(reason)}</div><table>{rows}</table></div>"
    )


def _line(status: JobStatus) -> str:
    progress = status.progress
    parts = []
    if progress.epoch is not None and progress.epochs is not None:
        parts.append(f"epoch {progress.epoch}/{progress.epochs}")
    if progress.percent is not None:
        parts.append(f"{progress.percent:.0f}%")
    if progress.rate and status.state is State.RUNNING:
        parts.append(f"{progress.rate:,.0f} samples/s")
    return " ".join(parts)


class _Left(ProgressColumn):
    """The estimated time left, as the job reports it."""

    def render(self, task: object) -> Text:
        return Text(str(getattr(task, "fields", {}).get("left", "")))


def shown(states: Iterator[JobStatus], *, bar: bool | None) -> Iterator[JobStatus]:
    """Yield the states, and show one live bar of the latest.

    Args:
        states: States of a job.
        bar: Whether to show it; None: in notebooks and on terminals.
    """
    if bar is False or (bar is None and not (_in_notebook() or sys.stdout.isatty())):
        yield from states
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[line]}"), _Left())
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(*columns, console=Console(), transient=False))
        task = progress.add_task("", total=100, line="", left="")
        for status in states:
            reason = ": ".join(filter(None, (status.reason, status.message or status.progress.message)))
            left = status.progress.seconds_left if status.state is State.RUNNING else None
            progress.update(
                task,
                description=f"{status.name} {status.state.value}",
                completed=status.progress.percent or 0,
                line=_line(status) or reason[:80],
                left=f"{left:.0f} s left" if left is not None else "",
            )
            yield status


def _in_notebook() -> bool:
    return "ipykernel" in sys.modules
