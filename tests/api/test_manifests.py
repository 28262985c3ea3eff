"""Valid manifests: their meaning, and that reading and writing lose nothing."""

import json
from decimal import Decimal
from fractions import Fraction

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import shoal.api
from shoal.api import (
    Duration,
    EnvVar,
    ManifestError,
    ParameterServer,
    Quantity,
    Spec,
    Trainer,
    TrainingJob,
    for_script,
    from_mapping,
    load,
    loads,
    parse_trainers,
    with_options,
)

MINIMAL = """
apiVersion: shoal.dev/v1alpha1
kind: TrainingJob
metadata: {name: flights}
spec: {command: [python, train.py], parameterServer: {}}
"""


def test_the_defaults():
    job = loads(MINIMAL)
    assert (job.spec.trainer.min_replicas, job.spec.trainer.most, job.spec.trainer.replicas) == (1, 1, None)
    assert (job.servers, job.spec.epochs, job.spec.seed, job.spec.suspend) == (1, None, None, False)
    assert (job.spec.checkpoint.interval, job.spec.checkpoint.keep) == (Duration("30s"), 2)
    assert (job.metadata.namespace, job.spec.run_policy.backoff_limit) == ("default", 6)


@pytest.mark.parametrize(
    ("trainer", "on_a_cluster", "on_4_cores"),
    [
        ({}, 1, 1),
        ({"minReplicas": 2, "maxReplicas": 8}, 2, 4),
        ({"minReplicas": 6, "maxReplicas": 8}, 6, 6),
        ({"minReplicas": 2, "maxReplicas": 8, "replicas": 7}, 7, 7),
        ({"maxReplicas": 3}, 1, 3),
    ],
)
def test_the_desired_number_of_trainers_without_an_autoscaler(trainer, on_a_cluster, on_4_cores):
    mapping = yaml.safe_load(MINIMAL)
    mapping["spec"]["trainer"] = trainer
    job = from_mapping(mapping)
    assert job.desired_trainers() == on_a_cluster
    assert job.desired_trainers(4) == on_4_cores


def test_null_means_not_set():
    job = loads(MINIMAL.replace("parameterServer", "trainer: null, epochs: ~, parameterServer"))
    assert job == loads(MINIMAL)


def test_what_an_api_server_adds_can_stay():
    mapping = yaml.safe_load(MINIMAL)
    mapping["metadata"] |= {"uid": "1", "resourceVersion": "2", "generation": 3, "creationTimestamp": "now"}
    mapping["metadata"] |= {"managedFields": [{}], "finalizers": ["a/b"], "ownerReferences": [{"uid": "9"}]}
    job = from_mapping(mapping | {"status": {"state": "Running"}})
    assert job.to_mapping()["metadata"] == {
        "name": "flights",
        "finalizers": ["a/b"],
        "ownerReferences": [{"uid": "9"}],
    }


@pytest.mark.parametrize(
    "text",
    [
        MINIMAL + "---\n",
        "---\n" + MINIMAL,
        "\ufeff" + MINIMAL,
        json.dumps(yaml.safe_load(MINIMAL), indent="\t"),
    ],
)
def test_forms_of_the_same_manifest(tmp_path, text):
    (tmp_path / "job.yaml").write_text(text)
    assert load(tmp_path / "job.yaml") == loads(MINIMAL)


def test_anchors_and_merges():
    text = MINIMAL.replace("parameterServer: {}", "master: {resources: &r {requests: {cpu: 1}}}, "
                           "trainer: {resources: {<<: *r, limits: {cpu: 2}}}, parameterServer: {resources: *r}")  # fmt: skip
    resources = loads(text).spec.trainer.resources
    assert resources is not None
    assert (resources.requests["cpu"], resources.limits["cpu"]) == (Quantity(1), Quantity(2))


def test_a_job_made_in_python_has_snake_case_and_reads_the_same():
    made = TrainingJob(
        metadata={"name": "flights"},
        spec=Spec(command=["python", "train.py"], trainer=Trainer(min_replicas=2, max_replicas=3),
                  parameter_server=ParameterServer(), env=[EnvVar(name="A", value="b")]),
    )  # fmt: skip
    again = from_mapping(made.to_mapping())
    assert again == made
    assert "minReplicas" in json.dumps(made.to_mapping())


