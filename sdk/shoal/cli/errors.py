"""How a command ends that cannot do what it was asked: one clear message, and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import typer

__all__ = ["FAILED", "INTERRUPTED", "USAGE", "CommandError", "clear_errors", "unread_is_fine"]

FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130


class CommandError(Exception):
    """What is wrong and how to mend it.

    Args:
        message: For people.
        code: The exit code.
    """

    def __init__(self, message: str, *, code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn the errors of users into a message on stderr and an exit code, without a traceback."""
    try:
        with unread_is_fine():
            yield
    except CommandError as error:
        _say(str(error))
        raise typer.Exit(error.code) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        # Imported late: a command that needs no manifest does not wait for pydantic.
        from shoal.api import ManifestError  # noqa: PLC0415

        if not isinstance(error, ManifestError):
            raise
        _say(str(error))
        raise typer.Exit(USAGE) from None


@contextmanager
def unread_is_fine() -> Iterator[None]:
    """Who reads our output may have seen enough (``| head``)."""
    try:
        yield
    except BrokenPipeError:
        # What is still buffered can be written nowhere, and must not be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(message: str) -> None:
    first, *rest = message.splitlines() or [""]
    sys.stderr.write(f"error: {first}\n" + "".join(f"       {line}\n" for line in rest))
