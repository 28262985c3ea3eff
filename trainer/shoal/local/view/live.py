"""Live view of `shoal run` on a terminal: events scroll, and progress and members stay below them."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from shoal.local.view.formatting import counted, duration, stall_reason, values
from shoal.local.view.plain import ProgressView
from shoal.local.view.status import ProcessStatus, RunStatus
from shoal.protocol.messages import JobProgress

__all__ = ["LiveView", "render"]

_OTHER_LINES: Final = 9
_COLOURS: Final = {"warning": "yellow", "error": "bold red", "info": ""}
_STATES: Final = {
    "training": "green",
    "serving": "green",
    "running": "green",
    "evaluating": "cyan",
    "saving": "cyan",
    "starting": "yellow",
    "waiting": "yellow",
    "waits": "red",
    "ending": "magenta",
    "leaving": "magenta",
    "draining": "magenta",
}


class LiveView(ProgressView):
    """Shows a job on a terminal.

    Args:
        console: The terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, transient=True, refresh_per_second=8, auto_refresh=False)
        self._live.start()

    def show(self, status: RunStatus) -> None:
        """Redraw the picture."""
        with suppress(OSError):
            self._live.update(render(status, height=self._console.height), refresh=True)

    def print_event(self, level: str, text: str) -> None:
        """Print a line above the picture."""
        line = Text(time.strftime("%H:%M:%S "), style="dim")
        line.append(f"{level}: {text}" if level != "info" else text, style=_COLOURS.get(level, ""))
        with suppress(OSError):
            self._console.print(line)

    def close(self) -> None:
        """Remove the picture; the lines stay."""
        with suppress(OSError):
            self._live.stop()


def render(status: RunStatus, *, height: int) -> RenderableType:
    """Render progress and members in at most ``height`` lines."""
    parts: list[RenderableType] = [Text(), _head(status)]
    progress = status.progress
    if progress is not None and progress.samples_epoch and status.state != "Starting":
        parts += [_bar(progress), _numbers(status, progress)]
    if reason := stall_reason(status):
        parts.append(_line(reason, style="cyan" if status.state == "Starting" else "yellow"))
    parts.append(_members(status.members, most=max(3, height - _OTHER_LINES)))
    return Group(*parts)


def _head(status: RunStatus) -> Text:
    head = _line(f"{status.name} ", style="bold")
    head.append(status.state, style={"Failed": "bold red", "Complete": "bold green"}.get(status.state, "cyan"))
    trainers = counted(status.trainers, "trainer")
    bounds = "" if status.least == status.most else f" (of {status.least} to {status.most})"
    stop = ", Ctrl-C stops it" if status.state in {"Starting", "Running", "Saving"} else ""
    head.append(f"  {trainers}{bounds}{stop}", style="dim")
    return head


def _bar(progress: JobProgress) -> Table:
    grid = Table.grid(padding=(0, 2))
    done = progress.samples_done / progress.samples_epoch
    grid.add_row(
        f"epoch {min(progress.epoch + 1, progress.epochs)}/{progress.epochs}",
        ProgressBar(total=progress.samples_epoch, completed=progress.samples_done, width=30),
        f"{done:4.0%}",
    )
    return grid


def _numbers(status: RunStatus, progress: JobProgress) -> Text:
    parts = [f"{progress.samples_done:,}/{progress.samples_epoch:,} samples"]
    # Rate and remaining time are of no use after the end.
    if status.state == "Running":
        parts.append(f"{progress.rate:,.0f}/s")
        if progress.left_seconds >= 0:
            parts.append(f"{duration(progress.left_seconds)} left")
    return _line("  ".join([*parts, values(progress)]).rstrip())


def _line(text: str, *, style: str = "") -> Text:
    """Return a line that is cut at the terminal's width: wrapped lines would exceed the picture's height."""
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _members(rows: list[ProcessStatus], *, most: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("process", "pid", "state", "doing"):
        table.add_column(name, no_wrap=True)
    table.add_column("for", justify="right", no_wrap=True)
    shown = rows if len(rows) <= most else rows[: most - 1]
    for row in shown:
        state = Text(row.state, style=_STATES.get(row.state, ""))
        when = f"in {duration(row.seconds)}" if row.state == "waits" else duration(row.seconds)
        table.add_row(row.name, str(row.pid or ""), state, row.task, when)
    if len(shown) < len(rows):
        table.add_row(f"and {len(rows) - len(shown)} more", "", "", "", "")
    return table
