"""Commands about one job or all jobs, on this machine or on a cluster, by way of the SDK."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from shoal.cli.errors import FAILED, CommandError
from shoal.cli.options import Target, has_kubeconfig
from shoal.cli.render import (
    JOB_COLUMNS,
    WIDE_COLUMNS,
    account_text,
    as_text,
    event_row,
    history_row,
    job_row,
    progress_text,
    status_lines,
    wide_row,
)
from shoal.cli.tables import print_table
from shoal.sdk import Client, Job, JobStatus, State
from shoal.sdk.errors import NotConfiguredError, ShoalError

__all__ = [
    "change_size",
    "check_size",
    "delete_job",
    "describe_job",
    "fetch",
    "follow_job",
    "list_jobs",
    "resume_job",
    "show_events",
    "show_history",
    "show_job",
    "submit",
    "suspend_job",
    "wait_for_job",
]

_RIGHT: Final = frozenset({"TRAINERS", "PROGRESS", "RATE", "LEFT", "AGE"})
_REFRESH_SECONDS: Final = 2.0
_MEMBERS: Final = ("PROCESS", "STATE", "NODE", "RESTARTS", "MESSAGE")


def list_jobs(
    place: Target, *, output: str, state: str | None, labels: Sequence[str], all_namespaces: bool, watch: bool
) -> None:
    """Print all jobs: those of this machine, and those of the cluster if one is configured.

    Args:
        place: Where the jobs are.
        output: ``text``, ``wide``, ``name``, ``json`` or ``yaml``.
        state: Only jobs in this state; None: all.
        labels: Only jobs with these labels, as KEY=VALUE.
        all_namespaces: Whether jobs of all namespaces are printed.
        watch: Whether the table is printed again every 2 s, until Ctrl-C.
    """
    wanted = dict(_label(each) for each in labels)
    clients = _clients(place)
    while True:
        found: list[JobStatus] = []
        for client, is_required in clients:
            try:
                found += client.list(state=state, labels=wanted, all_namespaces=all_namespaces)
            except ShoalError as error:
                if is_required:
                    raise
                if has_kubeconfig() or not isinstance(error, NotConfiguredError):
                    sys.stderr.write(f"only the jobs of this machine: {error}\n")
                clients = [each for each in clients if each[0] is not client]
        _print_jobs(found, output=output, with_namespace=all_namespaces)
        if not watch:
            return
        sys.stdout.flush()
        time.sleep(_REFRESH_SECONDS)  # a table for people; it needs no event


def _clients(place: Target) -> list[tuple[Client, bool]]:
    """Return the clients of the places, and whether each of them must answer."""
    if place.local:
        return [(place.client(local=True), True)]
    if place.names_cluster:
        return [(place.client(local=False), True)]
    return [(place.client(local=True), True), (place.client(local=False), False)]


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise CommandError(f"--selector {text}: write KEY=VALUE")
    return key, value


def _print_jobs(jobs: Sequence[JobStatus], *, output: str, with_namespace: bool) -> None:
    if output == "name":
        sys.stdout.write("".join(f"{each.name}\n" for each in jobs))
    elif output in {"json", "yaml"}:
        sys.stdout.write(as_text(list(jobs), output))
    elif not jobs:
        sys.stdout.write("no jobs; submit one with `shoal submit`\n")
    else:
        wide = output == "wide"
        rows = [(wide_row if wide else job_row)(each, with_namespace=with_namespace) for each in jobs]
        print_table(WIDE_COLUMNS if wide else JOB_COLUMNS, rows, right=_RIGHT)


def show_job(job: Job, *, output: str) -> None:
    """Print the state of a job and its processes."""
    status = job.status()
    if output == "name":
        sys.stdout.write(f"{status.name}\n")
        return
    if output in {"json", "yaml"}:
        sys.stdout.write(as_text(status, output))
        return
    head, rows = status_lines(status, job.members())
    sys.stdout.write("\n".join(head) + "\n")
    if rows:
        sys.stdout.write("\n")
        print_table(_MEMBERS, rows, right={"RESTARTS"})


def describe_job(job: Job, *, output: str) -> None:
    """Print the state of a job with its processes, changes of size and events."""
    if output in {"json", "yaml"}:
        parts = {
            "status": job.status(),
            "members": job.members(),
            "history": job.history(),
            "events": job.events(),
        }
        sys.stdout.write(as_text(parts, output))
        return
    show_job(job, output="text")
    for title, columns, rows in (
        ("Changes of size", ("TIME", "TRAINERS", "CAUSE", "BY"), list(map(history_row, job.history()))),
        ("Events", ("AGE", "TYPE", "REASON", "COUNT", "MESSAGE"), list(map(event_row, job.events()))),
    ):
        sys.stdout.write(f"\n{title}:\n")
        if rows:
            print_table(columns, rows)
        else:
            sys.stdout.write("  none\n")


def show_events(job: Job, *, output: str) -> None:
    """Print the events of a job."""
    events = job.events()
    if output in {"json", "yaml"}:
        sys.stdout.write(as_text(events, output))
    elif events:
        print_table(("AGE", "TYPE", "REASON", "COUNT", "MESSAGE"), map(event_row, events), right={"COUNT"})
    else:
        sys.stdout.write(f"job {job.name} has no events\n")


def show_history(job: Job, *, output: str) -> None:
    """Print the changes of a job's size."""
    changes = job.history()
    if output in {"json", "yaml"}:
        sys.stdout.write(as_text(changes, output))
    elif changes:
        print_table(("TIME", "TRAINERS", "CAUSE", "BY"), map(history_row, changes))
    else:
        sys.stdout.write(f"the number of trainers of job {job.name} has not changed\n")


