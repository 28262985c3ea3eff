"""How the chart's templates are written."""

from __future__ import annotations

import pytest
import yaml

from deploy.helm.objects import parametrized
from deploy.helm.templating import Block, BuildError, Merged, Range, Text, When, add_variant, flow, write


def when(value):
    return When("$.Values.x", value)


@pytest.mark.parametrize(
    "value",
    ["plain", "a: b", "yes", "1", "", "# x", "ends: ", "[x]", "a, b", "x\ny\n", "ü {", 5, 1.5, True, None, {}, [],
     {"a": ["b, c", {"d": "{"}]}, ["true", {"x y": None}]],
)  # fmt: skip
def test_a_value_is_read_back_as_it_was(value):
    assert yaml.safe_load(f"key: {flow(value)}")["key"] == value
    assert list(yaml.safe_load_all(write([{"key": value, "more": [value]}]))) == [{"key": value, "more": [value]}]


def test_nodes_become_actions():
    node = {
        "name": Text("x-{{ $.Release.Name }}"),
        "replicas": Text("{{ $.Values.n }}", quoted=False),
        "labels": Merged({"a": "b"}, 'include "l" $'),
        "nodes": Block("$.Values.nodes"),
        "args": ["--one", when("--two"), Range("$.Values.all", Text("--n={{ . }}"))],
        "size": When("$.Values.big", 3, 1),
    }
    assert write([node]).splitlines() == [
        "---",
        'name: "x-{{ $.Release.Name }}"',
        "args:",
        "- --one",
        "{{- if $.Values.x }}",
        "- --two",
        "{{- end }}",
        "{{- range $.Values.all }}",
        '- "--n={{ . }}"',
        "{{- end }}",
        "labels:",
        "  a: b",
        '  {{- include "l" $ | nindent 2 }}',
        "{{- with $.Values.nodes }}",
        "nodes:",
        "  {{- toYaml . | nindent 2 }}",
        "{{- end }}",
        "replicas: {{ $.Values.n }}",
        "{{- if $.Values.big }}",
        "size: 3",
        "{{- else }}",
        "size: 1",
        "{{- end }}",
    ]


def test_neighbours_with_one_condition_have_one_action():
    said = write([when({"a": 1}), when({"b": 2}), {"c": 3}])
    assert said.splitlines() == ["{{- if $.Values.x }}", "---", "a: 1", "---", "b: 2", "{{- end }}", "---", "c: 3"]


def test_a_text_with_helms_delimiter_is_refused():
    with pytest.raises(BuildError, match="delimiter of Helm's templates"):
        write([{"description": "write {{ x }}"}])


def test_what_a_component_adds_or_replaces_depends_on_its_condition():
    base = {"a": 1, "list": ["x"], "named": [{"name": "p", "v": 1}, {"name": "q", "v": 2}]}
    variant = {"a": 2, "b": 3, "list": ["x", "y"], "named": [{"name": "q", "v": 5}, {"name": "p", "v": 1}]}
    assert add_variant(base, base, variant, when) == {
        "a": When("$.Values.x", 2, 1),
        "b": when(3),
        "list": ["x", when("y")],
        "named": [{"name": "p", "v": 1}, {"name": "q", "v": When("$.Values.x", 5, 2)}],
    }


def test_two_components_may_add_to_one_list():
    base = {"list": ["x"]}
    first = add_variant(base, base, {"list": ["x", "y"]}, when)
    second = add_variant(first, base, {"list": ["x", "z"]}, lambda value: When("$.Values.z", value))
    assert second == {"list": ["x", when("y"), When("$.Values.z", "z")]}


@pytest.mark.parametrize(
    ("target", "base", "variant", "message"),
    [
        ({}, {"a": 1}, {}, "removes a"),
        ({"b": 1}, {}, {"b": 2}, "two components add b"),
        ({"a": When("y", 2, 1)}, {"a": 1}, {"a": 3}, "cannot express"),
        ({"a": [1, 2]}, {"a": [1, 2]}, {"a": [1]}, "cannot express"),
    ],
)
def test_what_the_chart_cannot_express_is_refused(target, base, variant, message):
    wrap = when if message != "cannot express" or isinstance(base["a"], int) else lambda value: Range("x", value)
    with pytest.raises(BuildError, match=message):
        add_variant(target, base, variant, wrap)


def test_the_namespace_is_that_of_the_release_except_in_labels():
    manifest = {
        "kind": "Service",
        "metadata": {"name": "s", "namespace": "shoal-system", "labels": {"part-of": "shoal-system"}},
        "spec": {"url": "https://x.shoal-system.svc:1", "other": "my-shoal-systems"},
    }
    found = parametrized(manifest)
    assert found["metadata"]["namespace"] == Text("{{ $.Release.Namespace }}")
    assert found["metadata"]["labels"].mapping == {"part-of": "shoal-system"}
    assert found["spec"] == {"url": Text("https://x.{{ $.Release.Namespace }}.svc:1"), "other": "my-shoal-systems"}
