"""Tables of commands, formatted by rich."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["print_table", "stdout"]

_UNBOUNDED: Final = 10_000
"""Width in columns of output that is not a terminal, so that no row is wrapped there."""


def stdout() -> Console:
    """Return the console of the standard output; without colour and without a width where it is not a terminal."""
    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else _UNBOUNDED)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[str] = ()) -> None:
    """Print a table to the standard output.

    Args:
        columns: Names of the columns.
        rows: Cells of each row; printed as they are, without markup.
        right: Names of the columns that are aligned to the right. Default: none.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    with (console := stdout()).capture() as captured:
        console.print(table)
    # Rich pads the last column to its width.
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
