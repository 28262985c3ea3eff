"""Objects are followed on a real API server: through restarts, compacted history, and kinds that it does not know yet."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from shoal.api.crd import crd
from shoal.kube import Changed, Listed, follow
from tests.cluster.control_plane import ControlPlane
from tests.kube.compact import compact
from tests.kube.test_gateway import on

pytestmark = pytest.mark.cluster


def thing(namespace, name, of="this"):
    """Build an object that no other client changes."""
    metadata = {"name": name, "namespace": namespace, "labels": {"of": of}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}


def short(each):
    """Return the names in a listing, or a change's name and whether the object is gone."""
    if isinstance(each, Listed):
        return sorted(item["metadata"]["name"] for item in each.items)
    assert isinstance(each, Changed)
    return each.manifest["metadata"]["name"], each.deleted


def test_a_listing_and_then_every_change(control_plane, namespace):
    async def work(kube):
        await kube.create(thing(namespace, "a"))
        async with contextlib.aclosing(follow(kube, "ConfigMap", namespace=namespace, selector="of=this")) as news:
            found = [short(await anext(news))]
            await kube.create(thing(namespace, "other", of="that"))
            await kube.create(thing(namespace, "b"))
            await kube.delete("ConfigMap", "a", namespace=namespace)
            found += [short(await anext(news)) for _ in range(2)]
        return found

    assert on(control_plane, work) == [["a"], ("b", False), ("a", True)]


def test_from_a_listing_that_one_has(control_plane, namespace):
    async def work(kube):
        since = (await kube.listing("ConfigMap", namespace=namespace, selector="of=this")).revision
        await kube.create(thing(namespace, "a"))
        async with contextlib.aclosing(
            follow(kube, "ConfigMap", namespace=namespace, selector="of=this", since=since)
        ) as news:
            return short(await anext(news))

    assert on(control_plane, work) == ("a", False)


def test_many_changes_at_once_yield_to_other_tasks(control_plane, namespace):
    async def work(kube):
        since = (await kube.listing("ConfigMap", namespace=namespace, selector="of=this")).revision
        for number in range(100):
            await kube.create(thing(namespace, f"p{number}"))
        turns = 0

        async def count():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        async with contextlib.aclosing(
            follow(kube, "ConfigMap", namespace=namespace, selector="of=this", since=since)
        ) as news:
            await anext(news)
            before = turns
            for _ in range(99):
                await anext(news)
        counting.cancel()
        return turns - before

    assert on(control_plane, work) >= 3


def test_through_restarts_and_a_compacted_history(tmp_path):
    problems = []
    with ControlPlane(tmp_path / "own") as cluster:

        async def work(kube):
            well = asyncio.Event()

            def reported(words):
                problems.append(words)
                (well.clear if words else well.set)()

            since = (await kube.listing("ConfigMap", namespace="default", selector="of=this")).revision
            await kube.create(thing("default", "a"))
            await kube.create(thing("default", "b"))
            await kube.delete("ConfigMap", "a", namespace="default")
            compact(cluster)
            # The API server keeps old changes in memory, too.
            await asyncio.to_thread(cluster.restart, "kube-apiserver")
            async with contextlib.aclosing(
                follow(kube, "ConfigMap", namespace="default", selector="of=this", since=since, on_error=reported)
            ) as news:
                found = [short(await anext(news))]
                assert problems, "that it was forgotten"
                waiting = asyncio.ensure_future(anext(news))
                await asyncio.sleep(0.2)
                problems.clear(), well.clear()
                await asyncio.to_thread(cluster.restart, "kube-apiserver")
                # A reopened stream counts as healthy even before its first event.
                async with asyncio.timeout(60.0):
                    await well.wait()
                await kube.create(thing("default", "c"))
                return [*found, short(await waiting)]

        assert on(cluster, work) == [["b"], ("c", False)]
        assert problems[-1] == ""
        assert "ConfigMap: " in problems[0]


def test_a_kind_that_the_cluster_does_not_know_yet(tmp_path):
    problems = asyncio.Queue()
    with ControlPlane(tmp_path / "own") as cluster:

        async def work(kube):
            async with contextlib.aclosing(follow(kube, "TrainingJob", on_error=problems.put_nowait)) as news:
                waiting = asyncio.ensure_future(anext(news))
                assert "TrainingJob: " in await problems.get()
                await asyncio.to_thread(cluster.kubectl, "apply", "-f", "-", input=json.dumps(crd()))
                return short(await waiting)

        assert on(cluster, work) == []
