"""`shoal top`: all jobs of a cluster, live: rates, shares, and the room that is left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from shoal.api.plan import Plan
from shoal.cli.errors import CommandError
from shoal.cli.options import Target
from shoal.cli.render import age, job_row
from shoal.cli.tables import stdout
from shoal.sdk import Client, JobStatus, State
from shoal.sdk.errors import ShoalError

__all__ = ["show_top", "top_table"]

_REFRESH_SECONDS: Final = 1.0
_COLUMNS: Final = ("JOB", "STATE", "TRAINERS", "RANGE", "PROGRESS", "RATE", "LEFT", "AGE", "WHY NOT MORE")
_RIGHT: Final = frozenset({"TRAINERS", "PROGRESS", "RATE", "LEFT", "AGE"})
_ORDER: Final = {State.RUNNING: 0, State.STARTING: 1, State.PENDING: 2, State.QUEUED: 3}


def show_top(place: Target, *, all_namespaces: bool, once: bool) -> None:
    """Show all jobs, again every second, until Ctrl-C.

    Args:
        place: Where the jobs are.
        all_namespaces: Whether jobs of all namespaces are shown.
        once: Whether they are shown once only.

    Raises:
        CommandError: The output is not a terminal, and `once` is not set.
    """
    console = stdout()
    if not once and not console.is_terminal:
        raise CommandError("`shoal top` needs a terminal; in a pipe use --once, or `shoal list --watch`")
    client = place.client(local=place.local)
    if once:
        console.print(_screen(client, local=place.local, all_namespaces=all_namespaces))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            try:
                live.update(_screen(client, local=place.local, all_namespaces=all_namespaces), refresh=True)
            except ShoalError as error:
                live.update(Text(f"{error}; tried again", style="red"), refresh=True)
            time.sleep(_REFRESH_SECONDS)  # a screen for people; it needs no event


def _screen(client: Client, *, local: bool, all_namespaces: bool) -> RenderableType:
    plan: Plan | None = None
    if not local:
        # The caller may not be allowed to read the plan, or there is no autoscaler.
        with suppress(ShoalError):
            plan = client.plan()
    return top_table(client.list(all_namespaces=all_namespaces), plan, with_namespace=all_namespaces)


def top_table(jobs: Sequence[JobStatus], plan: Plan | None, *, with_namespace: bool) -> RenderableType:
    """Return the table of all jobs, those that run first, with a line about the cluster above it.

    Args:
        jobs: The jobs.
        plan: The autoscaler's last plan; None: there is none, or the caller may not read it.
        with_namespace: Whether names have their namespaces.
    """
    running = [each for each in jobs if each.state is State.RUNNING]
    rate = sum(each.progress.rate or 0 for each in running)
    head = f"{len(jobs)} jobs, {len(running)} running, {sum(each.trainers.ready for each in jobs)} trainers, "
    head += f"{rate:,.0f} samples/s"
    if plan is not None:
        head += f"; {plan.usable} of {plan.nodes} nodes accept pods; claims for {len(plan.claims)} pods"
    reasons = {(each.namespace, each.name): each.message for each in plan.jobs} if plan is not None else {}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in _COLUMNS:
        table.add_column(name, justify="right" if name in _RIGHT else "left", no_wrap=name != _COLUMNS[-1])
    for each in sorted(jobs, key=lambda job: (_ORDER.get(job.state, len(_ORDER)), job.namespace, job.name)):
        message = reasons.get((each.namespace, each.name)) or each.message or each.progress.message
        ended = f"{age(each.ended)} ago" if each.ended is not None else message.partition("\n")[0]
        table.add_row(*map(Text, (*job_row(each, with_namespace=with_namespace), ended)))
    return Group(Text(head), table)
