"""What a user of kubectl sees of jobs and can do with them, on a real control plane."""

from __future__ import annotations

import contextlib
import json
import re

import pytest

from shoal.store import ALL_JOBS, JobKeys, Store
from tests.cluster.control_plane import KubectlError
from tests.operator.world import manifest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def job(shared):
    """A running job with a priority and as few trainers as its minimum allows."""
    made = shared.job("flights")
    made.apply(priority="batch", epochs=3)
    made.at_work([0, 1])
    made.state("Running")
    return made


@pytest.fixture
def resized(job):
    """Provide the job and restore its size after the test."""
    yield job
    job.patch({"trainer": {"minReplicas": 2, "maxReplicas": 4, "replicas": None}})
    job.at_work([0, 1])


def refusal(do) -> str:
    """Return kubectl's message for a refused command, in one line."""
    with pytest.raises(KubectlError) as error:
        do()
    return " ".join(str(error.value).split())


# --- Reading ---


def explained(world, field: str) -> str:
    """Return kubectl explain's text of a field in one line; the API server publishes a new schema with a delay."""
    texts = []

    def found() -> bool:
        with contextlib.suppress(KubectlError):
            texts.append(" ".join(world.kubectl("explain", field).split()))
        return bool(texts)

    world.until(found, f"the explanation of {field}")
    return texts[0]


def test_explain_is_worth_reading(shared):
    trainer = explained(shared, "tj.spec.trainer")
    assert "FIELD: trainer <Object>" in trainer
    for words in (
        "trainers join and leave while it runs, without a restart of the others",
        "minReplicas <integer> Fewest trainers the job can use",
        "kubectl scale tj/NAME --replicas=5",
        "0 is refused; to pause a job set spec.suspend",
        "template <Object> PodTemplateSpec",
    ):
        assert words in trainer
    spec = explained(shared, "tj.spec")
    assert "command <[]string> -required-" in spec
    assert "enum: ParameterServer" in spec
    status = explained(shared, "tj.status")
    assert all(field in status for field in ("conditions <[]Object>", "progress <Object>", "account <Object>"))
    history = explained(shared, "tj.status.history")
    assert "The last 100 changes of the desired number of trainers, the oldest first" in history
    assert "by <string> Who asked: the field manager of the change in metadata.managedFields" in history


def table(text: str) -> tuple[list[str], list[list[str]]]:
    header, *rows = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    return header, rows


def test_get_has_the_documented_columns(shared, job):
    job.until(lambda: job.status().get("progress", {}).get("rate"), "a rate")
    narrow = ["NAME", "STATE", "TRAINERS", "RANGE", "PROGRESS", "RATE", "AGE"]
    header, ((*cells, age),) = table(shared.kubectl("get", "tj"))
    assert header == narrow
    assert cells == ["flights", "Running", "2/2", "2-4", "0%", "100"]
    assert re.fullmatch("[0-9smh]+", age)
    header, (cells,) = table(shared.kubectl("get", "trainingjobs", "-o", "wide"))
    assert header == [*narrow, "PRIORITY", "EPOCH", "SERVERS", "LAST-STEP", "REASON"]
    shown = dict(zip(header, cells, strict=True))
    assert shown.items() >= {"PRIORITY": "batch", "EPOCH": "1", "SERVERS": "2/2", "REASON": "TrainersReady"}.items()


def test_jobs_are_found_with_everything_of_shoal_s(shared, job):
    assert shared.kubectl("get", "shoal", "-o", "name").split() == [f"trainingjob.shoal.dev/{job.name}"]
    objects = shared.kubectl("get", "all", "-l", f"shoal.dev/job={job.name}", "-o", "name").split()
    assert {"pod/flights-trainer-1", "deployment.apps/flights-master", "statefulset.apps/flights-pserver"} <= set(
        objects
    )


def test_describe_shows_conditions_and_events(shared, job):
    reported = shared.kubectl("describe", "tj", job.name)
    plain = " ".join(reported.split())
    assert "Reason: TrainersReady Status: True Type: Running" in plain
    assert "Reason: SamplesCommitted Status: True Type: Progressing" in plain
    events = reported[reported.index("Events:") :]
    assert re.search(r"Normal +Started +\S+ +shoal.dev/operator +the training begins with [12] trainers", events)


def test_wait_for_a_condition_that_is_there_returns_at_once(job):
    job.wait("Accepted")
    job.wait("Running")
    job.wait("Progressing")


# --- Scaling ---


def test_scale_pins_and_the_pin_can_be_removed(shared, resized):
    job = resized
    job.scale(3)
    job.at_work([0, 1, 2])
    job.until(lambda: job.status()["allocation"].get("message") == "pinned by spec.trainer.replicas", "the reason")
    message = refusal(lambda: shared.kubectl("scale", "tj/flights", "--replicas=4", "--current-replicas=2"))
    assert "Expected replicas to be 2, was 3" in message
    # The path as `kubectl explain` prints it.
    job.patch({"trainer": {"replicas": None}})
    job.at_work([0, 1])
    assert "replicas" not in job.found["spec"]["trainer"]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (9, 'spec.trainer.replicas: Invalid value: "object": replicas is not between minReplicas and maxReplicas; '
            'change it or the bounds, or leave it out'),
        (1, 'spec.trainer.replicas: Invalid value: "object": replicas is not between minReplicas and maxReplicas'),
        (0, 'spec.trainer.replicas: Invalid value: "object": 0 trainers cannot train; to pause the job write `suspend: true`'),
    ],
)  # fmt: skip
def test_scaling_beyond_the_bounds_is_refused_with_the_fix(job, wanted, words):
    generation = job.found["metadata"]["generation"]
    assert words in refusal(lambda: job.scale(wanted))
    assert job.found["metadata"]["generation"] == generation


