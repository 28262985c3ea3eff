"""The SDK on a real API server, with an operator and the masters' stand-in: submit, follow, change, delete."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading

import pytest
import yaml

from shoal.sdk import (
    AlreadyExistsError,
    AsyncClient,
    Client,
    ClusterUnreachableError,
    FetchError,
    ForbiddenError,
    InvalidJobError,
    JobDeletedError,
    JobFailedError,
    NotFoundError,
    NotInstalledError,
    ParameterServers,
    Replicas,
    State,
    Trainers,
    WaitTimeoutError,
)
from tests.cluster import certificates
from tests.cluster.control_plane import ControlPlane
from tests.operator.world import a_world, manifest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

NUMBERS = itertools.count()
IMAGE = "example.org/train:1"


@pytest.fixture
def client(shared):
    with Client(kubeconfig=shared.cluster.kubeconfig, namespace=shared.namespace) as made:
        yield made


@pytest.fixture
def name(shared):
    made = f"sdk-{next(NUMBERS)}"
    yield made
    shared.kubectl("delete", "tj", made, "--wait=false", "--ignore-not-found")


@pytest.fixture
def own_world(tmp_path):
    """Run a world on a control plane of its own, whose API server the test restarts."""
    with ControlPlane(tmp_path / "cluster") as cluster:
        cluster.add_nodes(3)
        with a_world(cluster, tmp_path) as made:
            yield made


def submit(client, name, **arguments):
    options = {
        "command": ["python", "train.py"],
        "image": IMAGE,
        "trainers": Trainers(min=2, max=4),
        "parameter_servers": ParameterServers(replicas=1, empty_dir=True),
    }
    return client.submit(name=name, **(options | arguments))


def test_a_job_is_submitted_watched_to_its_end_and_has_its_account(shared, client, name):
    job = submit(client, name, epochs=3)
    assert (job.name, job.namespace) == (name, shared.namespace)
    seen = []
    for status in job.watch(bar=False):
        seen.append(status)
        if status.state is State.RUNNING and len(seen) > 1:
            shared.job(name).end()
    states = [status.state for status in seen]
    assert states[0] is State.PENDING
    assert states[-1] is State.COMPLETE
    assert State.RUNNING in states
    assert len(seen) == len({repr(each) for each in seen}), "no state is yielded twice"
    last = job.wait(timeout="1m")
    assert last.is_complete
    assert last.account is not None
    assert last.ended is not None


def test_a_job_is_found_and_listed_by_state_and_label(client, name):
    submit(client, name, labels={"team": name})
    assert client.get(name).status().name == name
    assert [each.name for each in client.list(labels={"team": name})] == [name]
    assert name in [each.name for each in client.list(all_namespaces=True)]
    assert client.list(labels={"team": name}, state=["Complete", State.FAILED]) == []


def test_a_dry_run_validates_and_creates_nothing(client, name):
    found = submit(client, name, dry_run=True)
    assert found["metadata"]["name"] == name
    assert found["spec"]["trainer"] == {"minReplicas": 2, "maxReplicas": 4}
    with pytest.raises(NotFoundError):
        client.get(name)


def test_trainers_are_pinned_un_pinned_and_bounded(shared, client, name):
    job = submit(client, name)
    shared.job(name).at_work([0, 1], servers=1)
    job.scale(3)
    shared.job(name).at_work([0, 1, 2], servers=1)
    job.scale(None)
    shared.job(name).at_work([0, 1], servers=1)
    job.scale(min=3, max=5)
    shared.job(name).at_work([0, 1, 2], servers=1)
    shared.until(lambda: job.status().trainers == Replicas(ready=3, desired=3, min=3, max=5), "its status")
    assert {each.name for each in job.members()} == {"master-0", "pserver-0", "trainer-0", "trainer-1", "trainer-2"}
    with pytest.raises(InvalidJobError, match="not between minReplicas and maxReplicas"):
        job.scale(9)


def test_a_job_is_suspended_resumed_and_deleted(shared, client, name):
    job = submit(client, name)
    shared.job(name).at_work([0, 1], servers=1)
    job.suspend()
    assert job.wait("Suspended", timeout=60).state is State.SUSPENDED
    job.resume()
    assert job.wait(["Running"], timeout=60).state is State.RUNNING
    reasons = [each.reason for each in job.events()]
    assert "Suspended" in reasons
    job.delete()
    with pytest.raises(NotFoundError, match="does not exist"):
        job.status()
    with pytest.raises(NotFoundError):
        job.delete()


def test_a_script_s_sources_belong_to_the_job(shared, client, name, tmp_path):
    (tmp_path / "train.py").write_text("print(1)\n")
    job = client.submit(script=tmp_path / "train.py", name=name, image=IMAGE, trainers="1:2", parameter_servers=1)
    held = [each for each in shared.list("ConfigMap") if each["metadata"]["name"].startswith(f"{name}-source-")]
    assert [each["data"] for each in held] == [{"file-0": "print(1)\n"}]
    pod = shared.job(name)
    pod.until(lambda: pod.pods("trainer", ready=False), "its trainer")
    spec = pod.all_pods("trainer")[0]["spec"]
    assert spec["containers"][0]["workingDir"] == "/shoal/source"
    job.delete()
    shared.until(
        lambda: (
            not [each for each in shared.list("ConfigMap") if each["metadata"]["name"].startswith(f"{name}-source-")]
        ),
        "the sources to go",
    )
    # The same name and the same sources again, while the garbage collector may still be at work.
    client.submit(script=tmp_path / "train.py", name=name, image=IMAGE, trainers="1:2", parameter_servers=1)


def test_a_model_of_a_script_without_a_claim_is_refused_before_it_is_lost(client, name, tmp_path):
    (tmp_path / "train.py").write_text("print(1)\n")
    with pytest.raises(InvalidJobError, match="name a PersistentVolumeClaim by output_claim="):
        client.submit(script=tmp_path / "train.py", name=name, output="model.safetensors")


# Ends and waits


def test_a_wait_ends_when_the_job_fails_with_the_reason(shared, client, name):
    job = submit(client, name)
    shared.job(name).at_work([0, 1], servers=1)
    shared.job(name).end("Failed")
    with pytest.raises(JobFailedError) as error:
        job.wait(timeout="1m")
    assert error.value.reason
    assert name in str(error.value)


def test_a_wait_ends_when_the_job_is_deleted(shared, client, name):
    job = submit(client, name)
    shared.job(name).at_work([0, 1], servers=1)
    threading.Timer(1.0, shared.kubectl, ["delete", "tj", name, "--wait=false"]).start()
    with pytest.raises(JobDeletedError, match="it does not exist any more; it was"):
        job.wait(timeout="1m")


def test_a_wait_ends_when_another_job_takes_the_name(shared, client, name):
    job = submit(client, name)
    shared.job(name).at_work([0, 1], servers=1)

    def replace():
        shared.kubectl("delete", "tj", name)
        shared.apply(manifest(name))

    threading.Timer(1.0, replace).start()
    with pytest.raises(JobDeletedError):
        job.wait(timeout="1m")


def test_a_wait_that_takes_too_long_says_what_the_job_is(client, name):
    job = submit(client, name)
    with pytest.raises(WaitTimeoutError, match=f"job .*{name} is not Complete after 1s; it is "):
        job.wait(timeout="1s")


def test_a_wait_ends_at_once_for_a_job_that_the_operator_refuses(shared, client, name):
    job = submit(client, name, priority="no-such-priority")
    job_seen = shared.job(name)
    job_seen.until(lambda: job_seen.condition("Accepted"), "its check")
    if job_seen.condition("Accepted")["status"] == "False":
        with pytest.raises(InvalidJobError, match="is refused"):
            job.wait(timeout="1m")


# Errors


def test_a_name_that_is_taken(client, name):
    submit(client, name)
    with pytest.raises(AlreadyExistsError, match=f"{name} exists already; choose another name=, or delete it"):
        submit(client, name)


def test_an_invalid_job_is_refused_by_the_api_server_with_the_field(client, name):
    with pytest.raises(InvalidJobError) as error:
        client.submit(
            manifest={
                **manifest(name),
                "spec": manifest(name)["spec"] | {"trainer": {"template": {"spec": {"containers": "x"}}}},
            }
        )
    assert error.value.problems


def test_a_namespace_that_does_not_exist(shared, name):
    with (
        Client(kubeconfig=shared.cluster.kubeconfig, namespace="no-such-namespace") as client,
        pytest.raises(NotFoundError, match='namespaces "no-such-namespace" not found'),
    ):
        submit(client, name)


def stranger(cluster, folder):
    """Write a kubeconfig of a user without any permission."""
    kept = cluster._layout.certificates
    certificates.make_client(kept, "stranger", user="stranger", group="strangers")
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    config["users"][0]["user"] = {
        "client-certificate": str(kept / "stranger.crt"),
        "client-key": str(kept / "stranger.key"),
    }
    (folder / "kubeconfig").write_text(yaml.safe_dump(config))
    return folder / "kubeconfig"


def test_a_caller_without_permission_gets_the_verb_and_the_role_to_bind(shared, name, tmp_path):
    with Client(kubeconfig=stranger(shared.cluster, tmp_path), namespace=shared.namespace) as client:
        with pytest.raises(ForbiddenError) as error:
            submit(client, name)
        assert 'cannot create resource "trainingjobs"' in str(error.value)
        assert f"kubectl create rolebinding shoal-users --namespace={shared.namespace}" in str(error.value)
        assert "--clusterrole=edit --user=stranger" in str(error.value)
        with pytest.raises(ForbiddenError, match="--clusterrole=view --user=stranger"):
            client.list()


def test_a_cluster_that_does_not_answer(shared, tmp_path, monkeypatch):
    config = json.loads(shared.cluster.kubectl("config", "view", "--raw", "-o", "json"))
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    (tmp_path / "config").write_text(json.dumps(config))
    monkeypatch.setattr("shoal.sdk.cluster.TIMEOUT_SECONDS", 0.5)
    with (
        Client(kubeconfig=tmp_path / "config", namespace="default") as client,
        pytest.raises(ClusterUnreachableError, match="does not answer"),
    ):
        client.list()


def test_a_kubeconfig_without_a_current_context_or_with_an_unknown_one(shared, tmp_path):
    config = json.loads(shared.cluster.kubectl("config", "view", "--raw", "-o", "json"))
    with (
        Client(kubeconfig=shared.cluster.kubeconfig, context="elsewhere") as client,
        pytest.raises(ClusterUnreachableError, match="elsewhere"),
    ):
        client.list()
    (tmp_path / "config").write_text(json.dumps({**config, "current-context": ""}))
    with (
        Client(kubeconfig=tmp_path / "config") as client,
        pytest.raises(ClusterUnreachableError, match="no cluster can be reached"),
    ):
        client.list()


def test_a_job_without_a_claim_has_no_model_to_fetch(client, name):
    job = submit(client, name)
    with pytest.raises(FetchError, match=r"has no spec\.output"):
        job.fetch_model()
    with pytest.raises(FetchError, match=r"has no spec\.output\.volumeClaimName"):
        job.fetch_model("model.safetensors")


def test_two_clients_scale_at_once_and_one_of_them_is_last(shared, name):
    async def scenario():
        options = {"kubeconfig": shared.cluster.kubeconfig, "namespace": shared.namespace}
        async with AsyncClient(**options) as one, AsyncClient(**options) as other:
            first = await submit(one, name)
            second = await other.get(name)
            await asyncio.gather(*(job.scale(size) for _ in range(5) for job, size in ((first, 2), (second, 4))))
            return await first.status()

    assert asyncio.run(scenario()).name == name
    assert shared.job(name).found["spec"]["trainer"]["replicas"] in {2, 4}


def test_an_interrupted_watch_leaves_no_request_behind(client, name):
    job = submit(client, name)
    for _ in job.watch(bar=False):
        break
    assert job.status().name == name


def test_a_client_works_where_an_event_loop_runs_already(client, name):
    async def notebook():
        job = submit(client, name)
        return job.status().name

    assert asyncio.run(notebook()) == name


def test_the_logged_values_of_a_new_job_are_none(client, name):
    assert submit(client, name).metrics() == []


def test_history_has_each_change_of_size(shared, client, name):
    job = submit(client, name)
    shared.job(name).at_work([0, 1], servers=1)
    job.scale(3)
    shared.job(name).at_work([0, 1, 2], servers=1)
    shared.until(job.history, "the change")
    last = job.history()[-1]
    assert (last.before, last.after, last.by) == (2, 3, "shoal-sdk")


def test_watching_goes_on_when_the_api_server_restarts(own_world):
    world = own_world
    with Client(kubeconfig=world.cluster.kubeconfig, namespace=world.namespace) as client:
        job = submit(client, "restarted")
        world.job("restarted").at_work([0, 1], servers=1)
        seen = []

        def watch():
            seen.extend(status.state for status in job.watch(bar=False))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        world.until(lambda: State.RUNNING in seen, "the watch")
        world.cluster.restart("kube-apiserver")
        world.job("restarted").end()
        watcher.join(120)
        assert seen[-1] is State.COMPLETE
        assert len([each for each in seen if each is State.COMPLETE]) == 1


def test_a_cluster_without_shoal(tmp_path):
    with (
        ControlPlane(tmp_path) as cluster,
        Client(kubeconfig=cluster.kubeconfig, namespace="default") as client,
        pytest.raises(NotInstalledError, match="install Shoal"),
    ):
        client.list()