def test_dates_and_the_like_stay_text():
    text = MINIMAL.replace("metadata: {", "metadata: {annotations: {on-day: 2026-01-02}, ")
    assert loads(text).metadata.annotations == {"on-day": "2026-01-02"}


# --- Built from a command line ---


def test_a_job_for_a_script():
    job = for_script("train.py", ["--lr", "0.1"], trainers="2:4", servers=2, epochs=3, seed=7)
    assert job.spec.command == ["python", "train.py", "--lr", "0.1"]
    assert (job.spec.trainer.min_replicas, job.spec.trainer.most, job.servers) == (2, 4, 2)
    assert (job.spec.epochs, job.spec.seed, job.metadata.name) == (3, 7, "train")


@given(st.text(min_size=1).filter(lambda text: "/" not in text and "\0" not in text))
def test_every_script_has_a_good_name(stem):
    assert for_script(f"{stem}.py").metadata.name


@pytest.mark.parametrize(("text", "bounds"), [("3", (3, 3)), ("2:4", (2, 4)), (" 1:1 ", (1, 1))])
def test_trainers_on_a_command_line(text, bounds):
    assert parse_trainers(text) == bounds


@pytest.mark.parametrize("text", ["", "0", "4:2", "a", "1:2:3", "-1", "1:", "٣", "9" * 30])
def test_trainers_that_are_refused(text):
    with pytest.raises(ManifestError, match="--trainers"):
        parse_trainers(text)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"epochs": 0}, "--epochs: 0 is too small"),
        ({"seed": -1}, "--seed: -1 is too small"),
        ({"servers": 0}, "--servers: 0 is too small"),
        ({"name": "No"}, "--name: 'No' must begin"),
        ({"trainers": "99999"}, "--trainers: 99999 is too large"),
    ],
)
def test_a_wrong_option_is_named_as_it_was_typed(options, named):
    with pytest.raises(ManifestError) as error:
        with_options(loads(MINIMAL), **options)
    assert str(error.value).startswith(named)
    assert len(error.value.problems) == 1


def test_options_override_the_manifest_and_keep_everything_else():
    mapping = yaml.safe_load(MINIMAL)
    mapping["spec"] |= {"trainer": {"maxReplicas": 9, "replicas": 3, "resources": {"requests": {"cpu": "1"}}}}
    changed = with_options(from_mapping(mapping), trainers="2:4", name="other").to_mapping()
    assert changed["metadata"] == {"name": "other"}
    assert changed["spec"]["trainer"] == {
        "minReplicas": 2,
        "maxReplicas": 4,
        "resources": {"requests": {"cpu": "1"}},
    }


# --- Durations and quantities ---


@given(st.lists(st.tuples(st.integers(0, 999), st.sampled_from(["ms", "s", "m", "h"])), min_size=1, max_size=4))
def test_a_duration_is_the_sum_of_its_parts(parts):
    scale = {"ms": Fraction(1, 1000), "s": 1, "m": 60, "h": 3600}
    text = "".join(f"{number}{unit}" for number, unit in parts)
    duration = Duration(text)
    assert duration.seconds == float(sum(number * scale[unit] for number, unit in parts))
    assert str(duration) == text


@pytest.mark.parametrize(
    "text", ["", "s", "1", "1d", "-1s", "1 s", "1e3s", "٣s", "1s\n", "9" * 20 + "h", "1" * 99 + "s"]
)
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match=r"duration|100 years"):
        Duration(text)


