"""The gateway on a real API server."""

from __future__ import annotations

import asyncio
import base64
import json
import signal

import pytest

from shoal.kube import (
    Kube,
    KubeConflictError,
    KubeError,
    KubeFencedError,
    KubeForbiddenError,
    KubeInvalidError,
    KubeUnreachableError,
)
from tests.cluster.control_plane import ControlPlane
from tests.kube.compact import compact
from tests.operator.world import define, manifest

pytestmark = pytest.mark.cluster


def on(cluster, work, **options):
    """Run a coroutine with a gateway to the cluster."""

    async def run():
        async with await Kube.connect(kubeconfig=str(cluster.kubeconfig), **options) as kube:
            return await work(kube)

    return asyncio.run(run())


def config(namespace, **data):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": namespace}, "data": data}


def pod(namespace, name="p", **spec):
    metadata = {"name": name, "namespace": namespace, "labels": {"of": "this"}}
    spec = {"containers": [{"name": "c", "image": "i"}], "nodeSelector": {"no": "node"}} | spec
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def test_an_applied_object_is_as_in_the_manifest_and_keeps_fields_of_others(control_plane, namespace):
    async def work(kube):
        await kube.apply(config(namespace, a="1", b="2"))
        control_plane.kubectl("patch", "configmap", "c", "-n", namespace, "-p", '{"data": {"theirs": "x"}}')
        await kube.apply(config(namespace, a="3"))
        return (await kube.get("ConfigMap", "c", namespace=namespace))["data"]

    assert on(control_plane, work) == {"a": "3", "theirs": "x"}


def test_applied_again_it_does_not_change(control_plane, namespace):
    async def work(kube):
        versions = [(await kube.apply(config(namespace, a="1")))["metadata"]["resourceVersion"] for _ in range(3)]
        return len(set(versions))

    assert on(control_plane, work) == 1


def test_a_dry_run_changes_nothing_and_has_the_server_s_message(control_plane, namespace):
    async def work(kube):
        await kube.apply(config(namespace, a="1"), dry_run=True)
        assert await kube.get("ConfigMap", "c", namespace=namespace) is None
        with pytest.raises(KubeInvalidError) as error:
            await kube.create(pod(namespace, restartPolicy="Sometimes"), dry_run=True)
        return error.value

    found = on(control_plane, work)
    assert found.reason == "Invalid"
    assert (
        "spec.restartPolicy",
        'Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never"',
    ) in found.causes


def test_a_name_that_is_taken(control_plane, namespace):
    async def work(kube):
        await kube.create(pod(namespace))
        with pytest.raises(KubeConflictError) as error:
            await kube.create(pod(namespace))
        return error.value.reason

    assert on(control_plane, work) == "AlreadyExists"


def test_only_the_very_one_is_deleted(control_plane, namespace):
    async def work(kube):
        made = await kube.create(pod(namespace))
        there = {"namespace": namespace, "grace_seconds": 0}
        assert not await kube.delete("Pod", "p", uid="0b1e6c4a-0000-4000-8000-000000000001", **there)
        assert await kube.delete("Pod", "p", uid=made["metadata"]["uid"], **there)
        assert not await kube.delete("Pod", "p", uid=made["metadata"]["uid"], **there)
        return await kube.get("Pod", "p", namespace=namespace)

    assert on(control_plane, work) is None


def test_lists_go_page_by_page(control_plane, namespace, monkeypatch):
    monkeypatch.setattr("shoal.kube.client._PAGE", 3)

    async def work(kube):
        for number in range(8):
            await kube.create(pod(namespace, f"p{number}"))
        assert await kube.list("Pod", namespace=namespace, selector="of=other") == []
        return [each["metadata"]["name"] for each in await kube.list("Pod", namespace=namespace, selector="of=this")]

    assert on(control_plane, work) == [f"p{number}" for number in range(8)]


def test_a_listing_whose_revision_is_compacted_starts_again(tmp_path, monkeypatch):
    monkeypatch.setattr("shoal.kube.client._PAGE", 3)
    answers = []
    with ControlPlane(tmp_path / "own") as cluster:

        def seen(verb, _kind, code):
            if verb != "list":
                return
            answers.append(code)
            if len(answers) == 1:
                cluster.kubectl("delete", "pod", "p7", "--grace-period=0", "--force")
                compact(cluster)
                # The API server keeps old pages in memory, too.
                cluster.restart("kube-apiserver")

        async def work(kube):
            for number in range(8):
                await kube.create(pod("default", f"p{number}"))
            return [each["metadata"]["name"] for each in await kube.list("Pod", namespace="default")]

        assert on(cluster, work, on_answer=seen) == [f"p{number}" for number in range(7)]
    assert [each for each in answers if each][:3] == [200, 410, 200]


def test_in_the_place_of_what_was_read_and_of_nothing_else(control_plane, namespace):
    async def work(kube):
        await kube.create(config(namespace, a="1"))
        read = await kube.get("ConfigMap", "c", namespace=namespace)
        read |= {"apiVersion": "v1", "kind": "ConfigMap"}
        await kube.replace(read | {"data": {"a": "2"}})
        with pytest.raises(KubeConflictError):
            await kube.replace(read | {"data": {"a": "3"}})
        return (await kube.get("ConfigMap", "c", namespace=namespace))["data"]

    assert on(control_plane, work) == {"a": "2"}


