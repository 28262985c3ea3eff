"""The options that several commands have, and the job that they name: on this machine or on a cluster."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shoal.cli.errors import CommandError

if TYPE_CHECKING:
    from shoal.sdk import Client, Job

__all__ = [
    "AllNamespaces",
    "Context",
    "Kubeconfig",
    "Local",
    "Name",
    "Namespace",
    "Output",
    "State",
    "Target",
    "has_kubeconfig",
    "output_format",
    "target",
]

State = Annotated[
    Path | None,
    typer.Option(
        "--state",
        metavar="DIR",
        help="Folder of all jobs on this machine (default: $SHOAL_STATE, else ~/.local/state/shoal).",
        show_default=False,
    ),
]
Local = Annotated[
    bool,
    typer.Option("--local", help="Only jobs on this machine (default: a job here of that name, else the cluster)."),
]
Namespace = Annotated[
    str | None,
    typer.Option(
        "--namespace",
        "-n",
        metavar="NAME",
        help="Namespace on the cluster (default: the context's).",
        show_default=False,
    ),
]
AllNamespaces = Annotated[bool, typer.Option("--all-namespaces", "-A", help="Jobs of all namespaces.")]
Context = Annotated[
    str | None,
    typer.Option(
        "--context", metavar="NAME", help="Context of the kubeconfig (default: the current one).", show_default=False
    ),
]
Kubeconfig = Annotated[
    Path | None,
    typer.Option(
        "--kubeconfig",
        metavar="FILE",
        help="The kubeconfig (default: $KUBECONFIG, else ~/.kube/config).",
        show_default=False,
    ),
]
Output = Annotated[
    str,
    typer.Option("--output", "-o", metavar="text|wide|name|json|yaml", help="Format: text, or another for programs."),
]


def _complete_job(incomplete: str) -> list[str]:
    from shoal.cli.tools.completion import complete_job  # noqa: PLC0415 - only a completion needs it

    return list(complete_job(incomplete))


Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of a job.", show_default=False, autocompletion=_complete_job)
]


def has_kubeconfig() -> bool:
    """Return whether a kubeconfig is named, or is where kubectl looks for it."""
    return bool(os.environ.get("KUBECONFIG")) or Path("~/.kube/config").expanduser().exists()


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where the jobs of a command are.

    Attributes:
        local: Whether only jobs on this machine are meant.
        state: Folder of all jobs on this machine; None: the default.
        namespace: Namespace on the cluster; None: that of the context.
        context: Context of the kubeconfig; None: the current one.
        kubeconfig: The kubeconfig; None: the one that kubectl uses.
    """

    local: bool = False
    state: Path | None = None
    namespace: str | None = None
    context: str | None = None
    kubeconfig: Path | None = None

    @property
    def names_cluster(self) -> bool:
        """Whether an option says that a job on a cluster is meant."""
        return bool(self.namespace or self.context or self.kubeconfig)

    def is_here(self, name: str) -> bool:
        """Return whether a job of this name is on this machine, and no option says that another one is meant."""
        if self.local:
            return True
        if self.names_cluster:
            return False
        from shoal.local.state.state_folder import StateFolder, base_folder  # noqa: PLC0415 - not needed for a cluster

        return "/" not in name and name not in {"", ".", ".."} and StateFolder(base_folder(self.state), name).exists

    def client(self, *, local: bool) -> Client:
        """Return a client of this machine or of the cluster."""
        from shoal.sdk import Client  # noqa: PLC0415 - `--help` must start fast

        if local:
            return Client(backend="local", state=self.state)
        try:
            return Client(namespace=self.namespace, context=self.context, kubeconfig=self.kubeconfig)
        except ImportError as error:
            raise CommandError(f"{error}; install it: pip install 'shoal[cluster]'") from None

    def job(self, name: str, *, local: bool | None = None) -> Job:
        """Return a job by its name: one on this machine, else one of the cluster.

        Args:
            name: Name of the job.
            local: Whether it is on this machine, where the caller has decided that. Default: None, decided here.

        Raises:
            CommandError: There is no such job here, and no cluster is configured.
            ShoalError: There is no such job, or the cluster does not answer.
        """
        from shoal.sdk.errors import NotConfiguredError  # noqa: PLC0415 - `--help` must start fast

        is_here = self.is_here(name) if local is None else local
        try:
            return self.client(local=is_here).get(name)
        except NotConfiguredError:
            if self.names_cluster:
                raise
            from shoal.cli.local.find import find_job  # noqa: PLC0415 - not needed for a cluster

            find_job(name, self.state)  # raises the error with the names of the jobs here
            raise


def target(
    *,
    local: bool = False,
    state: Path | None = None,
    namespace: str | None = None,
    context: str | None = None,
    kubeconfig: Path | None = None,
) -> Target:
    """Return where the jobs are, from the options.

    Raises:
        CommandError: Options contradict each other.
    """
    found = Target(local=local, state=state, namespace=namespace, context=context, kubeconfig=kubeconfig)
    if local and found.names_cluster:
        raise CommandError(
            "--local is for jobs on this machine; --namespace, --context and --kubeconfig name a cluster"
        )
    return found


def output_format(output: str, *known: str) -> str:
    """Return a format of --output.

    Args:
        output: The option's value.
        known: Formats that the command has.

    Raises:
        typer.BadParameter: The command does not have it.
    """
    if output not in known:
        raise typer.BadParameter(f"{output!r} is not one of {', '.join(known)}", param_hint="--output")
    return output