def test_bounds_hold_at_once(resized):
    job = resized
    before = job.pod_uids()
    job.patch({"trainer": {"minReplicas": 3, "maxReplicas": 5}})
    job.at_work([0, 1, 2])
    job.until(lambda: job.status()["trainers"]["range"] == "3-5", "the range")
    budget = job.world.api.get("PodDisruptionBudget", "flights-trainer", job.world.namespace)
    assert budget["spec"]["minAvailable"] == 3
    assert before <= job.pod_uids(), "no pod is restarted for it"
    assert 'spec.trainer.minReplicas: Invalid value: "object": minReplicas is more than maxReplicas; lower' in refusal(
        lambda: job.patch({"trainer": {"minReplicas": 6}})
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 5}, "spec.epochs: Forbidden"),
        ({"epochs": None}, "spec.epochs: Forbidden"),
        ({"parameterServer": {"replicas": 3}}, "spec.parameterServer.replicas: Forbidden"),
    ],
)
def test_what_cannot_change_is_refused_with_the_fix(job, change, words):
    message = refusal(lambda: job.patch(change))
    assert f"{words}: cannot change once the job exists; make a new job" in message
    assert job.short("Accepted") == ("True", "Valid")


# --- The end ---


def test_delete_leaves_nothing_anywhere(shared):
    claim = {
        "storageClassName": shared.namespace,
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Mi"}},
    }
    shared.cluster.add_volumes(2, storage_class=shared.namespace)
    job = shared.job("brief")
    shared.apply(manifest("brief", parameterServer={"replicas": 2, "volumeClaimSpec": claim}))
    job.at_work([0, 1])
    kinds = {each.partition(" ")[0] for each in job.made()}
    assert kinds == {"Pod", "Service", "ServiceAccount", "Secret", "ConfigMap", "Deployment", "StatefulSet",
                     "PodDisruptionBudget", "PersistentVolumeClaim"}  # fmt: skip
    keys = JobKeys(shared.namespace, "brief", job.uid)
    with Store.connect(shared.etcd.endpoint, prefix=ALL_JOBS) as etcd:
        shared.until(lambda: etcd.get(keys.progress), "the master's record")
        job.delete()
        job.nothing()
        shared.until(lambda: not etcd.get_prefix(keys.prefix).pairs, "the garbage collection in etcd")
        assert etcd.get_prefix(f"{ALL_JOBS}{shared.namespace}/flights/").pairs, "only what is gone is swept"


def test_delete_in_the_foreground_and_of_a_suspended_job(shared):
    first, second = shared.job("first"), shared.job("second")
    shared.apply(manifest("first"), manifest("second", suspend=True))
    first.at_work([0, 1])
    second.state("Suspended")
    shared.kubectl("delete", "tj", "first", "second", "--cascade=foreground")
    assert first.made() == second.made() == []


# --- Kubernetes' own autoscaler: last, as in a new cluster it takes 30 s until it knows a new kind ---


def hpa(low: int, high: int) -> str:
    target = {"apiVersion": "shoal.dev/v1alpha1", "kind": "TrainingJob", "name": "flights"}
    return json.dumps({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "flights"},
        "spec": {"scaleTargetRef": target, "minReplicas": low, "maxReplicas": high},
    })  # fmt: skip


def test_a_horizontal_pod_autoscaler_names_the_field_that_is_missing_and_moves_a_pinned_job(shared, resized):
    """The autoscaler moves a pinned job by its bounds, for which it needs no metrics."""
    job = resized
    shared.kubectl("apply", "-f", "-", input=hpa(4, 4))

    def message():
        reported = shared.cluster.get("hpa", "flights", "-n", shared.namespace)["status"].get("conditions", ())
        return [each["message"] for each in reported if each["type"] == "AbleToScale"]

    job.until(
        lambda: 'the spec replicas field ".spec.trainer.replicas" does not exist' in "".join(message()), "the field"
    )
    job.scale(2)
    job.at_work([0, 1, 2, 3])
    shared.kubectl("apply", "-f", "-", input=hpa(2, 3))
    job.at_work([0, 1, 2])
    reported = shared.cluster.get("hpa", "flights", "-n", shared.namespace)
    shared.kubectl("delete", "hpa", "flights")
    assert ("AbleToScale", "True") in [(each["type"], each["status"]) for each in reported["status"]["conditions"]]

    def pinned():
        return [note for reason, note in job.events() if reason == "Scaled" and "pinned by" in note]

    job.until(lambda: len(pinned()) >= 2, "an event for each")