def test_every_attempt_is_reported_with_its_code(control_plane, namespace):
    reported = []

    async def work(kube):
        await kube.create(config(namespace, a="1"))
        await kube.apply(config(namespace, a="2"))
        await kube.list("ConfigMap", namespace=namespace)
        await kube.delete("ConfigMap", "c", namespace=namespace)
        assert await kube.get("ConfigMap", "c", namespace=namespace) is None

    on(control_plane, work, on_answer=lambda *each: reported.append(each))
    assert reported == [(verb, "ConfigMap", code) for verb, code in
                    (("create", 201), ("apply", 200), ("list", 200), ("delete", 200), ("get", 404))]  # fmt: skip


def test_a_client_that_may_not_write_any_more_still_reads(control_plane, namespace):
    left = [5.0]

    async def work(kube):
        await kube.create(config(namespace, a="1"))
        left[0] = 0.0
        for writing in (
            kube.create(config(namespace, a="2")),
            kube.apply(config(namespace, a="2")),
            kube.replace(config(namespace, a="2")),
            kube.delete("ConfigMap", "c", namespace=namespace),
            kube.set_status("Pod", "p", {}, uid="u", namespace=namespace),
        ):
            with pytest.raises(KubeFencedError):
                await writing
        return (await kube.get("ConfigMap", "c", namespace=namespace))["data"]

    assert on(control_plane, work, may_write=lambda: left[0]) == {"a": "1"}


def test_a_status_is_replaced(control_plane, namespace):
    async def work(kube):
        uid = (await kube.create(pod(namespace)))["metadata"]["uid"]
        for status in ({"message": "l", "reason": "r"}, {"message": "m"}):
            assert await kube.set_status("Pod", "p", status, uid=uid, namespace=namespace)
        assert not await kube.set_status("Pod", "nobody", {}, uid=uid, namespace=namespace)
        return (await kube.get("Pod", "p", namespace=namespace))["status"]

    found = on(control_plane, work)
    assert (found["message"], "reason" in found) == ("m", False)


@pytest.mark.parametrize("kind", ["Pod", "TrainingJob"])
def test_a_status_is_never_that_of_another_one_of_the_same_name(control_plane, namespace, kind):
    define(control_plane)

    async def work(kube):
        made = pod(namespace) if kind == "Pod" else manifest("p", {"namespace": namespace})
        first = (await kube.create(made))["metadata"]["uid"]
        await kube.delete(kind, "p", namespace=namespace, uid=first)
        second = (await kube.create(made))["metadata"]["uid"]
        status = {"message": "m"} if kind == "Pod" else {"state": "Running"}
        assert not await kube.set_status(kind, "p", status, uid=first, namespace=namespace)
        assert status.items() & ((await kube.get(kind, "p", namespace=namespace)).get("status") or {}).items() == set()
        assert await kube.set_status(kind, "p", status, uid=second, namespace=namespace)
        with pytest.raises(KubeInvalidError):
            await kube.set_status(kind, "p", {"conditions": [{"type": 5}]}, uid=second, namespace=namespace)

    on(control_plane, work)


def test_what_is_not_allowed(control_plane, namespace):
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q", "namespace": namespace},
             "spec": {"hard": {"pods": "0"}}}  # fmt: skip
    control_plane.kubectl("apply", "-f", "-", input=json.dumps(quota))
    control_plane.until(
        lambda: control_plane.get("resourcequota", "q", "-n", namespace).get("status", {}).get("hard"), "the quota"
    )

    async def work(kube):
        with pytest.raises(KubeForbiddenError, match="exceeded quota"):
            await kube.create(pod(namespace))

    on(control_plane, work)


def test_an_api_server_that_is_restarted_is_waited_for(tmp_path):
    with ControlPlane(tmp_path / "own") as cluster:

        async def work(kube):
            await kube.apply(config("default", a="1"))
            cluster.kill("kube-apiserver")
            asking = asyncio.create_task(kube.apply(config("default", a="2")))
            await asyncio.to_thread(cluster.launch, "kube-apiserver")
            return (await asking)["data"]

        assert on(cluster, work) == {"a": "2"}


def test_an_api_server_that_stays_unreachable(tmp_path):
    ca = base64.b64encode(b"").decode()
    text = f"""
apiVersion: v1
kind: Config
current-context: c
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
clusters: [{{name: c, cluster: {{server: "http://127.0.0.1:9", certificate-authority-data: "{ca}"}}}}]
users: [{{name: u, user: {{token: secret-token}}}}]
"""
    (tmp_path / "kubeconfig").write_text(text)

    async def work():
        async with await Kube.connect(kubeconfig=str(tmp_path / "kubeconfig"), timeout_seconds=0.3) as kube:
            with pytest.raises(KubeUnreachableError, match="does not answer") as error:
                await kube.get("Pod", "p", namespace="n")
            return str(error.value)

    said = asyncio.run(work())
    assert "secret-token" not in said


def test_a_hanging_api_server_is_retried_before_the_timeout(tmp_path, monkeypatch):
    monkeypatch.setattr("shoal.kube.wire.TRY_SECONDS", 0.5)
    with ControlPlane(tmp_path / "own") as cluster:
        codes = []

        async def work(kube):
            await kube.apply(config("default", a="1"))
            cluster.parts["kube-apiserver"].signal(signal.SIGSTOP)
            asking = asyncio.create_task(kube.apply(config("default", a="2")))
            while 0 not in codes:  # noqa: ASYNC110 - set by a plain function
                await asyncio.sleep(0.05)
            cluster.parts["kube-apiserver"].signal(signal.SIGCONT)
            return (await asking)["data"]

        assert on(cluster, work, on_answer=lambda _verb, _kind, code: codes.append(code)) == {"a": "2"}


def test_no_cluster_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    with pytest.raises(KubeError, match="name a kubeconfig, or set KUBECONFIG"):
        asyncio.run(Kube.connect(kubeconfig=str(tmp_path / "none")))
