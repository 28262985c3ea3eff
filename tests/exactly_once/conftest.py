"""Provide one zygote for all jobs of these tests."""

from __future__ import annotations

import pytest

from tests.zygote import JOB, Zygote


@pytest.fixture(scope="session")
def zygote():
    started = Zygote(JOB)
    yield started
    started.close()
