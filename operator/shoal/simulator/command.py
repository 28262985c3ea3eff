"""The command line: reads a trace, simulates it under each policy, and prints the reports."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, TextIO

from rich.console import Console

from shoal.simulator.plot import Bands, PlotError, bands_of, require, save
from shoal.simulator.policies.registry import POLICIES
from shoal.simulator.report import as_json, show
from shoal.simulator.trace import Trace, TraceError, load
from shoal.simulator.world.engine import LONGEST_SECONDS, Result, Simulation, simulate
from shoal.simulator.world.layout import Layout

__all__ = ["ProgressLine", "main"]

EXIT_FAILED: Final = 1
EXIT_WRONG_INPUT: Final = 2
EXIT_INTERRUPTED: Final = 130
_DELAY_SECONDS: Final = 2.0
_BETWEEN_SECONDS: Final = 0.2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201 - the command's output
        return EXIT_INTERRUPTED
    except (TraceError, PlotError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return EXIT_WRONG_INPUT if isinstance(error, TraceError) else EXIT_FAILED


def _run(arguments: argparse.Namespace) -> int:
    if arguments.plot:
        # Fail before the simulation, not after it.
        require()
        if not Path(arguments.plot).absolute().parent.is_dir():
            raise PlotError(f"{arguments.plot}: cannot be written: there is no such folder")
    trace = load(arguments.trace)
    results: dict[str, Result] = {}
    for name in dict.fromkeys(arguments.policy or POLICIES):
        progress = ProgressLine(name, jobs=len(trace.jobs), stream=sys.stderr)
        with progress:
            results[name] = simulate(
                trace, POLICIES[name](), until=arguments.until, history=bool(arguments.plot), watch=progress.update
            )
    reports = [result.report for result in results.values()]
    if arguments.output == "json":
        print(as_json(arguments.trace, reports))  # noqa: T201
    else:
        show(reports, Console())
    if arguments.plot:
        save(arguments.plot, _panels(trace, results))
    return 0


def _panels(trace: Trace, results: Mapping[str, Result]) -> dict[str, Bands]:
    jobs = [job.name for job in trace.jobs]
    capacity = float(Layout(trace).allocatable[:, 0].sum()) / 1000
    return {
        name: bands_of(result.history, jobs=jobs, end=result.report.simulated, capacity=capacity)
        for name, result in results.items()
        if result.history is not None
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m shoal.simulator",
        description="Simulates a trace of jobs and pods on a cluster and compares policies that scale its jobs.",
    )
    parser.add_argument("--trace", required=True, metavar="FILE", help="YAML or JSON; see examples/traces/README.md")
    parser.add_argument(
        "--policy",
        nargs="+",
        action="extend",
        choices=tuple(POLICIES),
        metavar="POLICY",
        help=f"one or several of {', '.join(POLICIES)}; default: all",
    )
    parser.add_argument("--output", choices=("table", "json"), default="table", help="default: table")
    parser.add_argument("--plot", metavar="FILE.png", help="plot the requested CPU of each job (needs matplotlib)")
    parser.add_argument(
        "--until",
        type=_until,
        default=LONGEST_SECONDS,
        metavar="SECONDS",
        help="simulated time at which to stop even if jobs are left; default: 30 days",
    )
    return parser


def _until(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write seconds above 0")
    return seconds


class ProgressLine:
    """A line on a terminal with the progress of a simulation.

    Args:
        policy: Name of the policy.
        jobs: Number of jobs in the trace.
        stream: Output; nothing is written if it is not a terminal.
        delay_seconds: Time before the line is first written. Seconds. Default: 2.
    """

    def __init__(self, policy: str, *, jobs: int, stream: TextIO, delay_seconds: float = _DELAY_SECONDS) -> None:
        self._policy = policy
        self._jobs = jobs
        self._stream = stream if stream.isatty() else None
        self._next = time.monotonic() + delay_seconds
        self._written = 0

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        if self._stream is not None and self._written:
            self._stream.write("\r" + " " * self._written + "\r")
            self._stream.flush()

    def update(self, simulation: Simulation) -> None:
        """Write the line, at most every `_BETWEEN_SECONDS`."""
        if self._stream is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _BETWEEN_SECONDS
        text = f"{self._policy}: {simulation.now:,.0f} s, {simulation.ended} of {self._jobs} jobs ended"
        self._stream.write("\r" + text.ljust(self._written))
        self._stream.flush()
        self._written = max(self._written, len(text))
