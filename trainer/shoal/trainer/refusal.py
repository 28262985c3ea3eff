"""The error that refuses what a script asks for."""

from __future__ import annotations

__all__ = ["Refusal"]


class Refusal(ValueError):  # noqa: N818 - what the user reads
    """The script asks for something that Shoal does not do; the message says what, and what to do instead."""
