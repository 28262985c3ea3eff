"""For all tests: those of properties look as long as the run wants, on machines of any speed."""

from __future__ import annotations

from hypothesis import settings

from tests.soak import FACTOR

settings.register_profile("shoal", max_examples=100 * FACTOR, deadline=None)
settings.load_profile("shoal")
