"""Which configurations are accepted, the messages that refuse the others, and reloading when the file changes.

This is one module because each refusal is a row of one table, and the tables share their texts.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from shoal.api import Duration, ManifestError
from shoal.api.errors import shown
from shoal.autoscaler.config import hot_reload, reader, types
from shoal.autoscaler.config.hot_reload import Change, ConfigFile
from shoal.autoscaler.config.reader import ConfigError, load
from shoal.autoscaler.config.types import (
    AutoscalerConfig,
    LabelWeight,
    Priority,
    policy,
    priority_of,
    weight_of,
)
from shoal.autoscaler.planner.model import Policy
from tests.soak import examples

CLASSES = "servers: top, minimum: middle, surplus: low"
TWO = f"priorities: [{{name: urgent, {CLASSES}}}, {{name: batch, weight: 2, {CLASSES}}}]\n"
BOMB = "a: &a [x, x]\n" + "".join(
    f"{name}: &{name} [*{last}, *{last}]\n" for last, name in zip("abcdefghijklmn", "bcdefghijklmno", strict=True)
)


def problems_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load(text)
    assert str(error.value).splitlines() == [str(each) for each in error.value.problems]
    return str(error.value).splitlines()


# Accepted configurations


@pytest.mark.parametrize(
    "text", ["", "\n", "# nothing\n", "---\n", "---\n...\n---\n", "{}", "null", "\ufeff", "cycle:\npriorities: ~\n"]
)
def test_an_empty_text_is_all_defaults(text):
    config = load(text)
    assert config == AutoscalerConfig()
    assert config.to_mapping() == {}


def test_the_defaults():
    config = load("")
    assert config.model_dump(by_alias=True, mode="json") == {
        "enabled": True,
        "dryRun": False,
        "cycle": "5s",
        "debounce": "100ms",
        "coolDown": "60s",
        "movesPerCycle": 8,
        "headRoom": 0.0,
        "schedulerEvicts": True,
        "nodeSelector": {},
        "stuckAfter": "10s",
        "priorities": [
            {
                "name": "default",
                "weight": 1.0,
                "servers": "shoal-servers",
                "minimum": "shoal-minimum",
                "surplus": "shoal-surplus",
            }
        ],
        "default": None,
        "weights": [],
    }
    assert policy(config) == Policy()


def test_the_default_classes_are_those_that_are_deployed_and_rank_as_they_should():
    path = Path(__file__).resolve().parents[2] / "deploy" / "base" / "priorities.yaml"
    values = {each["metadata"]["name"]: each["value"] for each in yaml.safe_load_all(path.read_text())}
    (only,) = AutoscalerConfig().priorities
    assert 0 > values[only.servers] > values[only.minimum] > values[only.surplus] >= -10


def test_the_planner_gets_its_part():
    config = load("{coolDown: 1m30s, movesPerCycle: 0, schedulerEvicts: false}")
    assert policy(config) == Policy(cool_down_seconds=90.0, moves=0, scheduler_evicts=False)


@pytest.mark.parametrize(
    "text",
    [
        "headRoom: 1e-1",
        "headRoom: 1.0e-1",
        "headRoom: 100.e-3",
        "headRoom: .1",
        '{\n\t"headRoom": 1E-1\n}',
        "headRoom: 0.1",
        '\t{"headRoom":0.1}',
    ],
)
def test_numbers_as_yaml_and_json_write_them(text):
    assert load(text).head_room == 0.1


def test_a_configuration_never_changes():
    with pytest.raises(ValueError, match="frozen"):
        load("").dry_run = True


def test_a_number_is_text_where_text_is_expected():
    text = (
        f"priorities: [{{name: 1e5, {CLASSES}}}, {{name: 09, {CLASSES}}}]\nnodeSelector: {{rev: 7e10, day: 2020-01-01}}"
    )
    config = load(text)
    assert [each.name for each in config.priorities] == ["1e5", "09"]
    assert config.node_selector == {"rev": "7e10", "day": "2020-01-01"}


# Refused configurations and their messages

BAD = [
    # unknown and misspelt
    ("dryrun: true", "line 1: dryrun: unknown field; did you mean dryRun?"),
    ("dry_run: true", "line 1: dry_run: unknown field; did you mean dryRun?"),
    ("cool-down: 5s", "line 1: cool-down: unknown field; did you mean coolDown?"),
    ("movePerCycle:", "line 1: movePerCycle: unknown field; did you mean movesPerCycle?"),
    ("surplus: low", "line 1: surplus: unknown field here; it belongs to each of priorities"),
    ("weight: 1", "line 1: weight: unknown field; did you mean weights?"),
    ("label: a=b", "line 1: label: unknown field here; it belongs to each of weights"),
    (f"priorities:\n- {{name: a, {CLASSES}, cycle: 5s}}", "line 2: priorities[0].cycle: unknown field here; it belongs to the top"),
    (f"priorities: [{{name: a, {CLASSES}, wieght: 2}}]", "line 1: priorities[0].wieght: unknown field; did you mean weight?"),
    ("weights: [{label: a=b, weight: 1, colour: red}]", "line 1: weights[0].colour: unknown field; known here: label, weight"),
    # wrong types
    ("enabled: maybe", "line 1: enabled: 'maybe' is not true or false"),
    ("dryRun: 1", "line 1: dryRun: 1 is not true or false"),
    ("movesPerCycle: 2.0", "line 1: movesPerCycle: 2.0 is not a whole number"),
    ('movesPerCycle: "2"', "line 1: movesPerCycle: '2' is not a whole number; write 2 without quotes"),
    ('headRoom: "1.5"', "line 1: headRoom: '1.5' is not a number; write 1.5 without quotes"),
    ("headRoom: true", "line 1: headRoom: true is not a number"),
    ("headRoom: .nan", "line 1: headRoom: '.nan' is not a number"),
    ("nodeSelector: !!set {a}", "line 1: nodeSelector: !!set is not a plain value; write a text, a number, true, false, null, a list or a mapping"),
    ("dryRun: !on 1", "line 1: dryRun: !on 1 is not a plain value; write a text, a number, true, false, null, a list or a mapping"),
    ("foo: !on 1", "line 1: foo: !on 1 is not a plain value; write a text, a number, true, false, null, a list or a mapping"),
    ("foo: 1", "line 1: foo: unknown field; known here: " + ", ".join(AutoscalerConfig.known())),
    ("movesPerCycle: 1e1", "line 1: movesPerCycle: '1e1' is not a whole number"),
    ("headRoom: 1:30", "line 1: headRoom: '1:30' is not a number"),
    ("headRoom: [1]", "line 1: headRoom: [1] is not a number"),
    ("nodeSelector: {gpu: true}", 'line 1: nodeSelector.gpu: true is not text; write "true" in quotes'),
    ("nodeSelector: {gpu: }", "line 1: nodeSelector.gpu: null is not text"),
    ("nodeSelector: [a]", "line 1: nodeSelector: ['a'] is not a mapping"),
    ("priorities: batch", "line 1: priorities: 'batch' is not a list"),
    ("weights: {label: a=b}", "line 1: weights: {'label': 'a=b'} is not a list; write `- ` before each of its entries"),
    ("weights: [team]", "line 1: weights[0]: 'team' is not a mapping"),
    ("weights: [~]", "line 1: weights[0]: null is not a mapping"),
    ("default: 3", 'line 1: default: 3 is not text; write "3" in quotes'),
    # durations
    ("cycle: 5", 'line 1: cycle: 5 is not a duration such as "30s", "1m30s" or "500ms"; write "5s" for 5 seconds'),
    ("cycle: 999ms", "line 1: cycle: '999ms' is too short; it must be at least 1s"),
    ("cycle: 5m1s", "line 1: cycle: '5m1s' is too long; it must be at most 5m"),
    ("debounce: 9ms", "line 1: debounce: '9ms' is too short; it must be at least 10ms"),
    ("debounce: 6s", "line 1: debounce: '6s' is too long; it must be at most 5s"),
    ("coolDown: -1s", "line 1: coolDown: '-1s' is not a duration such as \"30s\", \"1m30s\" or \"500ms\""),
    ("stuckAfter: 0s", "line 1: stuckAfter: '0s' is too short; it must be at least 100ms"),
    # bounds
    ("movesPerCycle: -1", "line 1: movesPerCycle: -1 is too small; it must be at least 0"),
    ("headRoom: -0.1", "line 1: headRoom: -0.1 is too small; it must be at least 0"),
    ("headRoom: 1e999", "line 1: headRoom: inf is too large; it must be at most 100"),
    ("weights: [{label: a=b, weight: 0}]", "line 1: weights[0].weight: 0 is too small; it must be at least 0.000001"),
    ("weights: [{label: a=b, weight: 1e7}]", "line 1: weights[0].weight: 10000000.0 is too large; it must be at most 1000000"),
    ("weights: [{label: a=b}]", "line 1: weights[0].weight: is missing; add it"),
    # names
    ("priorities: []", "line 1: priorities: must not be empty; leave it out for one priority named default"),
    (f'priorities: [{{name: "", {CLASSES}}}]', "line 1: priorities[0].name: must not be empty; write a name such as batch"),
    (
        f"priorities: [{{name: Batch, {CLASSES}}}]",
        "line 1: priorities[0].name: 'Batch' must have lower-case letters, digits and '-' only, begin and end with a "
        "letter or digit, and be no longer than 63",
    ),
    (
        f"priorities:\n- {{name: a, {CLASSES}}}\n- {{name: b, {CLASSES}}}\n- {{name: a, {CLASSES}}}",
        "line 4: priorities[2].name: 'a' stands above already; keep one",
    ),
    (f"default: all\n{TWO}", "line 1: default: 'all' is the name of no priority; known: urgent, batch; or leave it out"),
    ("default: defualt", "line 1: default: 'defualt' is the name of no priority; did you mean default? known: default; or leave it out"),
    (
        "priorities: [{name: a, servers: x, minimum: y, surplus: ''}]",
        "line 1: priorities[0].surplus: must not be empty; write the name of a PriorityClass",
    ),
    (
        "priorities: [{name: a, servers: x, minimum: y, surplus: a..b}]",
        "line 1: priorities[0].surplus: 'a..b' is no PriorityClass's name; it has lower-case letters, digits, '-' and '.'",
    ),
    (
        "priorities: [{name: a, servers: system-node-critical, minimum: y, surplus: z}]",
        "line 1: priorities[0].servers: 'system-node-critical' is for what the cluster cannot do without; write a class below 0",
    ),
    (
        "priorities: [{name: a, servers: x, minimum: y, surplus: y}]",
        "line 1: priorities[0].surplus: 'y' is the class of minimum too; name three classes, or the scheduler cannot take "
        "the surplus first and the servers last",
    ),
    (
        "priorities: [{name: a, servers: x, minimum: x, surplus: y}]",
        "line 1: priorities[0].minimum: 'x' is the class of servers too; name three classes, or the scheduler cannot take "
        "the surplus first and the servers last",
    ),
    # labels
    ("weights: [{label: team, weight: 2}]", "line 1: weights[0].label: 'team' is not a label; write key=value, such as team=search"),
    (
        "weights: [{label: =a, weight: 2}]",
        "line 1: weights[0].label: '' is no label's key; write one such as team or example.org/team",
    ),
    (
        "weights: [{label: a=b=c, weight: 2}]",
        "line 1: weights[0].label: 'b=c' is no label's value; it has letters, digits, '-', '_' and '.', at most 63, the "
        "first and last a letter or digit",
    ),
    (
        "weights: [{label: a=b, weight: 2}, {label: a=b, weight: 3}]",
        "line 1: weights[1].label: 'a=b' stands above already; keep one",
    ),
    (
        "nodeSelector: {/a: b}",
        "line 1: nodeSelector: '/a' is no label's key; write one such as team or example.org/team",
    ),
    # the text itself
    ("- cycle", "not a mapping; write keys and values such as `cycle: 5s`"),
    ("5s", "not a mapping; write keys and values such as `cycle: 5s`"),
    ("cycle: 5s\n---\ncycle: 6s\n", "line 3: a second document; one AutoscalerConfig is wanted"),
    ("cycle: 5s\ncycle: 6s\n", "line 2: cycle: is written twice; keep one"),
    ('{"cycle": "5s", "cycle": "5s"}', "line 1: cycle: is written twice; keep one"),
    ("weights: [{label: a=b,\n label: c=d, weight: 1}]", "line 2: weights[0].label: is written twice; keep one"),
    ("cycle: 5s\non: 1\n", "line 2: 'on' is no field's name; put it in quotes, or remove it"),
    ("nodeSelector: {1: a}", "line 1: nodeSelector: '1' is no field's name; put it in quotes, or remove it"),
    ("? [a]\n: b\n", "line 1: a key is no field's name; put it in quotes, or remove it"),
    ('"": a', "line 1: '' is no field's name; put it in quotes, or remove it"),
    ('"a\\n": a', "line 1: 'a\\n' is no field's name; put it in quotes, or remove it"),
    ('"a\\ud800": a', "line 1: not YAML: found invalid Unicode character escape code"),
    ("a: \ud800", "has a character that is not Unicode text"),
    ("<<: {cycle: 0s}", "line 1: cycle: '0s' is too short; it must be at least 1s"),
    ("<<: 5", "line 1: << merges mappings only"),
    (
        "priorities:\n- name: !!binary aGk=\n  servers: a\n  minimum: b\n  surplus: c\n",
        "line 2: priorities[0].name: !!binary aGk= is not a plain value; write a text, a number, true, false, null, a list or a mapping",
    ),
    (
        f"movesPerCycle: {'9' * 5000}",
        "line 1: movesPerCycle: 99999999999999999999... is not a finite number of at most 20 digits",
    ),
    ("cycle: !!python/name:os.system ''", "line 1: cycle: !!python/name:os.system is not a plain value; write a text, a number, true, false, null, a list or a mapping"),
    ("cycle: [5s", "line 2: not YAML: did not find expected ',' or ']'"),
    ("cycle: \x00", "not YAML: control characters are not allowed"),
    (BOMB, "has more than 10000 values"),
    ("a: &a [*a]", "line 1: *a stands for nothing that is written above it"),
    ("a: &a 1\nb: &a 2", "line 2: &a is written twice; choose another name"),
    ("a: " + "[" * 5000, "line 1: not YAML: exceeded maximum nesting depth"),
    ("a: " + "[" * 60 + "]" * 60, "line 1: is nested more than 50 levels deep"),
    ("nodeSelector: [" + "a," * 20_000 + "]", "has more than 10000 values"),
    ("#" * 300_000, "is larger than 256 KiB"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), BAD, ids=[words[:60] for _, words in BAD])
def test_each_problem_has_its_path_and_the_fix(text, words):
    assert problems_of(text) == [words]


def test_all_problems_are_reported_at_once_in_the_order_of_the_text():
    text = f"cycle: 0s\nfoo: 1\ncycle: 5s\npriorities:\n- {{name: a, {CLASSES}}}\n- {{name: a, {CLASSES}}}\n"
    text += "weights: [{label: a, weight: 0}]\nheadRoom: -1\n"
    assert [line.split(": ")[:2] for line in problems_of(text)] == [
        ["line 1", "cycle"],
        ["line 2", "foo"],
        ["line 3", "cycle"],
        ["line 6", "priorities[1].name"],
        ["line 7", "weights[0].label"],
        ["line 7", "weights[0].weight"],
        ["line 8", "headRoom"],
    ]


def test_the_error_names_the_source_of_the_text():
    error = ConfigError(load_problems("foo: 1\nbar: 2"), source="/etc/shoal.yaml")
    assert all(line.startswith("/etc/shoal.yaml: line ") for line in str(error).splitlines())


def load_problems(text):
    with pytest.raises(ConfigError) as error:
        load(text)
    return error.value.problems


# A valid configuration is unchanged after it was dumped and loaded

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
CLASS_NAMES = st.sampled_from([f"class-{n}.example" for n in range(9)])
LABEL_PARTS = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,10}[A-Za-z0-9])?", fullmatch=True)
LABEL_KEYS = st.builds(lambda prefix, key: f"{prefix}/{key}" if prefix else key, st.just("") | NAMES, LABEL_PARTS)
LABEL_VALUES = st.just("") | LABEL_PARTS
WEIGHTS = st.floats(1e-6, 1e6)


def durations(low: int, high: int):
    """Generate durations between two numbers of milliseconds, in several notations."""
    return st.integers(low, high).flatmap(
        lambda ms: st.sampled_from([f"{ms}ms", f"{ms // 1000}.{ms % 1000:03}s", f"{ms // 1000}s{ms % 1000}ms"]).map(Duration)
    )  # fmt: skip


def priorities():
    one = st.tuples(NAMES, WEIGHTS, st.lists(CLASS_NAMES, min_size=3, max_size=3, unique=True))
    return st.lists(one, min_size=1, max_size=4, unique_by=lambda each: each[0]).map(
        lambda found: [Priority(name=n, weight=w, servers=c[0], minimum=c[1], surplus=c[2]) for n, w, c in found]
    )


LABEL_WEIGHTS = st.dictionaries(st.builds("{}={}".format, LABEL_KEYS, LABEL_VALUES), WEIGHTS, max_size=4).map(
    lambda found: [LabelWeight(label=label, weight=weight) for label, weight in found.items()]
)


@st.composite
def configs(draw):
    fields = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "enabled": st.booleans(),
                "dry_run": st.booleans(),
                "cycle": durations(1000, 300_000),
                "debounce": durations(10, 5000),
                "cool_down": durations(0, 10**9),
                "moves_per_cycle": st.integers(0, 2**63 - 1),
                "head_room": st.floats(0, 100),
                "scheduler_evicts": st.booleans(),
                "node_selector": st.dictionaries(LABEL_KEYS, LABEL_VALUES, max_size=4),
                "stuck_after": durations(100, 10**7),
                "priorities": priorities(),
                "weights": LABEL_WEIGHTS,
            },
        )
    )
    known = [each.name for each in fields.get("priorities", AutoscalerConfig().priorities)]
    return AutoscalerConfig(**fields, **draw(st.fixed_dictionaries({}, optional={"default": st.sampled_from(known)})))


@examples(60)
@given(config=configs())
def test_what_is_dumped_is_loaded_again(config):
    mapping = config.to_mapping()
    everything = config.model_dump(by_alias=True, mode="json")
    for text in (
        yaml.safe_dump(mapping),
        yaml.safe_dump(everything),
        json.dumps(mapping),
        json.dumps(everything, indent="\t"),
    ):
        assert load(text) == config
    assert load(yaml.safe_dump(mapping)).to_mapping() == mapping
    assert policy(config).cool_down_seconds == config.cool_down.seconds
    assert priority_of(config, None).name == (config.default or config.priorities[-1].name)
    assert all(priority_of(config, each.name) is each for each in config.priorities)


KNOWN = {
    "": {field.alias for field in AutoscalerConfig.model_fields.values()},
    "priorities[0].": {field.alias for field in Priority.model_fields.values()},
    "weights[0].": {field.alias for field in LabelWeight.model_fields.values()},
}
VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.text(max_size=5)
    | st.lists(st.none(), max_size=2)
    | st.just({"a": 1})
)


@st.composite
def misspelt(draw, known):
    """Generate any text, or a known key with one letter changed, dropped or doubled."""
    if draw(st.booleans()):
        return draw(st.text(min_size=1, max_size=20))
    key = draw(st.sampled_from(sorted(known)))
    at = draw(st.integers(0, len(key) - 1))
    return key[:at] + draw(st.sampled_from(["", key[at] * 2, "_", key[at].swapcase()])) + key[at + 1 :]


@examples(150)
@given(data=st.data(), path=st.sampled_from(sorted(KNOWN)))
def test_any_unknown_key_is_refused_by_its_name(data, path):
    key = data.draw(misspelt(KNOWN[path]).filter(lambda key: key and key not in KNOWN[path]))
    mapping = {
        "priorities": [{"name": "a", "servers": "x", "minimum": "y", "surplus": "z"}],
        "weights": [{"label": "a=b", "weight": 1}],
    }
    part = mapping[path[:-4]][0] if path else mapping
    part[key] = data.draw(VALUES)
    problems = load_problems(json.dumps(mapping))
    if key.isprintable():
        assert [problem.path for problem in problems] == [path + key]
        assert problems[0].text.startswith("unknown field")
    else:
        assert problems[0].text.startswith(f"{shown(key)} is no field's name")


@examples(200)
@given(text=st.text(max_size=60) | st.text(alphabet="{}[]:,-&*!? \n\t\"'#|>%@09a.~<=", max_size=40))
def test_no_text_does_more_than_be_refused(text):
    try:
        config = load(text)
    except ConfigError as error:
        config = error.problems
    assert config


@pytest.mark.timeout(60)
def test_long_numbers_end():
    """Long numbers are parsed in linear time; a quadratic parser would take minutes for each of them."""
    for digits in (
        "9" * 200_000,
        "1" + ":59" * 80_000,
        "1" + "_1" * 100_000,
        "0x" + "f" * 200_000,
        "1" * 200_000 + ".5",
    ):
        problems_of(f"movesPerCycle: {digits}")


# Priorities and weights


def test_a_job_without_a_priority_has_the_last_or_the_one_that_is_named():
    assert priority_of(load(TWO), None).name == "batch"
    assert priority_of(load(TWO + "default: urgent"), None).name == "urgent"
    assert priority_of(load(TWO), "urgent").name == "urgent"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gold", "spec.priority: 'gold' is no priority of this cluster; known: urgent, batch; or leave it out"),
        ("bacth", "spec.priority: 'bacth' is no priority of this cluster; did you mean batch? known: urgent, batch; or leave it out"),
        ("", "spec.priority: '' is no priority of this cluster; known: urgent, batch; or leave it out"),
    ],
)  # fmt: skip
def test_an_unknown_priority_is_an_error_of_the_manifest(name, words):
    with pytest.raises(ManifestError) as error:
        priority_of(load(TWO), name)
    assert str(error.value) == words


def test_the_first_label_that_a_job_has_gives_its_weight_and_without_one_its_priority():
    config = load(
        TWO + "weights: [{label: team=a, weight: 3}, {label: x/team=, weight: 4}, {label: who=b, weight: 0.5}]"
    )
    urgent, batch = config.priorities
    assert weight_of(config, urgent, labels={}) == 1
    assert weight_of(config, batch, labels={"team": "b"}) == 2
    assert weight_of(config, batch, labels={"who": "b", "team": "a"}) == 3
    assert weight_of(config, urgent, labels={"x/team": ""}) == 4
    assert weight_of(config, urgent, labels={"who": "b"}) == 0.5


# The file


@pytest.fixture
def reads(monkeypatch):
    """Record every text that is read."""
    texts = []
    monkeypatch.setattr(hot_reload, "load", lambda text: texts.append(text) or load(text))
    return texts


def write(path, text):
    """Write atomically: a new file replaces the existing one."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def test_the_file_is_read_once_until_it_changes(tmp_path, reads):
    path = tmp_path / "autoscaler.yaml"
    write(path, "cycle: 7s")
    file = ConfigFile(str(path))
    assert file.config == AutoscalerConfig()
    assert file.poll() == Change(config=load("cycle: 7s"))
    assert [file.poll() for _ in range(5)] == [None] * 5
    assert reads == ["cycle: 7s"]
    write(path, "cycle: 8s")
    assert file.poll() == Change(config=load("cycle: 8s"))
    assert (file.config.cycle, file.problem) == (Duration("8s"), "")
    assert file.poll() is None


