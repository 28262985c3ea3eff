"""`shoal plan`: the autoscaler's last plan for a cluster, with its reasons."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import msgspec
from rich.console import Console

from shoal.api.plan import Plan, PlannedJob
from shoal.cli.tables import print_table, stdout

__all__ = ["show_plan"]


def show_plan(plan: Plan, *, output: str) -> None:
    """Print a plan as ``text`` or ``json``."""
    if output == "json":
        sys.stdout.write(msgspec.json.encode(plan).decode() + "\n")
        return
    _show(plan, stdout())


def _show(plan: Plan, console: Console) -> None:
    age = max(0.0, (datetime.now(UTC) - datetime.fromisoformat(plan.time)).total_seconds())
    state = "" if plan.acts else "; not executed (dryRun)"
    console.print(
        f"unchanged for {age:.0f} s, planned in {1000 * plan.seconds:.0f} ms; {plan.usable} of {plan.nodes} nodes accept pods{state}"
    )
    if plan.problem:
        console.print(f"the configuration in force is an older one: {plan.problem}", style="yellow", markup=False)
    if plan.jobs:
        columns = ("JOB", "PRIORITY", "TRAINERS", "GIVEN", "RANGE", "WHY NOT MORE")
        print_table(columns, map(_row, plan.jobs), right={"PRIORITY", "TRAINERS", "GIVEN"})
    else:
        console.print("no job demands trainers")
    if plan.jobs_left_out:
        console.print(f"and {plan.jobs_left_out} more jobs of lower priority")
    for claim in plan.claims:
        gives = ", ".join(f"{count} of {job}" for job, count in claim.victims.items())
        console.print(f"room for {claim.pod} on {claim.node}{', preempts ' + gives if gives else ''}", markup=False)
    if plan.claims_left_out:
        console.print(f"and claims for {plan.claims_left_out} more pods")


def _row(job: PlannedJob) -> tuple[str, ...]:
    given = str(job.given) if job.now == job.given else f"{job.given} ({job.now} now)"
    bounds = f"{job.min}-{job.max}"
    return f"{job.namespace}/{job.name}", str(job.priority), str(job.trainers), given, bounds, job.message