def check_size(*, trainers: int | None, auto: bool, low: int | None, high: int | None) -> None:
    """Check the options of a change of size.

    Raises:
        CommandError: None of the options is set, or several contradict each other.
    """
    if sum((trainers is not None, auto, low is not None or high is not None)) != 1:
        raise CommandError("give a number of trainers, --auto, or the bounds --min and --max")


def change_size(job: Job, *, trainers: int | None, auto: bool, low: int | None, high: int | None) -> None:
    """Pin the number of trainers, un-pin it, or change its bounds; the options are checked by `check_size`."""
    job.scale(trainers, min=low, max=high)
    if trainers is not None:
        what = f"{trainers} trainers"
    elif auto:
        what = "as many trainers as there is room for, within its bounds"
    else:
        named = [f"{name} {value}" for name, value in (("at least", low), ("at most", high)) if value is not None]
        what = f"{' and '.join(named)} trainers"
    sys.stdout.write(f"{job.name}: {what}\n")


def suspend_job(job: Job) -> None:
    """Suspend a job."""
    job.suspend()
    sys.stdout.write(f"{job.name}: suspended after its snapshots are written; `shoal resume {job.name}` resumes it\n")


def resume_job(job: Job) -> None:
    """Resume a job."""
    job.resume()
    sys.stdout.write(f"{job.name}: resumes from its snapshots\n")


def delete_job(job: Job, *, yes: bool) -> None:
    """Delete a job; on a terminal after a question.

    Raises:
        CommandError: The answer is not yes.
    """
    if not yes and sys.stdin.isatty() and sys.stdout.isatty():
        status = job.status()
        where = f" in namespace {job.namespace}" if job.namespace else " on this machine"
        question = f"delete job {job.name}{where} ({status.state.value}), with its snapshots and logs? [y/N] "
        if input(question).strip().lower() not in {"y", "yes"}:
            raise CommandError("nothing is deleted", code=FAILED)
    job.delete()
    sys.stdout.write(f"{job.name}: deleted\n")


def wait_for_job(job: Job, *, state: str, limit: str | None) -> int:
    """Wait for a state and return the exit code: 0 when it is reached, 1 when it cannot be reached any more."""
    try:
        status = job.wait(state, timeout=limit)
    except ShoalError as error:
        sys.stderr.write(f"error: {error}\n")
        return FAILED
    sys.stdout.write(f"{status.name}: {status.state.value}\n")
    return 0


def follow_job(job: Job, *, output: str) -> int:
    """Print the progress of a job until it ends, and return its exit code: 0 complete, 1 failed.

    Ctrl-C stops following, not the job.
    """
    shown: tuple[str, str] | None = None
    last: JobStatus | None = None
    try:
        for status in job.watch(bar=None if output == "text" else False):
            last = status
            if output == "json":
                sys.stdout.write(as_text(status, "json"))
            elif (line := (status.state.value, progress_text(status))) != shown and not sys.stdout.isatty():
                shown = line
                sys.stdout.write(f"{line[0]:10}  {line[1]}".rstrip() + "\n")
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.stderr.write(
            f"\njob {job.name} continues; come back with `shoal status {job.name}` or `shoal logs {job.name} -f`\n"
        )
        raise
    return _report_end(job, last)


def _report_end(job: Job, status: JobStatus | None) -> int:
    if status is None:
        return FAILED
    if status.state is State.COMPLETE:
        if status.account is not None and sys.stdout.isatty():
            sys.stdout.write(f"{account_text(status)}\n")
        return 0
    try:
        job.wait(State.COMPLETE, timeout=1)
    except ShoalError as error:
        sys.stderr.write(f"error: {error}\n")
    return FAILED


def fetch(job: Job, *, name: str | None, target: Path | None) -> None:
    """Copy the model of a job to this machine, with its progress on a terminal."""
    started = time.monotonic()
    copied = job.fetch_model(name, target, on_progress=_progress() if sys.stderr.isatty() else None)
    size = copied.stat().st_size
    sys.stderr.write("\r\033[K" if sys.stderr.isatty() else "")
    sys.stdout.write(f"{copied}: {size:,} bytes in {time.monotonic() - started:.1f} s, checksum verified\n")


def _progress() -> Callable[[int, int], None]:
    last = 0.0

    def show(done: int, whole: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last > 0.2 or done == whole:
            last = now
            sys.stderr.write(f"\r\033[K{done / 1e6:,.1f} of {whole / 1e6:,.1f} MB")
            sys.stderr.flush()

    return show


def submit(client: Client, *, detach: bool, dry_run: bool, form: str, **arguments: Any) -> int:
    """Submit a job, and follow it to its end unless it is detached; return the exit code."""
    found = client.submit(dry_run=dry_run, **arguments)
    if dry_run:
        sys.stdout.write(as_text(found, "json" if form == "json" else "yaml"))
        return 0
    if detach:
        sys.stdout.write(f"{found.name}\n" if form == "name" else f"job {found.name} is submitted\n")
        return 0
    sys.stderr.write(f"job {found.name} is submitted; Ctrl-C stops following it, not the job\n")
    return follow_job(found, output=form)