SCALES = {"n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000), "": 1}
SCALES |= {
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "Ki": 1024,
    "Mi": 1024**2,
    "Gi": 1024**3,
    "e3": 1000,
    "E-2": Fraction(1, 100),
}


@given(st.decimals(0, 10**6, places=4), st.sampled_from(sorted(SCALES)))
def test_a_quantity_is_exact(number, suffix):
    quantity = Quantity(f"{number}{suffix}")
    assert Fraction(quantity.amount) == Fraction(number) * SCALES[suffix]
    assert str(quantity) == f"{number}{suffix}"


def test_quantities_and_durations_compare_by_amount():
    assert Quantity("1Gi") == Quantity("1024Mi")
    assert hash(Quantity("1")) == hash(Quantity("1000m"))
    assert Quantity("9") < Quantity("10")
    assert sorted([Duration("2h"), Duration("90m"), Duration("100s")])[0] == Duration("100s")
    assert Quantity(0.5).amount == Decimal("0.5")
    assert Quantity("1") != Duration("1s")


@pytest.mark.parametrize(
    "text", ["", "1Kii", "1ki", "e3", "1e1000000000", "--1", "1,5", "٣", "1" * 99, True, None, [1]]
)
def test_what_is_no_quantity(text):
    with pytest.raises(ValueError, match="is not a quantity"):
        Quantity(text)


# --- Everything ---

names = st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=10)
quantities = st.sampled_from(["1", "500m", "2Gi", "1e3", "0.5"])
resources = st.fixed_dictionaries({}, optional={"requests": st.dictionaries(names, quantities, max_size=2)})


@st.composite
def manifests(draw):
    low = draw(st.integers(1, 5))
    trainer = {"minReplicas": low, "maxReplicas": low + draw(st.integers(0, 5)), "resources": draw(resources)}
    if draw(st.booleans()):
        trainer["replicas"] = draw(st.integers(low, trainer["maxReplicas"]))
    optional = {
        "image": texts,
        "args": st.lists(texts, max_size=3),
        "env": st.lists(
            st.fixed_dictionaries({"name": names, "value": texts}), max_size=2, unique_by=lambda each: each["name"]
        ),
        "epochs": st.integers(1, 100),
        "seed": st.integers(0, 2**63 - 1),
        "suspend": st.booleans(),
        "checkpoint": st.fixed_dictionaries({}, optional={"interval": st.just("1m30s"), "keep": st.integers(1, 9)}),
        "sharedMemory": quantities,
        "priority": names,
        "output": st.fixed_dictionaries({"path": st.just("model.safetensors")}),
    }
    base = {
        "command": st.lists(texts.filter(str.strip), min_size=1, max_size=3),
        "parameterServer": st.fixed_dictionaries({"replicas": st.integers(1, 9)}),
        "trainer": st.just(trainer),
    }
    return {
        "apiVersion": "shoal.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": draw(names)},
        "spec": draw(st.fixed_dictionaries(base, optional=optional)),
    }


@given(manifests())
def test_nothing_is_lost_on_the_way_in_and_out(mapping):
    job = loads(yaml.safe_dump(mapping))
    assert job.to_mapping() == mapping
    assert loads(json.dumps(job.to_mapping())) == job


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(texts, below, max_size=3),
    max_leaves=8,
)


@given(manifests(), st.data())
def test_any_value_of_a_field_is_accepted_or_refused_by_its_name(mapping, data):
    field = data.draw(st.sampled_from(sorted(Spec.model_fields)))
    alias = Spec.model_fields[field].alias
    mapping["spec"][alias] = data.draw(values)
    problems = []
    try:
        from_mapping(mapping)
    except ManifestError as error:
        problems = error.problems
    assert all(problem.path.startswith("spec.") and problem.text for problem in problems)


@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
def test_no_text_breaks_the_reader(text):
    with pytest.raises(ManifestError):
        loads(text)


def test_what_is_public():
    assert sorted(shoal.api.__all__) == [
        "API_VERSION", "Checkpoint", "Duration", "EnvVar", "KIND", "ManifestError", "Master", "Metadata", "Output",
        "ParameterServer", "Problem", "Quantity", "ResourceRequirements", "RunPolicy", "Spec", "Trainer", "TrainingJob",
        "for_script", "from_mapping", "load", "loads", "parse_trainers", "with_options",
    ]  # fmt: skip
    assert all(hasattr(shoal.api, name) for name in shoal.api.__all__)
