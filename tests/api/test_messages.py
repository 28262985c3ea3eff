"""Each problem of a manifest is reported once, with the line, the field and the fix, in the exact text given here."""

import pytest

from shoal.api import ManifestError, load, loads

HEAD = "apiVersion: shoal.dev/v1alpha1\nkind: TrainingJob\nmetadata: {name: flights}\n"
GOOD = HEAD + "spec: {command: [python, train.py], parameterServer: {}}\n"


def spec(**parts: str) -> str:
    """Return a manifest whose spec has these parts (YAML), one per line, from line 5 on."""
    parts = {"command": "[python, train.py]", "parameterServer": "{}"} | parts
    return HEAD + "spec:\n" + "".join(f"  {name}: {value}\n" for name, value in parts.items())


def problems_of(text: str) -> list[str]:
    with pytest.raises(ManifestError) as error:
        loads(text, source="job.yaml")
    lines = str(error.value).splitlines()
    assert all(line.startswith("job.yaml: ") for line in lines)
    return [line.removeprefix("job.yaml: ") for line in lines]


FIELDS = [
    # unknown and misspelt
    (spec(trainer="{minReplica: 2}"), "line 7: spec.trainer.minReplica: unknown field; did you mean minReplicas?"),
    (spec(trainer="{min_replicas: 2}"), "line 7: spec.trainer.min_replicas: unknown field; did you mean minReplicas?"),
    (spec(backoffLimit="3"), "line 7: spec.backoffLimit: unknown field here; it belongs to spec.runPolicy"),
    (
        spec(checkpoint="{colour: red}"),
        "line 7: spec.checkpoint.colour: unknown field; known here: interval, keep",
    ),
    (
        GOOD.replace("{name: flights}", "{name: flights, lables: {}}"),
        "line 3: metadata.lables: unknown field; did you mean labels?",
    ),
    # wrong types
    (spec(epochs="3.0"), "line 7: spec.epochs: 3.0 is not a whole number"),
    (spec(epochs='"3"'), "line 7: spec.epochs: '3' is not a whole number; write 3 without quotes"),
    (spec(epochs="true"), "line 7: spec.epochs: true is not a whole number"),
    (spec(suspend='"yes"'), "line 7: spec.suspend: 'yes' is not true or false"),
    (
        spec(command="python train.py"),
        "line 5: spec.command: 'python train.py' is not a list; write [python, train.py]",
    ),
    (spec(args="[--lr, 0.1]"), 'line 7: spec.args[1]: 0.1 is not text; write "0.1" in quotes'),
    (spec(env="[{name: DEBUG, value: 1}]"), 'line 7: spec.env[0].value: 1 is not text; write "1" in quotes'),
    (spec(env="[{value: x}]"), "line 7: spec.env[0].name: is missing; add it"),
    (
        spec(env="[{name: A=B}]"),
        "line 7: spec.env[0].name: 'A=B' cannot name a variable; write letters, digits and '_'",
    ),
    (
        spec(env="[{name: A, value: x, valueFrom: {}}]"),
        "line 7: spec.env[0].valueFrom: value is set too; keep one of them",
    ),
    (spec(trainer="3"), "line 7: spec.trainer: 3 is not a mapping"),
    # out of bounds
    (spec(epochs="0"), "line 7: spec.epochs: 0 is too small; it must be at least 1"),
    (
        spec(seed="9223372036854775808"),
        "line 7: spec.seed: 9223372036854775808 is too large; it must be at most 9223372036854775807",
    ),
    (
        spec(parameterServer="{replicas: 100000}"),
        "line 6: spec.parameterServer.replicas: 100000 is too large; it must be at most 10000",
    ),
    (spec(command="[]"), "line 5: spec.command: must not be empty"),
    (spec(command='[""]'), "line 5: spec.command: its first word is empty; name the program, such as python"),
    (spec(output="{path: ''}"), "line 7: spec.output.path: must not be empty"),
    # durations and quantities
    (
        spec(checkpoint="{interval: 30}"),
        'line 7: spec.checkpoint.interval: 30 is not a duration such as "30s", "1m30s" or "500ms"; '
        'write "30s" for 30 seconds',
    ),
    (
        spec(checkpoint="{interval: true}"),
        'line 7: spec.checkpoint.interval: true is not a duration such as "30s", "1m30s" or "500ms"',
    ),
    (spec(checkpoint="{interval: 0s}"), "line 7: spec.checkpoint.interval: '0s' must be longer than zero"),
    (
        spec(sharedMemory="1 GB"),
        'line 7: spec.sharedMemory: \'1 GB\' is not a quantity such as "1", "500m" or "1Gi"',
    ),
    (
        spec(trainer="{resources: {requests: {cpu: -1}}}"),
        "line 7: spec.trainer.resources.requests.cpu: '-1' is negative",
    ),
    (spec(sharedMemory="1e99"), "line 7: spec.sharedMemory: '1e99' is too large; the most is 2^63 - 1"),
    # between fields
    (
        spec(trainer="{minReplicas: 4, maxReplicas: 2}"),
        "line 7: spec.trainer.minReplicas: 4 is more than maxReplicas 2; lower minReplicas or raise maxReplicas",
    ),
    (
        spec(trainer="{minReplicas: 2, maxReplicas: 4, replicas: 7}"),
        "line 7: spec.trainer.replicas: 7 is not between minReplicas 2 and maxReplicas 4; "
        "change it or the bounds, or leave it out",
    ),
    (
        spec(trainer="{replicas: 0}"),
        "line 7: spec.trainer.replicas: 0 trainers cannot train; to pause the job write `suspend: true`",
    ),
    (
        HEAD + "spec: {command: [python]}\n",
        "line 4: spec.parameterServer: strategy ParameterServer needs this section; "
        "add `parameterServer: {replicas: 1}`",
    ),
    (spec(strategy="AllReduce"), "line 7: spec.strategy: 'AllReduce' is not known; write 'ParameterServer'"),
    (
        spec(image="a:1", trainer="{template: {spec: {containers: [{name: log}, {name: trainer, image: b:1}]}}}"),
        "line 8: spec.trainer.template.spec.containers[1].image: spec.image sets it too; set it in one place",
    ),
    (
        spec(trainer="{template: {spec: {containers: {}}}}"),
        "line 7: spec.trainer.template: its spec.containers is not a list of mappings; write a PodTemplateSpec",
    ),
    # names
    (
        GOOD.replace("flights", "Flights_1"),
        "line 3: metadata.name: 'Flights_1' must begin with a letter and have lower-case letters, digits and '-' only",
    ),
    (
        GOOD.replace("flights", "f" * 40),
        f"line 3: metadata.name: '{'f' * 40}' has 40 characters; at most 39 leave room for pod names",
    ),
    (
        GOOD.replace("{name: flights}", "{name: flights, namespace: -x}"),
        "line 3: metadata.namespace: '-x' must have lower-case letters, digits and '-' only, and at most 63",
    ),
    (GOOD.replace("{name: flights}", "{}"), "line 3: metadata.name: is missing; add it"),
    # apiVersion, kind and metadata
    (GOOD.replace("v1alpha1", "v1"), "line 1: apiVersion: is 'shoal.dev/v1'; write apiVersion: shoal.dev/v1alpha1"),
    ("kind: TrainingJob", "apiVersion: is missing; write apiVersion: shoal.dev/v1alpha1"),
    ("- a", "not a mapping; a TrainingJob has apiVersion, kind, metadata and spec"),
]

