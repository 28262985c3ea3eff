"""Prints the manual page of the commands, generated from them: ``python -m shoal.cli.tools.manual > docs/cli.md``."""

from __future__ import annotations

import sys

import typer
from typer.cli import get_docs_for_click
from typer.main import get_command

from shoal.cli.main import app

__all__ = ["manual"]

_HEAD = """# The command line

This page is generated from the commands: `python -m shoal.cli.tools.manual > docs/cli.md`.

`shoal` is also installed as `kubectl-shoal`, so that `kubectl shoal top` works. A command about a job means the job of that name
on this machine, if there is one, else that on the cluster; `--local`, or `--namespace`, `--context` and `--kubeconfig`, say which
one is meant. Colours are off in a pipe and with `NO_COLOR`.

| exit code | meaning |
|---|---|
| 0 | done; of `run`, `submit` and `wait`: the job is complete, or in the state that was waited for |
| 1 | the job failed or does not exist, a wait ended without its state, a check found something wrong, or a cluster did not answer |
| 2 | the command line or the manifest is invalid |
| 130 | Ctrl-C |

"""


def manual() -> str:
    """Return the manual page as Markdown."""
    command = get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="shoal")
    # The title and the description of the whole command are in the head of this page.
    commands = text[text.index("## `shoal ") :] if "## `shoal " in text else text
    return _HEAD + commands.rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(manual())
