"""The requests that the gateway sends, on a server that records them."""

from __future__ import annotations

import asyncio

import pytest
import yaml
from aiohttp import web

from shoal.kube import Kube


def kubeconfig(folder, port):
    user = {"name": "u", "user": {"token": "let-me-in"}}
    cluster = {"name": "c", "cluster": {"server": f"http://localhost:{port}"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    file = folder / "kubeconfig"
    file.write_text(
        yaml.safe_dump(
            {"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [context],
             "clusters": [cluster], "users": [user]}
        )
    )  # fmt: skip
    return str(file)


async def at_once(_request):
    pass


def asked(folder, work, before=at_once):
    """Return the requests that the server receives while the work runs."""
    found = []

    async def answer(request):
        await before(request)
        found.append((request, await request.text()))
        return web.json_response({"items": [], "metadata": {"resourceVersion": "7"}})

    async def run():
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(application)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = runner.addresses[0][1]
            async with await Kube.connect(kubeconfig=kubeconfig(folder, port), timeout_seconds=2) as kube:
                await work(kube)
        finally:
            await runner.cleanup()

    asyncio.run(run())
    return found


def test_many_requests_at_once_wait_before_their_time_begins(tmp_path, monkeypatch):
    monkeypatch.setattr("shoal.kube.wire._MOST_REQUESTS", 4)
    monkeypatch.setattr("shoal.kube.wire.TRY_SECONDS", 0.5)
    now = most = 0

    async def slowly(_request):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.05)
        now -= 1

    async def work(kube):
        # Together they take more than one second, but none of them takes more than its share of the timeout of half a second.
        await asyncio.gather(*(kube.get("Pod", f"p{number}", namespace="n") for number in range(100)))

    assert len(asked(tmp_path, work, before=slowly)) == 100, "no request was retried"
    assert most == 4


def test_a_request_has_the_token_the_query_and_the_body(tmp_path):
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "n"}, "spec": {"x": [1, None]}}

    async def work(kube):
        await kube.listing("Pod", namespace="n", selector="shoal.dev/role in (a,b),x=y")
        await kube.apply(pod)
        await kube.delete("Pod", "p", namespace="n", grace_seconds=0)

    (listed, _), (applied, body), (deleted, options) = asked(tmp_path, work)
    assert listed.query == {"limit": "500", "labelSelector": "shoal.dev/role in (a,b),x=y"}
    assert {each.headers["Authorization"] for each in (listed, applied, deleted)} == {"Bearer let-me-in"}
    assert (applied.method, applied.path) == ("PATCH", "/api/v1/namespaces/n/pods/p")
    assert applied.query == {"fieldManager": "shoal", "force": "true"}
    assert applied.headers["Content-Type"] == "application/apply-patch+yaml"
    assert yaml.safe_load(body) == pod
    assert yaml.safe_load(options)["gracePeriodSeconds"] == 0


@pytest.mark.parametrize("proxy", [False, True])
def test_a_proxy_of_the_environment_is_used_and_nothing_else_of_it(tmp_path, monkeypatch, proxy):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    if proxy:
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")

    async def work(kube):
        assert await kube.get("Pod", "p", namespace="n")

    if proxy:
        with pytest.raises(Exception, match="does not answer"):
            asked(tmp_path, work)
    else:
        assert len(asked(tmp_path, work)) == 1
