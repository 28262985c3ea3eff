"""One zygote and one etcd for all scripts, and fixtures that run a script alone, in a job, or both."""

from __future__ import annotations

import itertools

import pytest

from tests.etcds import run_etcd
from tests.scripts.running import alone, in_job
from tests.zygote import JOB, Zygote


@pytest.fixture(scope="session")
def zygote():
    # The first step of an optimizer imports torch._dynamo, which takes seconds.
    started = Zygote(
        (*JOB, "torch._dynamo", "shoal.master.service", "shoal.master.record_log", "shoal.store", "shoal.api")
    )
    yield started
    started.close()


@pytest.fixture(scope="session")
def etcd(tmp_path_factory):
    with run_etcd(tmp_path_factory.mktemp("etcd")) as running:
        yield running


@pytest.fixture
def run_alone(zygote, tmp_path):
    """Run a script under plain ``python``; see ``running.alone``."""
    numbers = itertools.count()
    return lambda script, **options: alone(zygote, tmp_path / f"alone-{next(numbers)}", script, **options)


@pytest.fixture
def run_in_job(zygote, etcd, tmp_path):
    """Run a script in a job of two trainers; see ``running.in_job``."""
    numbers = itertools.count()
    return lambda script, **options: in_job(zygote, tmp_path / f"j{next(numbers)}", script, etcd=etcd, **options)


@pytest.fixture(params=["alone", "job"])
def run(request):
    """Run a script in both ways: the test is parametrized by alone and in a job."""
    return request.getfixturevalue("run_alone" if request.param == "alone" else "run_in_job")


@pytest.fixture
def refused(run):
    """Run a script that must be refused with a message that contains all these words."""

    def refuse(script, *parts):
        result = run(script, code=78)
        missing = [part for part in parts if part not in result.output]
        assert not missing, (missing, result.output)
        assert "Traceback" not in result.output, result.output
        return result

    return refuse
