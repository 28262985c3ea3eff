"""Replays the published experiments of PaddlePaddle's EDL on a real control plane, to compare the autoscalers.

    python -m benchmarks.edl case1|case2 [--policy shoal fixed ancestor] [--repeats N] [--step SECONDS] [--scale SHARE]

133 hollow nodes (87 of 18 CPUs, 46 of 17, 103 GiB each; 2,348 CPUs). A job has trainers of 5 CPUs and 8 GiB, 10 parameter
servers of 4 CPUs and 5 GiB, and a master of 1 CPU. Pods start within 1 s and need 2 s to terminate; a trainer that the
operator drains needs 2 s, too.

- case 1: 20 jobs of 2 to 60 trainers, one every 10 s, observed until 300 s after the last one. The plateau is the last 120 s.
- case 2: 6 jobs of 2 to 60 trainers and a Deployment of pods with 3 CPUs and 3 GiB at default priority, whose replicas are
  400, 300, 200, 100, 200, 300, 400 in steps of 90 s.

Policies: `shoal` is the operator with its autoscaler; `fixed` is the operator without an autoscaler, with jobs pinned at 60
trainers (15 in case 2); both run on the real control plane. `ancestor` is a reimplementation of EDL's rule, executed by the
simulator. API server, scheduler, controllers and etcd are real; kwok simulates the kubelets, and a stand-in the masters of
the hollow pods.

`--step` scales all times of a case: seconds of one step in case 2 (default 90), and of the gap between jobs in case 1
(default 10). `--scale` is the share of nodes, pods of the Deployment and, in case 1, jobs. The figures are defined in
`benchmarks.edl_figures`.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.common import RESULTS, Row, at_most, no_less, plain, report
from benchmarks.edl_figures import most_trainers
from benchmarks.edl_run import CASES, Case, Outcome, played, simulated
from benchmarks.hollow import NODES
from shoal.simulator.plot import Bands, PlotError, save

POLICIES: Final = ("shoal", "fixed", "ancestor")
PUBLISHED: Final = {"case1": "ancestor: 47.2 s, 76.3 %, Jain 0.44", "case2": "ancestor: 83.4 %, at 100 pods 79.4 %"}


def _rows(case: Case, policy: str, outcomes: Sequence[Outcome]) -> list[Row]:
    """Return the figures of one policy; goals apply to `shoal` at full size."""
    ours = policy == "shoal"
    name = f"{case.name} {policy}: "

    def lowest(metric: str, value: Callable[[Outcome], float], unit: str, *, goal: float) -> Row:
        values = list(map(value, outcomes))
        return at_most(name + metric, values, unit, goal=goal) if ours else plain(name + metric, values, unit)

    def highest(metric: str, value: Callable[[Outcome], float], unit: str, *, goal: float) -> Row:
        values = list(map(value, outcomes))
        return no_less(name + metric, values, unit, goal=goal) if ours else plain(name + metric, values, unit)

    if case.name == "case1":
        return [
            lowest("pending, mean over jobs", lambda found: found.pending, "s", goal=5.0),
            highest("requested CPU at the plateau, of what can be packed", lambda found: found.packed, "%", goal=97.0),
            highest("requested CPU, mean", lambda found: found.requested, "%", goal=76.3),
            highest("Jain index of trainers at the plateau", lambda found: found.jain, "", goal=0.98),
            lowest("trainers moved without need, per job and minute", lambda found: found.needless, "", goal=0.0),
        ]
    rows = [
        highest("requested CPU, of what fits, mean", lambda found: found.packed, "%", goal=97.0),
        highest("requested CPU, mean", lambda found: found.requested, "%", goal=90.0),
        highest("requested CPU while the Deployment is least", lambda found: found.at_least_web, "%", goal=95.0),
        highest("runs in which all pods came back", lambda found: 100.0 * found.all_back, "%", goal=100.0),
        lowest("trainers moved without need, per job and minute", lambda found: found.needless, "", goal=0.0),
    ]
    if policy == "ancestor":
        return [*rows[1:4]]
    steps = [step for found in outcomes for step in found.steps]
    up = [step for step in steps if step.least is not None]
    stopped, least = sum(step.stopped for step in up), sum(step.least or 0 for step in up)
    rows.append(lowest("slowest step up, until all new pods are bound", lambda found: found.slowest, "s", goal=4.0))
    if least:
        share = stopped / least
        rows.append(at_most(name + "steps up: trainers stopped / least possible", [share], "", goal=1.1))
    if stopped:
        share = 100 * sum(step.preempted for step in up) / stopped
        rows.append(plain(name + "steps up: of those stopped, by the scheduler", [share], "%"))
    rows += [
        plain(f"{name}step {number + 1} ({case.web[number]} pods): requested CPU, of what fits", shares, "%")
        for number in range(len(case.web))
        if (shares := [found.steps[number].packed for found in outcomes])
    ]
    return rows


def _reference(case: Case) -> float:
    """Return the most cores that can be requested in case 1."""
    nodes = {int(cores): case.scaled(count) for count, cores in NODES}
    fixed = {case.SERVER: 10 * case.jobs, case.MASTER: case.jobs}
    trainers = most_trainers(nodes, trainer=case.TRAINER, fixed=fixed, most=case.jobs * case.most)
    return sum(cores * count for cores, count in fixed.items()) + case.TRAINER * trainers


def _measure(case: Case, policies: Sequence[str], repeats: int) -> tuple[list[Row], dict[str, Any], dict[str, Bands]]:
    rows: list[Row] = []
    raw: dict[str, Any] = {"case": case.as_json()}
    panels: dict[str, Bands] = {}
    most = _reference(case) if case.name == "case1" else None
    for policy in policies:
        if policy == "ancestor":
            outcomes = [simulated(case, policy, packable=most)]
        else:
            count = repeats if policy == "shoal" else 1
            outcomes = asyncio.run(played(case, policy, count, packable=most))
        rows += _rows(case, policy, outcomes)
        raw[policy] = [found.as_json() for found in outcomes]
        panels[policy] = outcomes[0].bands()
        print(f"  {policy}: {statistics.median(found.requested for found in outcomes):.1f} % requested")
    return rows, raw, panels


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.edl", description=__doc__.partition("\n")[0])
    parser.add_argument("case", choices=tuple(CASES))
    parser.add_argument(
        "--policy", nargs="+", choices=POLICIES, default=POLICIES, metavar="POLICY", help="default: all"
    )
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="runs of shoal (1)")
    parser.add_argument("--step", type=float, metavar="SECONDS", help="default: 90 s in case 2, 10 s in case 1")
    parser.add_argument("--scale", type=float, default=1.0, metavar="SHARE", help="of nodes, pods and jobs (1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--name", help="of the files in benchmarks/results (edl_CASE)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run a case with each policy, print a table, and save results and picture."""
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    case = CASES[arguments.case].with_times(arguments.step).with_size(arguments.scale)
    print(f"{case.name}; published: {PUBLISHED[case.name]}")
    rows, raw, panels = _measure(case, arguments.policy, arguments.repeats)
    name = arguments.name or f"edl_{case.name}"
    report(name, rows, raw, file=arguments.json)
    _draw(name, panels)


def _draw(name: str, panels: Mapping[str, Bands]) -> None:
    file = RESULTS / f"{name}.png"
    try:
        save(file, panels)
        print(f"drawn: {file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file}")
    except PlotError as error:
        print(f"not drawn: {error}")


if __name__ == "__main__":
    main()
