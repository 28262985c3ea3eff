"""Errors that msgspec raises when it decodes bytes from other processes."""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["UNDECODABLE"]

UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""UnicodeDecodeError: a text is not UTF-8. RecursionError: lists are nested deeper than Python's stack."""
