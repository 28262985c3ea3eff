"""The reader of YAML against PyYAML and json: equal values where both accept the text, and the line of each field."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from shoal.api.reading.strict_yaml import YamlError, YamlLimits, read_yaml
from tests.soak import examples

LIMITS = YamlLimits(kind="thing", characters=1 << 20, values=10_000)
KEYS = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=8)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers(-(10**18), 10**18) | TEXTS
VALUES = st.recursive(
    SCALARS,
    lambda below: st.lists(below, max_size=4) | st.dictionaries(KEYS, below, max_size=4),
    max_leaves=20,
)
MAPPINGS = st.dictionaries(KEYS, VALUES, min_size=1, max_size=4)


def read(text):
    """Return the value of a text that has no problems."""
    document = read_yaml(text, LIMITS)
    assert not document.problems
    return document.value


def yaml_text(value) -> str:
    """Return a value in JSON's notation without escaped surrogates, which is YAML's, too."""
    return json.dumps(value, ensure_ascii=False)


@examples(150)
@given(mapping=MAPPINGS, ascii_only=st.booleans(), indent=st.sampled_from([None, 2, "\t"]))
def test_json_is_read_as_json_reads_it(mapping, ascii_only, indent):
    assert read(json.dumps(mapping, ensure_ascii=ascii_only, indent=indent)) == mapping


@examples(150)
@given(mapping=MAPPINGS, flow=st.sampled_from([True, False, None]))
def test_what_pyyaml_writes_is_read_as_it_was(mapping, flow):
    # A value that is used twice is written as an anchor and an alias.
    value = {"first": mapping, "again": [mapping, mapping]}
    assert read(yaml.safe_dump(value, default_flow_style=flow, allow_unicode=True)) == value


@examples(100)
@given(base=MAPPINGS, other=MAPPINGS, own=MAPPINGS)
def test_merge_keys_have_pyyamls_meaning(base, other, own):
    texts = [yaml_text(each) for each in (base, other)]
    text = f"a: &a {texts[0]}\nb: &b {texts[1]}\nc:\n  <<: [*a, *b]\n"
    text += "".join(f"  {yaml_text(key)}: {yaml_text(value)}\n" for key, value in own.items())
    assert read(text)["c"] == {**other, **base, **own}


@examples(100)
@given(mapping=MAPPINGS)
def test_each_field_has_the_line_on_which_it_is_written(mapping):
    document = read_yaml(json.dumps(mapping, indent=1), LIMITS)
    written = json.dumps(mapping, indent=1).split("\n")
    for key in mapping:
        assert written[document.lines[key] - 1].startswith(f" {json.dumps(key)}:")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 12:30", {"a": "12:30"}),
        ("a: 1_000", {"a": "1_000"}),
        ("a: 0x10", {"a": "0x10"}),
        ("a: 0644", {"a": 0o644}),
        ("a: 08", {"a": "08"}),
        ("a: 2026-01-02", {"a": "2026-01-02"}),
        ("a: =", {"a": "="}),
        ("a: <<", {"a": "<<"}),
        ("a: !!str 5", {"a": "5"}),
        ("a: '5'", {"a": "5"}),
        ("a: on", {"a": True}),
        ("a: ~\n---\n", {"a": None}),
        ("&k a: 1\nb: *k", {"a": 1, "b": "a"}),
        ("&k a: {*k : 1}", {"a": {"a": 1}}),
        ("", None),
        ("--- ~\n", None),
    ],
)
def test_values_that_other_readers_resolve_differently(text, value):
    assert read(text) == value


def test_a_field_that_is_merged_has_the_line_of_its_anchor_and_an_own_one_its_own():
    document = read_yaml("a: &a\n  x: 1\n  y: 2\nb:\n  y: 3\n  <<: *a\n", LIMITS)
    assert {path: document.lines[path] for path in ("a.x", "b.x", "b.y")} == {"a.x": 2, "b.x": 2, "b.y": 5}


@pytest.mark.parametrize(
    "text", ["[" * 200_000, "- " * 200_000, "{a: " * 200_000, "? " * 200_000, "&a [" * 50_000, "a: &a [" + "*a," * 99]
)
def test_no_nesting_ends_the_process(text):
    with pytest.raises(YamlError):
        read_yaml(text, LIMITS)
