"""Garbage collection in etcd removes the records of deleted jobs, with a real API server and a real etcd."""

from __future__ import annotations

import asyncio
import json

import pytest

from shoal.kube import Kube, KubeError
from shoal.operator.etcd.garbage_collection import GarbageCollector
from shoal.store import EVERYTHING, OPERATOR_KEY, Credentials, JobKeys, Put, Store
from tests.etcds import run_etcd
from tests.operator.world import define

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

ROOT = Credentials("root", "root-word")


@pytest.fixture
def etcd(tmp_path):
    with run_etcd(tmp_path) as etcd:
        yield etcd


@pytest.fixture
def jobs(control_plane, namespace):
    """Provide a function that creates a job in the namespace and returns its keys."""
    define(control_plane)

    def make(name: str) -> JobKeys:
        manifest = {"apiVersion": "shoal.dev/v1alpha1", "kind": "TrainingJob",
                    "metadata": {"name": name, "namespace": namespace},
                    "spec": {"image": "i", "command": ["python"], "parameterServer": {}}}  # fmt: skip
        control_plane.kubectl("apply", "-f", "-", input=json.dumps(manifest))
        return JobKeys(namespace, name, control_plane.get("tj", name, "-n", namespace)["metadata"]["uid"])

    return make


def collect(cluster, store, *, namespaces=(), guarded=False, timeout=30.0) -> list[JobKeys]:
    async def once() -> list[JobKeys]:
        async with await Kube.connect(kubeconfig=str(cluster.kubeconfig), timeout_seconds=timeout) as kube:
            return await GarbageCollector(store, kube, namespaces=namespaces, guarded=guarded).collect()

    return asyncio.run(once())


def keys_in(store) -> set[str]:
    return {pair.key for pair in store.get_prefix(EVERYTHING).pairs}


def test_only_keys_of_deleted_jobs_are_removed(control_plane, etcd, jobs, namespace):
    here = jobs("here")
    former = JobKeys(namespace, "here", "another-uid")
    deleted = JobKeys(namespace, "gone", "u")
    with Store.connect(etcd.endpoint, prefix=EVERYTHING) as store:
        kept = {here.desired, here.progress, OPERATOR_KEY}
        store.transact(
            [], [Put(key, b"1") for key in (*kept, former.progress, deleted.desired, deleted.tasks_of(0, 0))]
        )
        assert collect(control_plane, store) == [deleted, former]
        assert keys_in(store) == kept
        assert collect(control_plane, store) == []


def test_namespaces_that_are_not_served_are_left_alone(control_plane, etcd, jobs, namespace):
    mine, other = JobKeys(namespace, "a", "u"), JobKeys("elsewhere", "a", "u")
    with Store.connect(etcd.endpoint, prefix=EVERYTHING) as store:
        store.transact([], [Put(mine.progress, b"1"), Put(other.progress, b"1")])
        assert collect(control_plane, store, namespaces=[namespace]) == [mine]
        assert keys_in(store) == {other.progress}


def test_a_job_s_user_is_removed_also_where_no_key_is_left(control_plane, etcd, jobs, namespace):
    here, deleted = jobs("here"), JobKeys(namespace, "gone", "u")
    Store.protect(etcd.endpoint, password=ROOT.password)
    with Store.connect(etcd.endpoint, prefix=EVERYTHING, credentials=ROOT) as store:
        store.accounts.ensure(here.user, "w", prefix=here.prefix)
        store.accounts.ensure(deleted.user, "w", prefix=deleted.prefix)
        assert collect(control_plane, store, guarded=True) == [deleted]
        assert sorted(store.accounts.users()) == ["root", here.user]


def test_when_the_jobs_cannot_be_listed_nothing_is_removed(control_plane, etcd, tmp_path, namespace):
    class Nowhere:
        kubeconfig = tmp_path / "config"

    address = control_plane.kubectl("config", "view", "-o", "jsonpath={.clusters[0].cluster.server}")
    Nowhere.kubeconfig.write_text(control_plane.kubeconfig.read_text().replace(address, "https://127.0.0.1:1"))
    keys = JobKeys(namespace, "a", "u")
    with Store.connect(etcd.endpoint, prefix=EVERYTHING) as store:
        store.transact([], [Put(keys.progress, b"1")])
        with pytest.raises(KubeError):
            collect(Nowhere, store, timeout=0.5)
        assert keys_in(store) == {keys.progress}


def test_a_key_written_after_the_collection_is_collected_too(control_plane, etcd, jobs, namespace):
    """Without authentication in etcd, a deleted job's master writes until it has exited, and those records are collected, too."""
    deleted = JobKeys(namespace, "gone", "u")

    async def swept_twice(store) -> None:
        async with await Kube.connect(kubeconfig=str(control_plane.kubeconfig)) as kube:
            collector = GarbageCollector(store, kube, guarded=False, delay_seconds=0.5)
            running = asyncio.create_task(collector.run())
            for _ in range(2):
                store.transact([], [Put(deleted.progress, b"1")])
                while keys_in(store):  # noqa: ASYNC110 - etcd sets no Event
                    await asyncio.sleep(0.05)
            running.cancel()

    with Store.connect(etcd.endpoint, prefix=EVERYTHING) as store:
        asyncio.run(asyncio.wait_for(swept_twice(store), 30))
