"""One zygote for all jobs of these tests."""

from __future__ import annotations

import pytest

from tests.zygote import Zygote


@pytest.fixture(scope="session")
def zygote():
    started = Zygote()
    yield started
    started.close()
