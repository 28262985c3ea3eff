"""The definition of TrainingJob agrees with the types, and the API server's own code accepts it."""

import json
import random
import re
import subprocess
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import yaml

from shoal.api import Duration, ManifestError, Quantity, TrainingJob, from_mapping
from shoal.api.crd import HEADER, crd, render
from shoal.api.status import (
    REASONS,
    AccountStatus,
    Allocation,
    Condition,
    ConditionType,
    HistoryEntry,
    MasterStatus,
    ProgressStatus,
    Reason,
    ServersStatus,
    State,
    Status,
    TrainersStatus,
)
from tests.api.manifests import BAD, CHANGES, FULL, GOOD, LATE, STRICTER, job
from tests.cluster import binaries

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "crds" / "trainingjobs.yaml"


def ids(table):
    return [row[0] for row in table]


@pytest.fixture(scope="module")
def version():
    return crd()["spec"]["versions"][0]


@pytest.fixture(scope="module")
def schema(version):
    return version["schema"]["openAPIV3Schema"]


def nodes(node, path=""):
    yield path, node
    for name, below in node.get("properties", {}).items():
        yield from nodes(below, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in node:
            yield from nodes(node[key], f"{path}[]")


def at(schema, path):
    for name in path.strip(".").split("."):
        schema = schema["properties"][name]
    return schema


# --- The file ---


def test_the_file_matches_the_types():
    assert FILE.read_text() == render(), "stale; run: python -m shoal.api.crd > crds/trainingjobs.yaml"


def test_the_file_names_its_generator():
    assert render().startswith(HEADER)
    assert yaml.safe_load(render()) == crd()


# --- The schema ---


def test_every_field_has_a_kind_and_a_description_and_nothing_that_an_api_server_does_not_know(schema):
    for path, node in nodes(schema):
        kinds = [node.get("type"), node.get("x-kubernetes-int-or-string")]
        assert sum(map(bool, kinds)) == 1, path
        assert not node.keys() & {"$ref", "$defs", "anyOf", "allOf", "const", "title", "readOnly"}, path
        assert node.get("additionalProperties") not in (True, False), path
        assert path.endswith("[]") or path in {".metadata", ".metadata.name"} or node["description"], path


def test_the_spec_is_explained_at_some_length(schema):
    spec = at(schema, "spec")
    words = {path: len(node["description"].split()) for path, node in nodes(spec) if not path.endswith("[]")}
    assert [path for path, count in words.items() if count < 6] == []
    assert len(at(spec, "trainer")["description"].split(". ")) >= 2


def test_what_must_be_there(schema):
    found = {path: node["required"] for path, node in nodes(schema) if "required" in node}
    assert found == {
        "": ["spec"],
        ".spec": ["command"],
        ".spec.env[]": ["name"],
        ".spec.output": ["path"],
        ".status.conditions[]": ["type", "status", "reason", "lastTransitionTime"],
    }


def test_defaults_are_those_of_the_types_and_reach_sections_that_are_left_out(schema):
    found = {path: node["default"] for path, node in nodes(schema) if "default" in node}
    made = TrainingJob(metadata={"name": "a"}, spec={"command": ["a"], "parameterServer": {}})
    values = made.model_dump(by_alias=True, mode="json")
    assert found.keys() == {
        ".spec.strategy", ".spec.suspend", ".spec.parameterServer.replicas", ".spec.trainer", ".spec.trainer.minReplicas",
        ".spec.checkpoint", ".spec.checkpoint.interval", ".spec.checkpoint.keep", ".spec.runPolicy", ".spec.runPolicy.backoffLimit",
        ".spec.runPolicy.disruptionBudget",
        ".spec.runPolicy.stepTimeout",
    }  # fmt: skip
    for path, default in found.items():
        value = values
        for name in path.strip(".").split("."):
            value = value[name]
        assert value == default or default.items() <= value.items(), path


def test_durations_and_quantities_have_the_types_own_patterns(schema):
    interval = at(schema, "spec.checkpoint.interval")["pattern"]
    amount = at(schema, "spec.sharedMemory")["pattern"]
    for text in ("30s", "1.5h2ms", "1d", "", "s", "30", " 1s"):
        assert bool(re.fullmatch(interval, text)) == is_taken(Duration, text), text
    for text in ("1Gi", "500m", "1e3", ".5", "1Kii", "1 G", "", "e3", "1e100"):
        assert bool(re.fullmatch(amount, text)) == is_taken(Quantity, text), text
    amounts = [node for path, node in nodes(schema) if node.get("x-kubernetes-int-or-string")]
    assert len(amounts) == 8
    assert {node["pattern"] for node in amounts} == {amount}


def is_taken(kind, text):
    try:
        kind(text)
    except ValueError:
        return False
    return True


def test_templates_are_left_as_they_are(schema):
    found = {path for path, node in nodes(schema) if node.get("x-kubernetes-preserve-unknown-fields")}
    assert found == {
        ".spec.env[].valueFrom", ".spec.envFrom[]", ".spec.trainer.template", ".spec.parameterServer.template",
        ".spec.parameterServer.volumeClaimSpec", ".spec.master.template",
    }  # fmt: skip


def test_columns_and_scale_show_fields_that_are_there(version, schema):
    shown = [column["jsonPath"] for column in version["additionalPrinterColumns"]]
    shown += version["subresources"]["scale"].values()
    assert [
        path for path in shown if path != ".metadata.creationTimestamp" and not at(schema, path)["description"]
    ] == []


def test_every_rule_names_the_fix_in_its_message(schema):
    rules = [rule for _, node in nodes(schema) for rule in node.get("x-kubernetes-validations", [])]
    assert len(rules) > 20
    assert all(len(rule["message"].split()) >= 3 for rule in rules)


# --- The types ---


@pytest.mark.parametrize(("name", "manifest"), GOOD, ids=ids(GOOD))
def test_the_types_take(name, manifest):
    assert from_mapping(manifest).metadata.name


@pytest.mark.parametrize(("name", "manifest", "words"), BAD + LATE, ids=ids(BAD + LATE))
def test_the_types_refuse(name, manifest, words):
    with pytest.raises(ManifestError) as error:
        from_mapping(manifest)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(("name", "manifest", "words"), STRICTER, ids=ids(STRICTER))
def test_the_types_take_what_only_an_api_server_refuses(name, manifest, words):
    assert from_mapping(manifest).metadata.name


# --- The status ---

NOW = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
STATUS = Status(
    observed_generation=3,
    state=State.RUNNING,
    reason=Reason.TRAINERS_READY,
    conditions=[
        Condition(type=ConditionType.ACCEPTED, status="True", reason=Reason.VALID, last_transition_time=NOW),
        Condition(type=ConditionType.RUNNING, status="True", reason=Reason.TRAINERS_READY, message="3 of 4",
                  last_transition_time=NOW, observed_generation=3),
    ],
    trainers=TrainersStatus(desired=4, ready=3, min=2, max=8),
    servers=ServersStatus(desired=2, ready=2),
    master=MasterStatus(ready=True),
    progress=ProgressStatus(epoch=1, epochs=3, samples=415, expected=1000, rate=1234567.0, estimated_end=NOW,
                      last_step_time=NOW, message="waits"),
    allocation=Allocation(desired=4, ready=3, message="pinned"),
    account=AccountStatus(epochs=3, expected=1000, counted=1000, seconds=1.5),
    start_time=NOW,
    completion_time=NOW,
    last_scale_time=NOW,
    history=[HistoryEntry(time=NOW, before=0, after=4, cause="pinned by spec.trainer.replicas", by="kubectl")],
    failures=1,
    selector="shoal.dev/job=flights",
)  # fmt: skip


def test_a_status_is_written_as_kubernetes_writes_it():
    written = STATUS.to_mapping()
    assert written["trainers"] == {"desired": 4, "ready": 3, "min": 2, "max": 8, "text": "3/4", "range": "2-8"}
    assert written["progress"]["percent"] == "41%"
    assert written["progress"]["rate"] == 1_230_000
    assert written["startTime"] == written["conditions"][0]["lastTransitionTime"] == "2026-01-02T03:04:05Z"
    change = {
        "time": "2026-01-02T03:04:05Z",
        "before": 0,
        "after": 4,
        "cause": "pinned by spec.trainer.replicas",
        "by": "kubectl",
    }
    assert written["history"] == [change]
    assert Status().to_mapping() == {"conditions": []}


def test_a_status_reads_the_same_and_accepts_unknown_fields():
    written = STATUS.to_mapping()
    assert Status.from_mapping({**written, "later": {"a": 1}}) == Status.from_mapping(written) == STATUS
    assert Status.from_mapping(None) == Status()


@pytest.mark.parametrize(
    ("samples", "expected", "percent"),
    [(0, 10, "0%"), (999, 1000, "99%"), (1000, 1000, "100%"), (5, None, None), (0, 0, None)],
)
def test_the_share_is_100_percent_only_at_the_end(samples, expected, percent):
    assert ProgressStatus(samples=samples, expected=expected).percent == percent


@pytest.mark.parametrize(
    ("rate", "shown"),
    [(None, None), (0.0, 0.0), (0.012345, 0.0123), (9.996, 10.0), (1234.5, 1230.0), (float("nan"), None)],
)
def test_a_rate_has_three_digits(rate, shown):
    assert ProgressStatus(rate=rate).rate == shown


def test_a_time_is_in_utc_and_one_without_a_zone_is_refused():
    there = timezone(timedelta(hours=2))
    assert Status(start_time=NOW.astimezone(there)).to_mapping()["startTime"] == "2026-01-02T03:04:05Z"
    with pytest.raises(ValueError, match="timezone"):
        Status(start_time=datetime(2026, 1, 2))  # noqa: DTZ001


def test_a_fixed_size_has_no_range():
    assert TrainersStatus(min=2, max=2).range == "2"


def test_every_reason_is_explained():
    explained = [reason for reasons in REASONS.values() for reason in reasons]
    assert sorted(explained) == sorted(Reason)
    assert list(REASONS) == list(ConditionType)
    assert all(re.fullmatch("([A-Z][a-z]+)+", reason) for reason in explained)
    assert all(meaning.endswith(".") for reasons in REASONS.values() for meaning in reasons.values())


# --- The API server's own code ---


def by_the_api_server(test):
    """Mark a test for the cluster, with a timeout that allows for building the program, which takes minutes the first time."""
    return pytest.mark.cluster(pytest.mark.timeout(900)(test))


class Server:
    """Run the program of tests/crd, which answers many questions in one call."""

    def __init__(self, program):
        self.program = program

    def ask(self, questions):
        asked = subprocess.run([self.program, FILE], input=json.dumps(questions), capture_output=True, text=True, check=False)  # fmt: skip
        assert asked.returncode == 0, asked.stderr
        return json.loads(asked.stdout)


@pytest.fixture(scope="module")
def server():
    binaries.build(["crd"])
    return Server(binaries.path("crd"))


def questions():
    """Return the questions of all tables; an update is named after its change."""
    asked = {name: {"object": manifest} for name, manifest, *_ in [*GOOD, *BAD, *LATE, *STRICTER]}
    return asked | {f"change: {name}": {"object": after, "old": before} for name, before, after, _ in CHANGES}


@pytest.fixture(scope="module")
def said(server):
    return server.ask(questions())


@by_the_api_server
def test_an_api_server_takes_the_definition(said):
    assert said["definition"] == []


@by_the_api_server
def test_the_rules_are_cheap(said):
    costs = [each["cost"] for each in said["costs"]]
    assert len(costs) > 20
    assert max(costs) < 10_000_000 / 4
    assert sum(costs) < 100_000_000 / 20


@by_the_api_server
@pytest.mark.parametrize("name", ids(GOOD + LATE))
def test_an_api_server_takes(said, name):
    assert said["answers"][name]["errors"] == []


@by_the_api_server
@pytest.mark.parametrize(("name", "manifest", "words"), BAD + STRICTER, ids=ids(BAD + STRICTER))
def test_an_api_server_refuses(said, name, manifest, words):
    text = "\n".join(said["answers"][name]["errors"])
    assert text
    assert all(word in text for word in words), text


@by_the_api_server
@pytest.mark.parametrize(("name", "before", "after", "words"), CHANGES, ids=ids(CHANGES))
def test_an_api_server_takes_or_refuses_the_change_of(said, name, before, after, words):
    text = "\n".join(said["answers"][f"change: {name}"]["errors"])
    assert bool(text) == bool(words), text
    assert all(word in text for word in words), text


@by_the_api_server
@pytest.mark.parametrize(("name", "manifest"), GOOD, ids=ids(GOOD))
def test_a_job_means_the_same_after_an_api_server_has_filled_it_in(said, name, manifest):
    assert from_mapping(said["answers"][name]["object"]) == from_mapping(manifest)


@by_the_api_server
def test_kubectl_get_shows_a_status(server):
    before = job(priority="batch")
    before["metadata"]["creationTimestamp"] = "2026-01-02T03:04:05Z"
    after = {**before, "status": STATUS.to_mapping()}
    answer = server.ask({"a": {"object": after, "old": before, "status": True}})["answers"]["a"]
    assert answer["errors"] == []
    assert answer["object"]["status"] == STATUS.to_mapping()
    ages = [answer["cells"].pop("Age"), answer["cells"].pop("Last-Step")]
    assert answer["cells"] == {
        "Name": "flights", "State": "Running", "Trainers": "3/4", "Range": "2-8", "Progress": "41%",
        "Rate": 1_230_000, "Priority": "batch", "Epoch": 1, "Servers": "2/2", "Reason": "TrainersReady",
    }  # fmt: skip
    assert all(re.fullmatch("([0-9]+[ydhms])+", age) for age in ages)


# --- Both agree on random manifests ---

POOL = {
    "command": [["python"], [""], [], [" ", "x"], ["a", 1], "a"],
    "parameterServer": [{}, None, {"replicas": 2}, {"replicas": 0}, {"replicas": "1"}, {"replicas": 10_001}, []],
    "epochs": [1, 0, 1.5, "1", None, True, 2**62],
    "seed": [0, -1, 2**63 - 1, 2**63, 1.5],
    "suspend": [True, False, "true", 1, None],
    "image": ["a:1", "", 1],
    "args": [[], ["a"], [None], [1], "a"],
    "checkpoint": [{}, {"interval": "1s"}, {"interval": "0ms"}, {"interval": "1"}, {"keep": 0}, {"interval": "1h1"}],
    "sharedMemory": ["1Gi", 1, "-1", "-0", "1e9", "1e20", "x", "", "12E", "0.5m", True],
    "output": [{"path": "a"}, {"path": ""}, {}, {"path": "a", "volumeClaimName": 1}],
    "strategy": ["ParameterServer", "AllReduce", "", None],
    "runPolicy": [{}, {"backoffLimit": 0}, {"backoffLimit": -1}, {"ttlSecondsAfterFinished": 0}, {"ttl": 1}, {"stepTimeout": "3s"},
                  {"stepTimeout": "3"}],
    "env": [[], [{"name": "A"}], [{"name": "A"}] * 2, [{"name": "="}], [{"name": "\x7f"}], [{"name": "A", "value": None}],
            [{"name": "A", "value": "", "valueFrom": {}}], [{"name": ""}], [{}], [None], {}],
    "master": [{}, {"resources": {"limits": {"cpu": "1"}}}, {"resources": {"limits": {"cpu": None}}}, {"replicas": 1}],
}  # fmt: skip
COUNTS = [1, 2, 3, 0, -1, None, 10_000, 10_001, "2", 2.0]
NAMES = ["a", "a" * 39, "a" * 40, "a-b", "-a", "1a", "A", "a_b", "a.b", ""]


def any_manifest(rng):
    """Return a random manifest that is mostly valid, with a few parts that may be invalid."""
    parts = {key: rng.choice(values) for key, values in POOL.items() if rng.random() < 0.15}
    if rng.random() < 0.6:
        bounds = {key: rng.choice(COUNTS[:3] if rng.random() < 0.7 else COUNTS) for key in ("minReplicas", "maxReplicas", "replicas")}  # fmt: skip
        parts["trainer"] = {key: value for key, value in bounds.items() if rng.random() < 0.7}
    made = job(rng.choice(NAMES) if rng.random() < 0.1 else "flights")
    made["spec"] |= parts
    return made


def is_refused(manifest):
    try:
        from_mapping(manifest)
    except ManifestError:
        return True
    return False


@by_the_api_server
def test_types_and_api_server_agree(server):
    rng = random.Random(7)
    manifests = {str(number): any_manifest(rng) for number in range(3000)}
    answers = server.ask({name: {"object": manifest} for name, manifest in manifests.items()})["answers"]
    differ = [
        (manifest["metadata"], manifest["spec"], answers[name]["errors"])
        for name, manifest in manifests.items()
        if bool(answers[name]["errors"]) != is_refused(manifest)
    ]
    assert differ == []
    refused = sum(map(is_refused, manifests.values()))
    assert 500 < refused < 2500
    assert FULL["spec"].keys() <= {*POOL, "trainer", "priority", "envFrom"}