def test_the_same_attributes_are_the_same_file(tmp_path, reads):
    path = tmp_path / "autoscaler.yaml"
    path.write_text("cycle: 7s")
    file = ConfigFile(path)
    file.poll()
    before = path.stat()
    path.write_text("cycle: 8s")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.poll() is None
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert file.poll().config.cycle == Duration("8s")
    assert len(reads) == 2


def test_the_first_read_is_reported_even_without_settings(tmp_path):
    path = tmp_path / "autoscaler.yaml"
    path.write_text("{}")
    file = ConfigFile(path)
    assert file.poll() == Change(config=AutoscalerConfig())
    assert file.poll() is None


def test_another_text_of_the_same_configuration_is_no_change(tmp_path):
    path = tmp_path / "autoscaler.yaml"
    write(path, "cycle: 60s")
    file = ConfigFile(path)
    file.poll()
    write(path, "# as before\ncycle: 1m")
    assert file.poll() is None


def test_a_bad_configuration_is_reported_once_and_changes_nothing(tmp_path, reads):
    path = tmp_path / "autoscaler.yaml"
    write(path, "cycle: 7s")
    file = ConfigFile(path)
    good = file.poll().config
    write(path, "cycle: 7\nfoo: 1")
    change = file.poll()
    assert change.config is None
    assert change.problem == file.problem
    assert [line.split(": ")[:3] for line in file.problem.splitlines()] == [
        [str(path), "line 1", "cycle"],
        [str(path), "line 2", "foo"],
    ]
    assert file.poll() is None
    write(path, "cycle: 7\nfoo: 1 # the same")
    assert file.poll() is None
    write(path, "bar: 1")
    assert "line 1: bar: unknown field" in file.poll().problem
    assert file.config is good
    assert len(reads) == 4
    write(path, "cycle: 7s")
    assert file.poll() == Change(config=good), "that it is well again is news, even with what was in force"
    assert file.problem == ""


