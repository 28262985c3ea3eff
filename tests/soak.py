"""How long tests of properties look for a counterexample: a short form in every run, a long one with ``make soak``."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import settings

__all__ = ["FACTOR", "examples"]

FACTOR = int(os.environ.get("SHOAL_SOAK", "1"))
"""So many times more examples than in an ordinary run."""


def examples(count: int, **options: Any) -> settings:
    """Settings of a test of a property, to be written above ``@given``.

    Args:
        count: How many examples an ordinary run tries.
        options: More of hypothesis's settings.
    """
    return settings(max_examples=count * FACTOR, deadline=None, **options)
