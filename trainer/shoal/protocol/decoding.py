"""Errors that decoding bytes from outside may raise."""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["UNDECODABLE"]

UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""msgspec raises the latter two for a text that is not UTF-8 and for lists that are nested deeper than Python's stack."""