FORMS = [
    ("", "the file is empty; it needs a TrainingJob"),
    ("---\n", "the file is empty; it needs a TrainingJob"),
    (GOOD + "---\n" + GOOD, "line 6: a second document; one TrainingJob is wanted"),
    (GOOD + "metadata: {name: other}\n", "line 5: metadata: is written twice; keep one"),
    (GOOD + "1: x\n", "line 5: '1' is no field's name; put it in quotes, or remove it"),
    (spec(env="[{name: A, on: x}]"), "line 7: spec.env[0]: 'on' is no field's name; put it in quotes, or remove it"),
    ("a: [", "line 2: not YAML: did not find expected node content"),
    (spec(env="[{name: A, value: !!python/object:os.system {}}]"), "line 7: spec.env[0].value: !!python/object:os.system is not a plain value; write a text, a number, true, false, null, a list or a mapping"),
    ("a: &x {b: *x}", "line 1: *x stands for nothing that is written above it"),
    ("[" * 5000, "line 1: not YAML: exceeded maximum nesting depth"),
    ("- " * 5000, "line 1: is nested more than 50 levels deep"),
    ("a: " + "1" * 5000, None),
    ('{"a": "\\ud800"}', "line 1: not YAML: found invalid Unicode character escape code"),
    (spec(epochs=".nan"), "line 7: spec.epochs: '.nan' is not a whole number"),
    (spec(epochs="!!float .nan"), "line 7: spec.epochs: .nan is not a finite number of at most 20 digits"),
    (spec(image="!!binary aGk="), "line 7: spec.image: !!binary aGk= is not a plain value; write a text, a number, true, false, null, a list or a mapping"),
    ("a: \x00", "not YAML: control characters are not allowed"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), FIELDS, ids=lambda value: value.split(": ", 1)[-1][:60])
def test_a_wrong_field_is_named_with_the_fix(text, message):
    assert problems_of(text) == [message]


@pytest.mark.parametrize(("text", "message"), FORMS, ids=range(len(FORMS)))
def test_what_is_no_manifest_is_refused(text, message):
    found = problems_of(text)
    assert message is None or found == [message]


def test_aliases_that_multiply_are_refused_at_once():
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    text += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    assert problems_of(text) == ["has more than 50000 values"]


def test_all_problems_are_reported_in_the_manifest_s_order():
    text = spec(command="[python, 1]", trainer="{minReplica: 1}", epochs="x", checkpoint="{keep: 0}")
    assert [line.split(": ")[1] for line in problems_of(text)] == [
        "spec.command[1]",
        "spec.trainer.minReplica",
        "spec.epochs",
        "spec.checkpoint.keep",
    ]


def test_all_broken_rules_between_fields_are_reported_at_once():
    template = "{template: {spec: {containers: [{name: trainer, image: b, command: [x]}]}}}"
    found = problems_of(spec(image="a", trainer=template))
    assert [line.split(": ")[1].rpartition(".")[2] for line in found] == ["image", "command"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "is not text in UTF-8"),
        (b"#" * (1 << 20) + b"#", "is larger than 1 MiB"),
        (None, "there is no such file"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path / "job.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ManifestError) as error:
        load(path)
    assert str(error.value) == f"{path}: {message}"


def test_a_folder_is_no_manifest(tmp_path):
    with pytest.raises(ManifestError, match="cannot be read: Is a directory"):
        load(tmp_path)
