"""`shoal run`: from the command line to a running job."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from shoal.api import ManifestError, TrainingJob, for_script, load, with_options
from shoal.cli.errors import FAILED, INTERRUPTED, CommandError, ignore_closed_output
from shoal.local.launch import Launcher, variables
from shoal.local.state import manifest_changes
from shoal.local.state.job_record import JobRecord
from shoal.local.state.state_folder import BusyError, Origin, RunEnd, StateFolder, base_folder
from shoal.local.view.formatting import account_lines, counted
from shoal.local.view.plain import PlainView, ProgressView, QuietView
from shoal.local.view.status import is_good

if TYPE_CHECKING:
    from shoal.local.etcd_server import EtcdServer

__all__ = ["Options", "job_of", "run_job"]

_MANIFESTS = {".yaml", ".yml", ".json"}
_MOST_BY_ITSELF = 4
"""Most trainers of a script without --trainers: each is a process with its own copy of torch."""

_ETCD_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Arguments and options of the command line."""

    target: str
    arguments: list[str]
    trainers: str | None
    servers: int | None
    epochs: int | None
    seed: int | None
    name: str | None
    state: Path | None
    etcd: str | None
    fresh: bool
    output: str
    quiet: bool


def run_job(options: Options) -> int:
    """Run the job and return the exit code."""
    job, origin = job_of(options)
    if job.spec.suspend:
        raise CommandError(f"{options.target}: spec.suspend is true, so the job is paused; set it to false to run it")
    variables(job, os.environ)
    state = StateFolder(base_folder(options.state), job.metadata.name)
    try:
        state.lock()
    except BusyError as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        raise CommandError(f"the folder for the job's state cannot be used: {error}; name another by --state") from None
    try:
        return _run_locked(options, job, origin, state)
    finally:
        state.unlock()


def _run_locked(options: Options, job: TrainingJob, origin: Origin, state: StateFolder) -> int:
    messages: list[str] = []
    if state.exists and not options.fresh:
        ended = _compare(options, job, origin, state, messages)
        if ended is not None:
            return ended
    # Before anything is removed or written, so that a run without an etcd changes nothing.
    etcd = _etcd(options, state, messages)
    if options.fresh and state.exists:
        state.clear(folder=origin.folder)
        messages.append(f"--fresh: removed the state of an earlier run in {state.path}")
    if state.exists and state.started:
        messages.append(f"job {job.metadata.name} resumes from its state in {state.path}")
    state.prepare(job, origin)
    state.write_etcd_choice(_absolute(options.etcd))
    view = _view(options)
    for line in messages:
        view.print_event("info", line)
    try:
        end = _run(job, origin, state, etcd, view)
    finally:
        view.close()
    return _report(options, state, end)


# --- The job ---


def job_of(options: Options) -> tuple[TrainingJob, Origin]:
    """Return the job to run and its origin.

    Raises:
        CommandError: The file does not exist, or has an unknown suffix.
        ManifestError: The manifest or an option is invalid.
    """
    path = Path(options.target)
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise CommandError(f"{options.target} {kind}; name a manifest (job.yaml) or a training script (train.py)")
    if path.suffix == ".py":
        return _script(options, path)
    if path.suffix not in _MANIFESTS:
        raise CommandError(f"{options.target}: neither a manifest (.yaml, .yml, .json) nor a Python script (.py)")
    if options.arguments:
        raise CommandError(
            f"{' '.join(options.arguments)}: unknown here; a manifest has its arguments in spec.args, "
            "and the options of `shoal run` are shown by --help"
        )
    job = with_options(
        load(path),
        trainers=options.trainers,
        servers=options.servers,
        epochs=options.epochs,
        seed=options.seed,
        name=options.name,
    )
    return job, _kept_origin(options, job, path) or Origin(folder=str(path.resolve().parent), source="")


def _kept_origin(options: Options, job: TrainingJob, path: Path) -> Origin | None:
    """Return the origin of a job whose manifest is given as the one in its state folder; None for another manifest."""
    state = StateFolder(base_folder(options.state), job.metadata.name)
    return state.origin() if path.resolve() == state.manifest else None


def _script(options: Options, path: Path) -> tuple[TrainingJob, Origin]:
    trainers = options.trainers or f"1:{max(1, min(_MOST_BY_ITSELF, _cores()))}"
    job = for_script(
        options.target,
        options.arguments,
        trainers=trainers,
        servers=options.servers if options.servers is not None else 1,
        epochs=options.epochs,
        seed=options.seed,
        name=options.name,
    )
    return job, Origin(folder=str(Path.cwd()), source=str(path.resolve()))


# --- State of an earlier run ---


