"""The `shoal` command. Each command imports its modules when it runs, so that `shoal --help` starts fast."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from shoal.cli.commands import add_commands
from shoal.cli.errors import CommandError, clear_errors
from shoal.cli.options import Context, Kubeconfig, Local, Name, Namespace, Output, State, output_format, target

__all__ = ["app", "main"]

_ABOUT = """Elastic training of PyTorch models: every sample counts exactly once, whatever is killed.

**Examples**

- `shoal run train.py --trainers 1:4` trains with one to four trainers on this machine

- `shoal run job.yaml` runs the job of a manifest; after Ctrl-C the same command resumes it

- `shoal submit train.py --trainers 2:8` ships a script to a cluster and follows the job there

- `shoal scale digits 3` changes the number of trainers while it runs

- `shoal status digits` and `shoal logs digits -f` show its progress and logs
"""

app = typer.Typer(
    help=_ABOUT,
    rich_markup_mode="markdown",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_COMPLETE = "_SHOAL_COMPLETE"
"""Variable that a shell sets to ask for completions."""
_RUN = "Train"
_INSPECT = "Inspect and scale"
_OTHER = "Other"

_Trainers = Annotated[
    str | None,
    typer.Option(
        "--trainers",
        metavar="N|MIN:MAX",
        help="Number of trainers (default: the manifest's; for a script 1 to the number of cores, at most 4).",
        show_default=False,
    ),
]
_Servers = Annotated[
    int | None,
    typer.Option(
        "--servers",
        metavar="N",
        help="Number of parameter servers (default: the manifest's; for a script 1).",
        show_default=False,
    ),
]
_Epochs = Annotated[
    int | None,
    typer.Option(
        "--epochs",
        metavar="N",
        help="Number of epochs (default: the manifest's, else the script's).",
        show_default=False,
    ),
]
_Seed = Annotated[
    int | None,
    typer.Option("--seed", metavar="N", help="Seed of the samples' order and of new parameters.", show_default=False),
]
_Name = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="NAME",
        help="Name of the job (default: the manifest's, else the script's).",
        show_default=False,
    ),
]
_Etcd = Annotated[
    str | None,
    typer.Option("--etcd", metavar="PATH|ENDPOINT", help="An etcd binary, or a running etcd.", show_default=False),
]


@app.command(
    rich_help_panel=_RUN, context_settings={"ignore_unknown_options": True}, short_help="Run a job on this machine."
)
def run(
    target: Annotated[
        str, typer.Argument(metavar="JOB.YAML|SCRIPT.py", help="A manifest, or a training script.", show_default=False)
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ARGUMENTS",
            help="Arguments of the script; after -- if they conflict with options.",
            show_default=False,
        ),
    ] = None,
    *,
    trainers: _Trainers = None,
    servers: _Servers = None,
    epochs: _Epochs = None,
    seed: _Seed = None,
    name: _Name = None,
    state: State = None,
    etcd: _Etcd = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over: remove the state of earlier runs of this job.")
    ] = False,
    output: Output = "text",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show errors and the final account only.")] = False,
) -> None:
    """Run a job on this machine, to its end.

    Ctrl-C stops the job gracefully, and the same command resumes it. A process that exits early is replaced.
    The exit code is 0 only if every sample of every epoch counted exactly once; 1 if the job failed; 2 if
    the command line or the manifest is invalid; 130 after Ctrl-C.
    """
    with clear_errors():
        from shoal.cli.local.run import Options, run_job  # noqa: PLC0415

        options = Options(
            target=target,
            arguments=list(arguments or []),
            trainers=trainers,
            servers=servers,
            epochs=epochs,
            seed=seed,
            name=name,
            state=state,
            etcd=etcd,
            fresh=fresh,
            output=output_format(output, "text", "json"),
            quiet=quiet,
        )
        raise typer.Exit(run_job(options))


@app.command(rich_help_panel=_INSPECT, short_help="Show the autoscaler's last plan for a cluster, with its reasons.")
def plan(
    *,
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", metavar="NAME", help="Namespace of Shoal's operator.")
    ] = "shoal-system",
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Output = "text",
) -> None:
    """Show the autoscaler's last plan for a cluster.

    It lists each job's trainers and why it gets no more, and the claims for pending pods.
    """
    with clear_errors():
        form = output_format(output, "text", "json")
        from shoal.cli.jobs.plan import show_plan  # noqa: PLC0415

        place = target(context=context, kubeconfig=kubeconfig)
        show_plan(place.client(local=False).plan(namespace=namespace), output=form)


@app.command(rich_help_panel=_INSPECT)
def status(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Name of a job; without one: all jobs.", show_default=False)
    ] = None,
    *,
    local: Local = False,
    state: State = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Output = "text",
) -> None:
    """Show a job's progress and processes, also after its end."""
    with clear_errors():
        place = target(local=local, state=state, namespace=namespace, context=context, kubeconfig=kubeconfig)
        if name is None and not place.names_cluster:
            from shoal.cli.local.status import show_all  # noqa: PLC0415

            show_all(state, output=output_format(output, "text", "json"))
        elif name is not None and place.is_here(name):
            from shoal.cli.local.status import show_status  # noqa: PLC0415

            show_status(name, state, output=output_format(output, "text", "json"))
        elif name is None:
            from shoal.cli.jobs.actions import list_jobs  # noqa: PLC0415

            form = output_format(output, "text", "wide", "name", "json", "yaml")
            list_jobs(place, output=form, state=None, labels=[], all_namespaces=False, watch=False)
        else:
            from shoal.cli.jobs.actions import show_job  # noqa: PLC0415

            show_job(place.job(name, local=False), output=output_format(output, "text", "name", "json", "yaml"))


