"""The output of reports side by side: as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from shoal.simulator.measures import SimulationReport

__all__ = ["as_json", "rows", "show"]

_MOST_NAMES: Final = 5


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f} s"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _index(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


_ROWS: Final[tuple[tuple[str, Callable[[SimulationReport], str]], ...]] = (
    ("jobs ended", lambda of: f"{of.ended} of {of.jobs}"),
    ("makespan", lambda of: _seconds(of.makespan)),
    ("pending time, mean", lambda of: _seconds(of.pending_mean)),
    ("pending time, p50", lambda of: _seconds(of.pending_p50)),
    ("pending time, p99", lambda of: _seconds(of.pending_p99)),
    ("completion time, mean", lambda of: _seconds(of.completion_mean)),
    ("Jain index", lambda of: _index(of.jain_index)),
    ("trainers started", lambda of: str(of.trainers_started)),
    ("trainers stopped early", lambda of: str(of.trainers_stopped)),
    ("... by the scheduler", lambda of: str(of.trainers_evicted)),
    ("foreign pods", lambda of: str(of.foreign)),
    ("... bound within 5 s", lambda of: _share(of.foreign_bound_5s)),
    ("... bound within 30 s", lambda of: _share(of.foreign_bound_30s)),
    ("... wait, p50", lambda of: _seconds(of.foreign_wait_p50)),
    ("... wait, p99", lambda of: _seconds(of.foreign_wait_p99)),
    ("... without a node at the end", lambda of: str(of.foreign_unbound)),
)


def rows(reports: Sequence[SimulationReport]) -> list[tuple[str, ...]]:
    """Return one row per measure: its name, then its value under each policy."""
    found = [(name, *(text(report) for report in reports)) for name, text in _ROWS]
    resources = dict.fromkeys(name for report in reports for name in report.requested)
    shares = [(f"requested {name}", *(_share(report.requested.get(name)) for report in reports)) for name in resources]
    classes = list(dict.fromkeys(name for report in reports for name in report.jain_index_by_priority))
    indices = [
        (f"... of priority {name}", *(_index(report.jain_index_by_priority.get(name)) for report in reports))
        for name in (classes if len(classes) > 1 else ())
    ]
    place = [name for name, *_ in found].index("Jain index")
    return [*found[:place], *shares, found[place], *indices, *found[place + 1 :]]


def show(reports: Sequence[SimulationReport], console: Console) -> None:
    """Print a table of the reports, and below it the jobs that did not end."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for report in reports:
        table.add_column(report.policy, justify="right", no_wrap=True)
    for row in rows(reports):
        table.add_row(*row)
    console.print(table)
    for report in reports:
        for what, names in (
            ("larger than any node", report.fits_no_node),
            ("never started", report.never_started),
            ("not ended", report.unfinished),
        ):
            if names:
                more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
                text = f"{report.policy}: {what}: {', '.join(names[:_MOST_NAMES])}{more}"
                console.print(text, markup=False, highlight=False, soft_wrap=True)


def as_json(trace: str, reports: Sequence[SimulationReport]) -> str:
    """Return all reports as one JSON object; times are in seconds."""
    value: dict[str, Any] = {"trace": trace, "policies": [report.as_json() for report in reports]}
    return json.dumps(value, indent=2)