def test_what_is_bad_from_the_start_leaves_the_defaults(tmp_path):
    path = tmp_path / "autoscaler.yaml"
    path.write_bytes(b"cycle: \xff")
    file = ConfigFile(path)
    assert file.poll() == Change(problem=f"{path}: is not text in UTF-8")
    assert file.poll() is None
    assert file.config == AutoscalerConfig()
    assert not file.taken
    write(path, "# nothing")
    assert file.poll() == Change(config=AutoscalerConfig())
    assert file.taken


def mount(folder, name, text):
    """Update a volume as the kubelet does: create a folder, point the link ..data to it, delete the old folder."""
    data = folder / "..data"
    old = data.resolve() if data.is_symlink() else None
    (folder / name).mkdir(parents=True)
    if text is not None:
        (folder / name / "autoscaler.yaml").write_text(text)
    (folder / "..tmp").symlink_to(name)
    (folder / "..tmp").replace(data)
    if old is not None:
        for each in old.iterdir():
            each.unlink()
        old.rmdir()


def test_a_mounted_configmap_is_followed_through_its_links(tmp_path, reads):
    path = tmp_path / "autoscaler.yaml"
    mount(tmp_path, "..1", "cycle: 7s")
    path.symlink_to("..data/autoscaler.yaml")
    file = ConfigFile(path)
    assert file.poll().config.cycle == Duration("7s")
    mount(tmp_path, "..2", "cycle: 8s")
    assert file.poll().config.cycle == Duration("8s")
    assert file.poll() is None
    mount(tmp_path, "..3", "cycle: 8")
    assert "line 1: cycle" in file.poll().problem
    mount(tmp_path, "..4", None)
    assert [file.poll(), file.poll()] == [None, None]
    mount(tmp_path, "..5", "cycle: 9s")
    assert file.poll() == Change(config=load("cycle: 9s"))
    assert len(reads) == 4


