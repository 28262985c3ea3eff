"""The number of examples of property tests: small in every run, large with ``make soak``."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import settings

__all__ = ["FACTOR", "examples"]

FACTOR = int(os.environ.get("SHOAL_SOAK", "1"))
"""So many times more examples than in an ordinary run."""


def examples(count: int, **options: Any) -> settings:
    """Return the settings of a property test, to be written above ``@given``.

    Args:
        count: Number of examples in an ordinary run.
        options: Further settings of hypothesis.
    """
    return settings(max_examples=count * FACTOR, deadline=None, **options)