def _compare(options: Options, job: TrainingJob, origin: Origin, state: StateFolder, messages: list[str]) -> int | None:
    """Check that the job can resume; return the exit code if it is already complete, else None.

    Raises:
        CommandError: The job cannot resume.
    """
    name = job.metadata.name
    before = state.origin()
    if before is not None and before != origin:
        raise CommandError(
            f"another job named {name} is kept in {state.path}: it came from {before.source or before.folder}; "
            "give this one another --name, or replace that one with --fresh"
        )
    try:
        old = state.job()
    except ManifestError:
        raise CommandError(f"{state.manifest} is damaged; start over with --fresh") from None
    end = state.end()
    if end is not None and end.final and end.state == "Complete":
        if (job.spec.epochs or 0) > end.account.epochs and not end.reason:
            raise CommandError(
                f"job {name} is complete with {end.account.epochs} epochs and cannot be extended to {job.spec.epochs}; "
                "start over with --fresh, or give it another --name"
            )
        if not options.quiet:
            sys.stderr.write(f"job {name} is complete already; --fresh starts it over\n")
        return _report(options, state, end)
    if end is not None and end.final:
        raise CommandError(f"job {name} has failed: {end.reason}\nstart over with --fresh", code=FAILED)
    refusals = manifest_changes.refusals(old, job)
    if refusals:
        raise CommandError(
            "\n".join([f"job {name} was started with another manifest and cannot resume with this one:", *refusals])
        )
    messages += manifest_changes.notes(old, job)
    return None


# --- Running ---


def _run(job: TrainingJob, origin: Origin, state: StateFolder, etcd: str | EtcdServer, view: ProgressView) -> RunEnd:
    # Imported late, so that a mistyped command line is reported without the delay of these imports.
    from shoal.local.job_etcd import OwnEtcd  # noqa: PLC0415
    from shoal.local.runner import Runner, run  # noqa: PLC0415

    cores = _cores()
    launcher = Launcher(
        job=job,
        manifest=state.manifest,
        folder=Path(origin.folder),
        token=state.token,
        uid=state.uid,
        sockets=state.make_sockets(),
        master=state.master,
        snapshots=state.snapshots,
        etcd=etcd if isinstance(etcd, str) else etcd.endpoint,
        cores=cores,
        inherited=dict(os.environ),
    )
    trainers = job.desired_trainers(cores)
    change = JobRecord(state.record()).pinned
    fits = change is not None and job.spec.trainer.min_replicas <= change.after <= job.spec.trainer.most
    pinned = change.after if change is not None and fits else None
    view.print_event(
        "info",
        f"{state.name}: {counted(pinned or trainers, 'trainer')}, {counted(job.servers, 'parameter server')} "
        f"(output: shoal logs {state.name} -f)",
    )
    if job.spec.env_from:
        view.print_event("warning", "spec.envFrom is ignored: it needs a cluster")
    own = None if isinstance(etcd, str) else OwnEtcd(etcd)
    return run(
        lambda: Runner(job, state=state, launcher=launcher, etcd=own, trainers=trainers, pinned=pinned, view=view)
    )


def _absolute(etcd: str | None) -> str | None:
    """Return the value of ``--etcd`` so that it is valid in each folder."""
    from shoal.local.etcd_server import is_endpoint  # noqa: PLC0415

    return etcd if etcd is None or is_endpoint(etcd) else str(Path(etcd).expanduser().resolve())


def _etcd(options: Options, state: StateFolder, messages: list[str]) -> str | EtcdServer:
    """Return the endpoint of ``--etcd``, or an etcd server to start.

    Raises:
        CommandError: The endpoint does not answer, or no etcd binary is found.
    """
    from shoal.local.etcd_server import EtcdError, EtcdServer, find_etcd, is_endpoint  # noqa: PLC0415
    from shoal.store import Store, StoreError  # noqa: PLC0415

    if options.etcd is not None and is_endpoint(options.etcd):
        try:
            Store.connect(options.etcd, prefix="", timeout_seconds=_ETCD_SECONDS).close()
        except (StoreError, ValueError) as error:
            raise CommandError(f"--etcd {options.etcd}: {error}") from None
        return options.etcd
    try:
        binary = find_etcd(options.etcd)
    except EtcdError as error:
        raise CommandError(str(error)) from None
    if binary.note is not None:
        messages.append(binary.note)
    return EtcdServer(binary, state.etcd)


def _view(options: Options) -> ProgressView:
    if options.quiet:
        return QuietView(sys.stderr)
    stream = sys.stderr if options.output == "json" else sys.stdout
    # The live view redraws the screen, which needs a terminal that can move the cursor.
    if not stream.isatty() or os.environ.get("TERM", "dumb") in {"dumb", "unknown"}:
        return PlainView(stream)
    from rich.console import Console  # noqa: PLC0415

    from shoal.local.view.live import LiveView  # noqa: PLC0415

    return LiveView(Console(file=stream))


def _report(options: Options, state: StateFolder, end: RunEnd) -> int:
    """Print the account and return the exit code."""
    name = state.name
    if end.state == "Failed":
        sys.stderr.write(f"error: job {name} failed: {end.reason}\n(logs: shoal logs {name}, in {state.logs})\n")
    if end.state == "Stopped":
        sys.stderr.write(f"job {name} is stopped; run the same command again to resume it\n")
    account = "\n".join(account_lines(name, end.account, reason=end.reason if end.state == "Complete" else ""))
    if options.output == "json":
        account = msgspec.json.encode(end.account).decode()
    # The exit code shows the job's end also if standard output is closed.
    with ignore_closed_output():
        sys.stdout.write(account + "\n")
        sys.stdout.flush()
    if end.state == "Stopped":
        return INTERRUPTED
    return 0 if is_good(end.account) and end.state == "Complete" else FAILED


def _cores() -> int:
    return len(os.sched_getaffinity(0))
