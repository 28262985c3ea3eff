"""Texts of scripts and strangers, cut to a size that every record, message and log can take."""

from __future__ import annotations

from typing import Final

__all__ = ["MOST_CHARACTERS", "clipped"]

MOST_CHARACTERS: Final = 16_000
"""Of one text. etcd takes 1.5 MiB in one request, and a line of a log is read by people."""


def clipped(text: str, most: int = MOST_CHARACTERS) -> str:
    """A text as it is, or its beginning and its end: a traceback says at its end what went wrong.

    Args:
        text: Any.
        most: Characters that stay; what is said of the rest comes on top.
    """
    if len(text) <= most:
        return text
    head = most // 4
    left_out = len(text) - most
    return f"{text[:head]} [... {left_out:,} characters left out ...] {text[len(text) - (most - head) :]}"
