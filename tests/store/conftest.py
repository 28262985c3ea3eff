from __future__ import annotations

import pytest

from shoal.store import Store
from tests.etcds import run_etcd


class Told(list):
    """Callback that records its arguments."""

    def __call__(self, *told):
        self.append(told if len(told) > 1 else told[0])


@pytest.fixture
def etcd(tmp_path):
    with run_etcd(tmp_path) as etcd:
        yield etcd


@pytest.fixture
def told():
    """The calls of the store's callbacks: ``told["trouble"]`` and ``told["forgot"]``."""
    return {"trouble": Told(), "forgot": Told()}


@pytest.fixture
def store(etcd, told):
    with Store.connect(
        etcd.endpoint, prefix="/shoal/", on_error=told["trouble"], on_history_lost=told["forgot"]
    ) as store:
        yield store
