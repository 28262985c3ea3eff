"""The commands about submitted jobs, on this machine or on a cluster: their names, options and help texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.errors import clear_errors
from shoal.cli.options import (
    AllNamespaces,
    Context,
    Kubeconfig,
    Local,
    Name,
    Namespace,
    Output,
    State,
    output_format,
    target,
)

__all__ = ["add_commands"]

_SUBMIT = "Train"
_LOOK = "Inspect and scale"
_OTHER = "Other"
_TEXTS = ("text", "json", "yaml")


_Source = Annotated[
    str, typer.Argument(metavar="JOB.YAML|SCRIPT.py", help="A manifest, or a training script.", show_default=False)
]
_Arguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="ARGUMENTS", help="Arguments of the script; after -- if they conflict with options."),
]
_Files = Annotated[
    list[Path] | None,
    typer.Option("--file", metavar="PATH", help="A file or folder to ship with the script; repeatable."),
]
_Name = Annotated[str | None, typer.Option("--name", metavar="NAME", help="Name of the job.")]
_Image = Annotated[
    str | None, typer.Option("--image", metavar="IMAGE", help="Image of all processes (default: Shoal's own).")
]
_Trainers = Annotated[str | None, typer.Option("--trainers", metavar="N|MIN:MAX", help="Number of trainers.")]
_Servers = Annotated[int | None, typer.Option("--servers", metavar="N", help="Number of parameter servers.")]
_Cpu = Annotated[str | None, typer.Option("--cpu", metavar="CORES", help="Cores of each trainer.")]
_Memory = Annotated[str | None, typer.Option("--memory", metavar="SIZE", help="Memory of each trainer.")]
_Gpu = Annotated[int | None, typer.Option("--gpu", metavar="N", help="GPUs of each trainer.")]
_Epochs = Annotated[int | None, typer.Option("--epochs", metavar="N", help="Number of epochs.")]
_Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of order and initial model.")]
_Env = Annotated[
    list[str] | None, typer.Option("--env", metavar="NAME=VALUE", help="Variable of the trainers; repeatable.")
]
_Label = Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Label of the job; repeatable.")]
_Model = Annotated[
    str | None, typer.Option("--output-path", metavar="FILE", help="File that job.save writes (spec.output.path).")
]
_Claim = Annotated[
    str | None, typer.Option("--output-claim", metavar="NAME", help="PersistentVolumeClaim for that file.")
]
_Priority = Annotated[str | None, typer.Option("--priority", metavar="NAME", help="Priority of the job.")]
_Detach = Annotated[bool, typer.Option("--detach", "-d", help="Return at once; do not follow the job.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Validate, and print the manifest.")]


def add_commands(app: typer.Typer) -> None:
    """Add all commands of this module to the application."""
    app.command(
        rich_help_panel=_SUBMIT,
        context_settings={"ignore_unknown_options": True},
        short_help="Submit a script or a manifest, and follow the job.",
    )(submit)
    app.command(rich_help_panel=_LOOK, name="list")(list_jobs)
    for command in (describe, wait, suspend, resume, delete, events, history, fetch, top):
        app.command(rich_help_panel=_LOOK)(command)
    app.command(rich_help_panel=_OTHER)(init)
    app.command(rich_help_panel=_OTHER)(doctor)
    app.command(rich_help_panel=_OTHER)(completion)


def submit(
    source: _Source,
    arguments: _Arguments = None,
    *,
    files: _Files = None,
    name: _Name = None,
    image: _Image = None,
    trainers: _Trainers = None,
    servers: _Servers = None,
    cpu: _Cpu = None,
    memory: _Memory = None,
    gpu: _Gpu = None,
    epochs: _Epochs = None,
    seed: _Seed = None,
    env: _Env = None,
    label: _Label = None,
    model: _Model = None,
    claim: _Claim = None,
    priority: _Priority = None,
    detach: _Detach = False,
    dry_run: _DryRun = False,
    local: Local = False,
    state: State = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Output = "text",
) -> None:
    """Submit a job to the cluster (with --local: to this machine), and follow it to its end.

    A script is shipped with the job, with the files of --file; its image needs only the libraries. Ctrl-C stops
    following, not the job. The exit code is 0 if the job is complete, 1 if it failed, 2 if it is invalid, 130 after Ctrl-C.
    """
    with clear_errors():
        from shoal.cli.jobs.actions import submit as run  # noqa: PLC0415
        from shoal.cli.jobs.submission import submit_arguments  # noqa: PLC0415

        place = target(local=local, state=state, namespace=namespace, context=context, kubeconfig=kubeconfig)
        given = submit_arguments(
            source,
            arguments or [],
            files=files or [],
            name=name,
            image=image,
            trainers=trainers,
            servers=servers,
            resources=(cpu, memory, gpu),
            epochs=epochs,
            seed=seed,
            env=env or [],
            labels=label or [],
            output=model,
            output_claim=claim,
            priority=priority,
        )
        form = output_format(output, "text", "name", "json", "yaml")
        raise typer.Exit(run(place.client(local=local), detach=detach, dry_run=dry_run, form=form, **given))


def list_jobs(
    *,
    job_state: Annotated[
        str | None, typer.Option("--in-state", metavar="STATE", help="Only jobs in this state, such as Running.")
    ] = None,
    selector: Annotated[
        list[str] | None, typer.Option("--selector", "-l", metavar="KEY=VALUE", help="Only jobs with this label.")
    ] = None,
    all_namespaces: AllNamespaces = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Print again every 2 s.")] = False,
    local: Local = False,
    state: State = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Output = "text",
) -> None:
    """List jobs: those of this machine and those of the cluster, if one is configured."""
    with clear_errors():
        from shoal.cli.jobs.actions import list_jobs as run  # noqa: PLC0415

        place = target(local=local, state=state, namespace=namespace, context=context, kubeconfig=kubeconfig)
        form = output_format(output, "text", "wide", "name", "json", "yaml")
        run(place, output=form, state=job_state, labels=selector or [], all_namespaces=all_namespaces, watch=watch)


def describe(
    name: Name,
    *,
    local: Local = False,
    state: State = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Output = "text",
) -> None:
    """Show a job with its processes, changes of size and events."""
    with clear_errors():
        from shoal.cli.jobs.actions import describe_job  # noqa: PLC0415

        place = target(local=local, state=state, namespace=namespace, context=context, kubeconfig=kubeconfig)
        describe_job(place.job(name), output=output_format(output, *_TEXTS))


def wait(
    name: Name,
    *,
    to: Annotated[str, typer.Option("--for", metavar="STATE", help="State to wait for.")] = "Complete",
    limit: Annotated[
        str | None, typer.Option("--timeout", metavar="TIME", help="Longest time, such as 30m (default: none).")
    ] = None,
    local: Local = False,
    state: State = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Wait until a job is in a state.

    It ends at once with exit code 1 when the job cannot reach the state any more, such as a failed or a deleted job.
    """
    with clear_errors():
        from shoal.cli.jobs.actions import wait_for_job  # noqa: PLC0415

        place = target(local=local, state=state, namespace=namespace, context=context, kubeconfig=kubeconfig)
        raise typer.Exit(wait_for_job(place.job(name), state=to, limit=limit))