def test_a_file_that_is_absent_for_one_poll_is_not_reported(tmp_path, reads):
    path, away = tmp_path / "autoscaler.yaml", tmp_path / "away"
    path.write_text("dryRun: true")
    file = ConfigFile(path)
    file.poll()
    for _ in range(2):
        path.rename(away)
        assert [file.poll(), file.poll()] == [None, None]
        away.rename(path)
        assert file.poll() is None
    assert len(reads) == 1


def test_a_missing_file_is_reported_once_and_its_return_too(tmp_path):
    path, away = tmp_path / "autoscaler.yaml", tmp_path / "away"
    path.write_text("dryRun: true")
    file = ConfigFile(path)
    config = file.poll().config
    path.rename(away)
    missing = Change(problem=f"{path}: there is no such file")
    assert [file.poll() for _ in range(5)] == [None, None, missing, None, None]
    assert file.config is config
    away.rename(path)
    assert file.poll() == Change(config=config)
    assert file.problem == ""


def test_an_emptied_file_is_refused_late_and_the_former_one_stays_in_force(tmp_path):
    path = tmp_path / "autoscaler.yaml"
    path.write_text("dryRun: true")
    file = ConfigFile(path)
    good = file.poll().config
    empty = Change(problem=f"{path}: is empty; write {{}} for the defaults")
    for text in ("", " \n"):
        path.write_text(text)
        assert [file.poll() for _ in range(4)] == [None, None, empty, None]
        assert file.config == good
        path.write_text("dryRun: true")
        assert file.poll() == Change(config=good)
    path.write_text("\n")
    assert file.poll() is None
    path.write_text("dryRun: false\ncycle: 7s")
    assert file.poll() == Change(config=load("dryRun: false\ncycle: 7s"))
    path.write_text("")
    assert not ConfigFile(path).taken
    assert ConfigFile(path).poll() == empty


