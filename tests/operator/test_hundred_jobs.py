"""A hundred jobs of ten trainers each are created, run and deleted, and leave nothing behind, not even in etcd."""

from __future__ import annotations

from collections import Counter

import pytest

from shoal.store import ALL_JOBS, Store
from tests.operator.world import MADE, a_world, manifest

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(2400)]

JOBS, TRAINERS = 100, 10
SECONDS = 900
"""For 1,200 pods to come or to go: a minute on two quiet cores."""


@pytest.fixture
def crowd(control_plane, tmp_path):
    with a_world(control_plane, tmp_path, nodes=12) as made:
        yield made


def test_a_hundred_jobs_of_ten_trainers(crowd):
    spec = {"trainer": {"minReplicas": TRAINERS}, "parameterServer": {"replicas": 1, "emptyDir": {}}}
    crowd.apply(*(manifest(f"job-{number}", **spec) for number in range(JOBS)), how="create")

    def states() -> list[tuple[str, str]]:
        statuses = [each.get("status", {}) for each in crowd.list("TrainingJob")]
        return [(each.get("state", ""), each.get("trainers", {}).get("text", "")) for each in statuses]

    at_work = [("Running", f"{TRAINERS}/{TRAINERS}")] * JOBS
    try:
        crowd.until(lambda: states() == at_work, "all to run", seconds=SECONDS, pause=1)
    except BaseException:
        print(Counter(states()), Counter(pod["status"].get("phase") for pod in crowd.list("Pod")))
        raise
    owners = [pod["metadata"]["labels"]["shoal.dev/job"] for pod in crowd.list("Pod")]
    assert len(owners) == JOBS * (TRAINERS + 2)
    crowd.kubectl("delete", "tj", "--all")
    for kind in MADE:
        crowd.until(
            lambda kind=kind: not crowd.api.list(kind, crowd.namespace, labels="shoal.dev/uid", most=1),
            f"every {kind} to go",
            seconds=SECONDS,
            pause=0.5,
        )
    with Store.connect(crowd.etcd.endpoint, prefix=ALL_JOBS) as etcd:
        crowd.until(
            lambda: not etcd.get_groups(ALL_JOBS, parts=3), "the garbage collection in etcd", seconds=SECONDS, pause=0.5
        )