def suspend(
    name: Name,
    *,
    local: Local = False,
    state: State = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Suspend a job: its snapshots are written, and its processes end."""
    with clear_errors():
        from shoal.cli.jobs.actions import suspend_job  # noqa: PLC0415

        place = target(local=local, state=state, namespace=namespace, context=context, kubeconfig=kubeconfig)
        suspend_job(place.job(name))


def resume(
    name: Name,
    *,
    local: Local = False,
    state: State = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Resume a suspended job from its snapshots."""
    with clear_errors():
        from shoal.cli.jobs.actions import resume_job  # noqa: PLC0415

        place = target(local=local, state=state, namespace=namespace, context=context, kubeconfig=kubeconfig)
        resume_job(place.job(name))


def delete(
    name: Name,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    local: Local = False,
    state: State = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Delete a job with its snapshots and logs; the claim of its model stays."""
    with clear_errors():
        from shoal.cli.jobs.actions import delete_job  # noqa: PLC0415

        place = target(local=local, state=state, namespace=namespace, context=context, kubeconfig=kubeconfig)
        delete_job(place.job(name), yes=yes)


def events(
    name: Name,
    *,
    local: Local = False,
    state: State = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Output = "text",
) -> None:
    """Show what was recorded of a job: starts, changes of size, warnings."""
    with clear_errors():
        from shoal.cli.jobs.actions import show_events  # noqa: PLC0415

        place = target(local=local, state=state, namespace=namespace, context=context, kubeconfig=kubeconfig)
        show_events(place.job(name), output=output_format(output, *_TEXTS))


def history(
    name: Name,
    *,
    local: Local = False,
    state: State = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Output = "text",
) -> None:
    """Show the last 100 changes of a job's number of trainers, with their causes."""
    with clear_errors():
        from shoal.cli.jobs.actions import show_history  # noqa: PLC0415

        place = target(local=local, state=state, namespace=namespace, context=context, kubeconfig=kubeconfig)
        show_history(place.job(name), output=output_format(output, *_TEXTS))


def fetch(
    name: Name,
    path: Annotated[
        str | None, typer.Argument(metavar="FILE", help="File of the job (default: its spec.output.path).")
    ] = None,
    destination: Annotated[
        Path | None, typer.Option("--to", metavar="PATH", help="File or folder here (default: the current folder).")
    ] = None,
    *,
    local: Local = False,
    state: State = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Copy the model that a job wrote to this machine."""
    with clear_errors():
        from shoal.cli.jobs.actions import fetch as run  # noqa: PLC0415

        place = target(local=local, state=state, namespace=namespace, context=context, kubeconfig=kubeconfig)
        run(place.job(name), name=path, target=destination)


def top(
    *,
    once: Annotated[bool, typer.Option("--once", help="Show it once, also in a pipe.")] = False,
    all_namespaces: AllNamespaces = False,
    local: Local = False,
    state: State = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show all jobs live: rates, sizes, and why they get no more trainers."""
    with clear_errors():
        from shoal.cli.jobs.top import show_top  # noqa: PLC0415

        place = target(local=local, state=state, namespace=namespace, context=context, kubeconfig=kubeconfig)
        show_top(place, all_namespaces=all_namespaces, once=once)


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of the new job (default: the current one).")
    ] = Path(),
) -> None:
    """Write a script and a manifest of a new job, which run at once."""
    with clear_errors():
        from shoal.cli.tools.init import create_job  # noqa: PLC0415

        create_job(folder)


def doctor(
    *,
    local: Local = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Output = "text",
) -> None:
    """Check the cluster, your permissions and this machine; each finding has its fix. Exit code 1 if anything is wrong."""
    with clear_errors():
        form = output_format(output, *_TEXTS)
        from shoal.cli.tools.doctor import show_doctor  # noqa: PLC0415

        place = target(local=local, namespace=namespace, context=context, kubeconfig=kubeconfig)
        raise typer.Exit(show_doctor(place, output=form))


def completion(
    shell: Annotated[str, typer.Argument(metavar="bash|zsh|fish", help="The shell.", show_default=False)],
) -> None:
    """Print the completion of a shell; for bash: source <(shoal completion bash)."""
    with clear_errors():
        from shoal.cli.tools.completion import completion_script  # noqa: PLC0415

        typer.echo(completion_script(shell))