def test_a_file_missing_at_the_start_is_reported_at_once(tmp_path):
    path = tmp_path / "autoscaler.yaml"
    file = ConfigFile(path)
    assert file.poll().problem == f"{path}: there is no such file"
    assert file.poll() is None
    path.write_text("{}")
    assert file.poll() == Change(config=AutoscalerConfig())


def test_an_unreadable_path_blocks_nothing(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        assert ConfigFile(path).poll().problem.startswith(f"{path}: is not a file; name the file itself")
    link = tmp_path / "link"
    link.symlink_to("link")
    assert ConfigFile(link).poll().problem.startswith(f"{link}: cannot be read: ")
    (tmp_path / "large").write_text("#" * 300_000)
    assert ConfigFile(tmp_path / "large").poll().problem == f"{tmp_path / 'large'}: is larger than 256 KiB"

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "autoscaler.yaml"
    path.write_text("cycle: 7s")
    file = ConfigFile(path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        assert [file.poll(), file.poll()] == [Change(problem=f"{path}: cannot be read: Permission denied"), None]
    assert file.poll() == Change(config=load("cycle: 7s")), "what was not read is tried again"


def test_all_that_is_public_exists():
    for module in (types, reader, hot_reload):
        assert all(hasattr(module, name) for name in module.__all__)