@app.command(rich_help_panel=_INSPECT)
def scale(
    name: Name,
    number: Annotated[
        int | None, typer.Argument(metavar="N", help="Number of trainers, within the job's bounds.", show_default=False)
    ] = None,
    *,
    trainers: Annotated[
        int | None, typer.Option("--trainers", metavar="N", help="The same as N.", show_default=False)
    ] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Let the number vary within the bounds again.")] = False,
    low: Annotated[
        int | None, typer.Option("--min", metavar="N", help="Fewest trainers, on a cluster.", show_default=False)
    ] = None,
    high: Annotated[
        int | None, typer.Option("--max", metavar="N", help="Most trainers, on a cluster.", show_default=False)
    ] = None,
    local: Local = False,
    state: State = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Change the number of trainers of a running job, or its bounds."""
    with clear_errors():
        place = target(local=local, state=state, namespace=namespace, context=context, kubeconfig=kubeconfig)
        if number is not None and trainers is not None:
            raise CommandError("N and --trainers are the same option; give one of them")
        wanted = number if number is not None else trainers
        is_here = place.is_here(name)
        if is_here and low is None and high is None:
            from shoal.cli.local.scale import scale_job  # noqa: PLC0415

            scale_job(name, state, trainers=wanted, auto=auto)
        else:
            from shoal.cli.jobs.actions import change_size, check_size  # noqa: PLC0415

            check_size(trainers=wanted, auto=auto, low=low, high=high)
            change_size(place.job(name, local=is_here), trainers=wanted, auto=auto, low=low, high=high)


@app.command(rich_help_panel=_INSPECT)
def logs(
    name: Name,
    process: Annotated[
        str | None,
        typer.Argument(metavar="ROLE-N", help="Process, such as trainer-0; without one: all.", show_default=False),
    ] = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until the job ends.")] = False,
    tail: Annotated[
        int | None,
        typer.Option("--tail", metavar="N", min=0, help="Start with the last N lines of each log.", show_default=False),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="Only lines of this time, such as 5m; on a cluster."),
    ] = None,
    previous: Annotated[bool, typer.Option("--previous", "-p", help="The containers' last run; on a cluster.")] = False,
    local: Local = False,
    state: State = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show the logs of a job's processes, merged."""
    with clear_errors():
        place = target(local=local, state=state, namespace=namespace, context=context, kubeconfig=kubeconfig)
        if place.is_here(name):
            if since is not None or previous:
                raise CommandError("--since and --previous are for jobs on a cluster; the logs here have no times")
            from shoal.cli.local.logs import show_logs  # noqa: PLC0415

            show_logs(name, state, process=process, follow=follow, tail=tail)
        else:
            from shoal.cli.jobs.logs import print_logs  # noqa: PLC0415

            print_logs(
                place.job(name, local=False), process=process, follow=follow, tail=tail, since=since, previous=previous
            )


@app.command(rich_help_panel=_OTHER)
def validate(
    manifest: Annotated[Path, typer.Argument(metavar="JOB.YAML", help="The manifest.", show_default=False)],
    output: Output = "text",
) -> None:
    """Validate a manifest and list all problems."""
    with clear_errors():
        from shoal.cli.tools.validate import validate_manifest  # noqa: PLC0415

        raise typer.Exit(validate_manifest(manifest, output=output_format(output, "text", "json")))


@app.command("exec", rich_help_panel=_OTHER, context_settings={"ignore_unknown_options": True})
def execute(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="Command to run.", show_default=False)],
) -> None:
    """Run a command as a container's first process: forward signals to it and reap its orphans."""
    with clear_errors():
        from shoal.cli.tools.exec import run_command  # noqa: PLC0415

        raise typer.Exit(run_command(command))


@app.command(rich_help_panel=_OTHER)
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed  # noqa: PLC0415

    typer.echo(f"shoal {installed('shoal')}")


add_commands(app)


def main() -> None:
    """Run the command line."""
    if _COMPLETE in os.environ:
        from typer._completion_classes import completion_init  # noqa: PLC0415 - only a completion needs it

        completion_init()
    app(prog_name="shoal", complete_var=_COMPLETE)
