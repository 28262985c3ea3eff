"""Completion for bash, zsh and fish: the script for the shell, and the names of jobs and processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from shoal.cli.errors import CommandError
from shoal.cli.options import has_kubeconfig

__all__ = ["complete_job", "completion_script"]

_SHELLS: Final = ("bash", "zsh", "fish")
_SECONDS: Final = 2.0
"""Longest time for the names of jobs on a cluster, so that a Tab never hangs. Seconds."""


def completion_script(shell: str) -> str:
    """Return the completion script of a shell.

    Raises:
        CommandError: The shell is not known.
    """
    if shell not in _SHELLS:
        raise CommandError(f"{shell}: no completion for this shell; known: {', '.join(_SHELLS)}")
    from typer._completion_shared import get_completion_script  # noqa: PLC0415 - only this command needs it

    return get_completion_script(prog_name="shoal", complete_var="_SHOAL_COMPLETE", shell=shell)


def complete_job(incomplete: str) -> Iterator[str]:
    """Yield the names of jobs on this machine and on the cluster that begin with a text."""
    from shoal.local.state.state_folder import base_folder, job_names  # noqa: PLC0415 - only a completion needs it

    names = set(job_names(base_folder(None)))
    if has_kubeconfig():
        with suppress(Exception):
            names |= set(_on_cluster())
    yield from sorted(name for name in names if name.startswith(incomplete))


def _on_cluster() -> list[str]:
    import asyncio  # noqa: PLC0415 - only for a cluster

    from shoal.sdk import AsyncClient  # noqa: PLC0415 - only for a cluster

    async def names() -> list[str]:
        async with AsyncClient() as client, asyncio.timeout(_SECONDS):
            return [each.name for each in await client.list()]

    return asyncio.run(names())
