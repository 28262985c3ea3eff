"""Hypothesis settings for all tests: the number of examples depends on the run, and no test has a deadline."""

from __future__ import annotations

from hypothesis import settings

from tests.soak import FACTOR

settings.register_profile("shoal", max_examples=100 * FACTOR, deadline=None)
settings.load_profile("shoal")
