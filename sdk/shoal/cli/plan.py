"""`shoal plan`: the autoscaler's last plan for a cluster, with its reasons."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from typing import Final

import msgspec
from rich.console import Console

from shoal.api.plan import PLAN_KEY, PLAN_NAME, Plan, PlannedJob
from shoal.cli.errors import FAILED, CommandError
from shoal.cli.tables import print_table, stdout
from shoal.kube import Kube, KubeError

__all__ = ["show_plan"]

_TIMEOUT_SECONDS: Final = 10.0


def show_plan(*, namespace: str, context: str | None, output: str) -> None:
    """Print the last plan.

    Args:
        namespace: Namespace of the operator.
        context: Context of the kubeconfig; None: the current one.
        output: ``text`` or ``json``.

    Raises:
        CommandError: There is no plan, or the cluster is not reachable.
    """
    text = asyncio.run(_read(namespace, context))
    try:
        plan = msgspec.json.decode(text, type=Plan)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CommandError(f"the plan in {namespace} is of another version of Shoal: {error}", code=FAILED) from None
    if output == "json":
        sys.stdout.write(text.strip() + "\n")
        return
    _show(plan, stdout())


async def _read(namespace: str, context: str | None) -> str:
    try:
        async with await Kube.connect(context=context, timeout_seconds=_TIMEOUT_SECONDS) as kube:
            found = await kube.get("ConfigMap", PLAN_NAME, namespace=namespace)
    except KubeError as error:
        raise CommandError(str(error), code=FAILED) from None
    if found is None:
        fix = "its operator may run elsewhere (--namespace), or without an autoscaler (deploy/overlays/autoscaler)"
        raise CommandError(f"no plan in namespace {namespace}: {fix}", code=FAILED)
    return str((found.get("data") or {}).get(PLAN_KEY, ""))


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
