"""Errors of commands: one message on stderr and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import typer

__all__ = ["FAILED", "INTERRUPTED", "USAGE", "CommandError", "clear_errors", "ignore_closed_output"]

FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130


class CommandError(Exception):
    """A command failed; the message has the cause and the fix.

    Args:
        message: Text for the user.
        code: Exit code. Default: 2 (usage).
    """

    def __init__(self, message: str, *, code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def clear_errors() -> Iterator[None]:
    """Convert user errors into a message on stderr and an exit code, without a traceback."""
    try:
        with ignore_closed_output():
            yield
    except CommandError as error:
        _print_error(str(error))
        raise typer.Exit(error.code) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        # Imported late, because the import of pydantic would delay commands that need no manifest.
        from shoal.api import ManifestError  # noqa: PLC0415

        if isinstance(error, ManifestError):
            _print_error(str(error))
            raise typer.Exit(USAGE) from None
        from shoal.sdk.errors import InvalidJobError, ShoalError  # noqa: PLC0415

        if not isinstance(error, ShoalError):
            raise
        _print_error(str(error))
        raise typer.Exit(USAGE if isinstance(error, InvalidJobError) else FAILED) from None


@contextmanager
def ignore_closed_output() -> Iterator[None]:
    """Ignore a closed standard output: the reading process may exit early (``| head``)."""
    try:
        yield
    except BrokenPipeError:
        # The remaining buffer cannot be written; /dev/null prevents another error at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_error(message: str) -> None:
    first, *rest = message.splitlines() or [""]
    sys.stderr.write(f"error: {first}\n" + "".join(f"       {line}\n" for line in rest))
