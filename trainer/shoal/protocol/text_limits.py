"""The limit of texts from scripts and other processes, so that they fit into records, messages and logs."""

from __future__ import annotations

from typing import Final

__all__ = ["MOST_CHARACTERS", "clipped"]

MOST_CHARACTERS: Final = 16_000
"""The limit of one text, in characters. etcd accepts 1.5 MiB in one request, and people read the lines of a log."""


def clipped(text: str, most: int = MOST_CHARACTERS) -> str:
    """Return a text, or its beginning and its end if it is too long; a traceback has its error at the end.

    Args:
        text: The text.
        most: The number of characters to keep; the note about the rest is added to them. Default: 16,000.
    """
    if len(text) <= most:
        return text
    head = most // 4
    left_out = len(text) - most
    return f"{text[:head]} [... {left_out:,} characters left out ...] {text[len(text) - (most - head) :]}"
