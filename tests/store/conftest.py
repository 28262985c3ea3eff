from __future__ import annotations

import pytest

from shoal.store import Store
from tests.etcds import run_etcd


class Calls(list):
    """Callback that records its arguments."""

    def __call__(self, *reported):
        self.append(reported if len(reported) > 1 else reported[0])


@pytest.fixture
def etcd(tmp_path):
    with run_etcd(tmp_path) as etcd:
        yield etcd


@pytest.fixture
def reported():
    """The calls of the store's callbacks: ``reported["error"]`` and ``reported["forgot"]``."""
    return {"error": Calls(), "forgot": Calls()}


@pytest.fixture
def store(etcd, reported):
    with Store.connect(
        etcd.endpoint, prefix="/shoal/", on_error=reported["error"], on_history_lost=reported["forgot"]
    ) as store:
        yield store
