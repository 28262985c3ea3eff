"""Common parts of all benchmarks: rows of figures, confidence intervals, a description of the machine, and the output."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shoal.local.etcd_server import find_etcd

__all__ = [
    "Row",
    "against",
    "at_least",
    "at_most",
    "interval",
    "machine",
    "main",
    "no_less",
    "percentile",
    "plain",
    "report",
]

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure.

    Attributes:
        metric: Name of the figure.
        value: Median, unless the name states something else.
        unit: Unit of value and reference.
        reference: Value of the reference. Default: None.
        ratio: Ratio of value to reference, the median over pairs. Default: None.
        interval: 95 % interval, by bootstrap, of the ratio if there is one, else of the value. Default: None.
        goal: Goal as text. Default: empty, no goal.
        met: Whether the goal is met. Default: None, no goal.
        count: Number of measurements (of pairs if there is a ratio). Default: 1.
    """

    metric: str
    value: float
    unit: str
    reference: float | None = None
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    goal: str = ""
    met: bool | None = None
    count: int = 1


def percentile(values: Sequence[float], share: float) -> float:
    """Return the percentile of a share, from 0 to 1: one of the values, without interpolation."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def interval(
    values: Sequence[float], *, figure: Callable[[Sequence[float]], float] = statistics.median
) -> tuple[float, float]:
    """Return the 95 % interval of a figure of the values, by bootstrap with a fixed seed."""
    chance = random.Random(0)
    drawn = [figure(chance.choices(values, k=len(values))) for _ in range(2000)]
    return percentile(drawn, 0.025), percentile(drawn, 0.975)


def plain(metric: str, values: Sequence[float], unit: str) -> Row:
    """Return a row with the median of the values, without a goal."""
    return Row(metric=metric, value=statistics.median(values), unit=unit, interval=interval(values), count=len(values))


def at_most(metric: str, values: Sequence[float], unit: str, *, goal: float) -> Row:
    """Return a row with the median of the values, which must not be above the goal."""
    value = statistics.median(values)
    met = value <= goal
    bounds = interval(values)
    return Row(metric=metric, value=value, unit=unit, interval=bounds, goal=f"<= {goal:g}", met=met, count=len(values))


def no_less(metric: str, values: Sequence[float], unit: str, *, goal: float) -> Row:
    """Return a row with the median of the values, which must not be below the goal."""
    row = at_most(metric, values, unit, goal=goal)
    return replace(row, goal=f">= {goal:g}", met=row.value >= goal)


def against(metric: str, pairs: Sequence[tuple[float, float]], unit: str) -> Row:
    """Return a row with the median ratio of interleaved pairs (value, reference), without a goal."""
    return replace(at_least(metric, pairs, unit, goal=0.0), goal="", met=None)


def at_least(metric: str, pairs: Sequence[tuple[float, float]], unit: str, *, goal: float) -> Row:
    """Return a row with the median ratio of interleaved pairs (value, reference), which must not be below the goal."""
    ratios = [value / reference for value, reference in pairs]
    ratio = statistics.median(ratios)
    return Row(
        metric=metric,
        value=statistics.median(value for value, _ in pairs),
        unit=unit,
        reference=statistics.median(reference for _, reference in pairs),
        ratio=ratio,
        interval=interval(ratios),
        goal=f"ratio >= {goal:g}",
        met=ratio >= goal,
        count=len(pairs),
    )


def machine() -> str:
    """Describe the machine and the versions in one line."""
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cores} cores, Linux {platform.release()}, Python {platform.python_version()}, torch {version('torch')}, "
        f"etcd {find_etcd().version}"
    )


def main(name: str, measure: Callable[[], tuple[list[Row], Any]]) -> None:
    """Run a benchmark, print a table, and save the figures and the raw measurements.

    Args:
        name: Name of the benchmark.
        measure: Function that returns the rows and the raw measurements.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--json", type=Path, help="write the rows there")
    arguments = parser.parse_args()
    # SIGTERM raises SystemExit, so that the benchmark stops its processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    report(name, *measure(), file=arguments.json)


def report(name: str, rows: Sequence[Row], raw: Any, *, file: Path | None = None) -> None:
    """Print a table of figures, and save them with the raw measurements in benchmarks/results.

    Args:
        name: Name of the benchmark.
        rows: The figures.
        raw: The raw measurements.
        file: File for the rows only. Default: None.
    """
    print(machine())
    for row in rows:
        print(_line(row))
    found = [asdict(row) for row in rows]
    if file is not None:
        file.write_text(json.dumps(found, indent=1) + "\n")
    RESULTS.mkdir(exist_ok=True)
    kept = {"machine": machine(), "rows": found, "raw": _rounded(raw)}
    (RESULTS / f"{name}.json").write_text(json.dumps(kept) + "\n")


def _line(row: Row) -> str:
    value = f"{row.value:.4g} {row.unit}"
    if row.reference is not None:
        value += f" against {row.reference:.4g}, ratio {row.ratio:.3f}"
    bounds = f" [{row.interval[0]:.4g}, {row.interval[1]:.4g}]" if row.interval else ""
    goal = f"  goal {row.goal}: {'met' if row.met else 'MISSED'}" if row.met is not None else ""
    return f"{row.metric:52} {value}{bounds} (n={row.count}){goal}"


def _rounded(raw: Any) -> Any:
    if isinstance(raw, float):
        return round(raw, 5)
    if isinstance(raw, dict):
        return {str(key): _rounded(value) for key, value in raw.items()}
    if isinstance(raw, list | tuple):
        return [_rounded(value) for value in raw]
    return raw
