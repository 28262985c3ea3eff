"""Which nodes a pod may be scheduled onto, node by node and for whole clusters at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.autoscaler.snapshot.constraints import (
    Groups,
    ShapeBook,
    constraints_of,
    eligible,
    limit_shapes,
    node_info,
    usable,
)
from shoal.autoscaler.snapshot.resources import Catalogue
from tests.soak import examples


def node(name="n", *, labels=None, taints=()):
    return {"metadata": {"name": name, "labels": labels or {}}, "spec": {"taints": list(taints)}}


def pod(*, tolerations=(), selector=None, terms=None):
    spec = {"tolerations": list(tolerations), "nodeSelector": selector}
    if terms is not None:
        required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
        spec["affinity"] = {"nodeAffinity": required}
    return {"spec": spec}


def may(one, other):
    return eligible(constraints_of(one), node_info(other))


def taint(key="k", value="v", effect="NoSchedule"):
    return {"key": key, "value": value, "effect": effect}


@pytest.mark.parametrize(
    ("toleration", "tolerated"),
    [
        ({"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule"}, True),
        ({"key": "k", "value": "v"}, True),
        ({"key": "k", "operator": "Exists"}, True),
        ({"operator": "Exists"}, True),
        ({"operator": "Exists", "effect": "NoSchedule"}, True),
        ({"operator": "Exists", "effect": "NoExecute"}, False),
        ({"key": "k", "value": "w"}, False),
        ({"key": "l", "operator": "Exists"}, False),
        ({"key": "k"}, False),
        ({"key": "k", "operator": "Like", "value": "v"}, False),
        ({"value": "v"}, True),
        ({"key": "k", "operator": "Exists", "effect": "PreferNoSchedule"}, False),
        ({"key": "k", "operator": "Exists", "tolerationSeconds": 5}, True),
    ],
)
def test_tolerations(toleration, tolerated):
    assert may(pod(tolerations=[toleration]), node(taints=[taint()])) is tolerated


def test_every_taint_that_matters_must_be_tolerated():
    one = {"key": "k", "operator": "Exists"}
    assert not may(pod(tolerations=[one]), node(taints=[taint(), taint("l")]))
    assert may(pod(tolerations=[one, {"key": "l", "value": "v"}]), node(taints=[taint(), taint("l")]))
    assert not may(pod(), node(taints=[taint(effect="NoExecute")]))
    assert may(pod(), node(taints=[taint(effect="PreferNoSchedule")]))
    assert not may(pod(), node(taints=[{"key": "k", "effect": "NoSchedule"}]))
    assert may(pod(tolerations=[{"key": "k"}]), node(taints=[{"key": "k", "effect": "NoSchedule"}]))


def asks(operator, *values, key="a"):
    return {"key": key, "operator": operator, "values": list(values)}


@pytest.mark.parametrize(
    ("requirement", "matching"),
    [
        (asks("In", "1", "2"), "1"),
        (asks("In", "7"), ""),
        (asks("In", ""), "e"),
        (asks("NotIn", "1"), "9exn"),
        (asks("Exists"), "19ex"),
        (asks("DoesNotExist"), "n"),
        (asks("Gt", "1"), "9"),
        (asks("Lt", "9"), "1"),
        (asks("Lt", "10"), "19"),
        (asks("Gt", "0"), "19"),
        (asks("Gt", "x"), ""),
        (asks("Gt", "1", "2"), ""),
        (asks("Gt", "-1"), ""),
        (asks("Gt"), ""),
        (asks("In"), ""),
        (asks("NotIn"), ""),
        (asks("NotIn", "not legal"), ""),
        (asks("NotIn", "x" * 64), ""),
        (asks("NotIn", "x" * 63), "19exn"),
        (asks("Exists", "1"), ""),
        (asks("Is", "1"), ""),
        (asks("DoesNotExist", key="a b"), ""),
        (asks("DoesNotExist", key="example.com/a"), "19exn"),
        (asks("DoesNotExist", key="Example.com/a"), ""),
        (asks("DoesNotExist", key="a/b/c"), ""),
        (asks("DoesNotExist", key="x" * 253 + "/a"), "19exn"),
        (asks("DoesNotExist", key="x" * 254 + "/a"), ""),
        (asks("DoesNotExist", key=""), ""),
        ({"key": "a", "operator": "In"}, ""),
    ],
)
def test_operators(requirement, matching):
    """Each operator matches the expected nodes, whose label a is 1, 9, empty, a text, or missing."""
    nodes = {each: node(labels={"a": each}) for each in "19x"} | {"e": node(labels={"a": ""}), "n": node()}
    wanted = pod(terms=[{"matchExpressions": [requirement]}])
    assert {each for each, there in nodes.items() if may(wanted, there)} == set(matching)


@pytest.mark.parametrize("number", ["", "x", "1.5", "1_0", " 1", "99999999999999999999"])
def test_a_label_that_is_no_number_is_neither_more_nor_less(number):
    for operator in ("Gt", "Lt"):
        assert not may(pod(terms=[{"matchExpressions": [asks(operator, "5")]}]), node(labels={"a": number}))


def test_terms_are_alternatives_and_all_requirements_of_one_must_hold():
    one, two = {"matchExpressions": [asks("In", "1"), asks("Exists", key="b")]}, {"matchExpressions": [asks("In", "2")]}
    assert may(pod(terms=[one, two]), node(labels={"a": "2"}))
    assert not may(pod(terms=[one, two]), node(labels={"a": "1"}))
    assert may(pod(terms=[one, two]), node(labels={"a": "1", "b": ""}))
    assert not may(pod(terms=[one, two], selector={"c": "1"}), node(labels={"a": "2"}))
    assert may(pod(terms=[one, two], selector={"c": "1"}), node(labels={"a": "2", "c": "1"}))


def test_terms_that_match_nothing():
    assert not may(pod(terms=[]), node())
    assert not may(pod(terms=[{}]), node())
    assert not may(pod(terms=[{"matchExpressions": []}]), node())
    assert may(pod(terms=[{}, {"matchExpressions": [asks("DoesNotExist")]}]), node())
    wrong = {"matchExpressions": [asks("Exists"), asks("Is")]}
    assert not may(pod(terms=[wrong]), node(labels={"a": "1"}))
    assert may(pod(terms=[wrong, {"matchExpressions": [asks("Exists")]}]), node(labels={"a": "1"}))
    assert may({"spec": {"affinity": {"nodeAffinity": {}}}}, node())


@pytest.mark.parametrize(
    ("field", "matching"),
    [
        (asks("In", "x", key="metadata.name"), "x"),
        (asks("NotIn", "x", key="metadata.name"), "y"),
        (asks("In", "x", "y", key="metadata.name"), ""),
        (asks("In", "x", "x", key="metadata.name"), ""),
        (asks("Exists", key="metadata.name"), ""),
        (asks("In", "x", key="metadata.other"), ""),
        (asks("NotIn", "x", key="metadata.other"), "xy"),
        (asks("In", "", key="metadata.other"), "xy"),
    ],
)
def test_fields(field, matching):
    assert {each for each in "xy" if may(pod(terms=[{"matchFields": [field]}]), node(each))} == set(matching)
    labels = {"matchFields": [field], "matchExpressions": [asks("Exists")]}
    assert not any(may(pod(terms=[labels]), node(each)) for each in "xy")


def test_what_means_the_same_is_equal():
    tolerations = [
        {"key": "a", "operator": "Exists"},
        {"key": "b", "operator": "Equal", "tolerationSeconds": 3},
        {"key": "b"},
    ]
    one = pod(
        tolerations=tolerations, selector={"a": "1", "b": "2"}, terms=[{"matchExpressions": [asks("In", "1", "2")]}]
    )
    two = pod(tolerations=tolerations[1::-1], selector={"b": "2", "a": "1"},
              terms=[{}, {"matchExpressions": [asks("In", "2", "1", "2")]}])  # fmt: skip
    assert constraints_of(one) == constraints_of(two)


@pytest.mark.parametrize(
    "spec",
    [{}, None, {"tolerations": "x", "nodeSelector": 3, "affinity": []}, {"tolerations": [3, None, {}]}, {"nodeSelector": {"a": None}},
     {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [3, {"matchFields": [{}]}]}}}}],
)  # fmt: skip
def test_no_manifest_makes_it_fail(spec):
    may({"spec": spec}, node())
    may(pod(), {"metadata": spec, "spec": {"taints": [3, {"effect": "NoSchedule"}]}})


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        ({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}, True),
        ({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}, False),
        ({"status": {"conditions": [{"type": "Ready", "status": "True"}]}, "spec": {"unschedulable": True}}, False),
        (
            {"status": {"conditions": [{"type": "Ready", "status": "True"}]}, "metadata": {"deletionTimestamp": "t"}},
            False,
        ),
        ({"status": {}}, False),
        ({}, False),
    ],
)
def test_a_usable_node(manifest, expected):
    assert usable(manifest) is expected


labels = st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from(["", "1", "2", "10", "x"]), max_size=2)
taints = st.lists(
    st.builds(taint, st.sampled_from("kl"), st.sampled_from("vw"), st.sampled_from(["NoSchedule", "PreferNoSchedule"])),
    max_size=2,
)
tolerations = st.fixed_dictionaries({}, optional={
    "key": st.sampled_from("kl"), "operator": st.sampled_from(["Exists", "Equal"]), "value": st.sampled_from("vw"),
    "effect": st.sampled_from(["", "NoSchedule", "NoExecute"]),
})  # fmt: skip
expressions = st.builds(lambda operator, values, key: asks(operator, *values, key=key),
    st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]),
    st.lists(st.sampled_from(["", "1", "2", "10"]), max_size=2), st.sampled_from("ab"))  # fmt: skip
fields = st.builds(
    lambda operator, name: asks(operator, name, key="metadata.name"),
    st.sampled_from(["In", "NotIn"]),
    st.sampled_from("0123"),
)
terms = st.fixed_dictionaries(
    {}, optional={"matchExpressions": st.lists(expressions, max_size=2), "matchFields": st.lists(fields, max_size=1)}
)
pods = st.builds(lambda tolerations, selector, terms: pod(tolerations=tolerations, selector=selector, terms=terms),
    st.lists(tolerations, max_size=2), labels, st.none() | st.lists(terms, max_size=2))  # fmt: skip
steps = st.one_of(
    st.tuples(st.just("set"), st.integers(0, 5), labels, taints),
    st.tuples(st.just("remove"), st.integers(0, 5)),
    st.tuples(st.just("shapes"), st.lists(pods, max_size=4)),
)


@examples(100)
@given(st.lists(steps, max_size=12))
def test_groups_agree_with_the_evaluation_of_each_node(steps):
    groups, nodes, shapes, serial = Groups(), [], [], 0
    for step, *rest in steps:
        if step == "shapes":
            shapes = [constraints_of(each) for each in rest[0]]
        elif step == "remove" and rest[0] < len(nodes):
            groups.remove(rest[0])
            nodes[rest[0]] = nodes[-1]
            nodes.pop()
        elif step == "set":
            index = min(rest[0], len(nodes))
            if index == len(nodes):
                nodes.append(None)
                serial += 1
            name = nodes[index].name if nodes[index] is not None else str(serial)
            nodes[index] = node_info(node(name, labels=rest[1], taints=rest[2]))
            groups.set(index, nodes[index])
        group, fits = groups.arrange(shapes)
        true = np.array([[eligible(shape, each) for each in nodes] for shape in shapes]).reshape(
            len(shapes), len(nodes)
        )
        assert (fits[:, group] == true).all()
        assert sorted(set(group.tolist())) == list(range(fits.shape[1])), "no group without nodes"


def test_a_pod_for_each_of_many_nodes_costs_no_evaluation_of_each_pair():
    groups = Groups()
    for index in range(2000):
        groups.set(index, node_info(node(f"n{index}", labels={"kubernetes.io/hostname": f"n{index}"})))
    pinned = [pod(terms=[{"matchFields": [asks("In", f"n{index}", key="metadata.name")]}]) for index in range(50)]
    hosts = [pod(selector={"kubernetes.io/hostname": f"n{index}"}) for index in range(50)]
    group, fits = groups.arrange([constraints_of(each) for each in (*pinned, *hosts)])
    assert fits.shape == (100, 51)
    assert (fits[:, group].argmax(axis=1) == [*range(50), *range(50)]).all()
    assert (fits[:, group].sum(axis=1) == 1).all()


def test_a_later_shape_splits_groups():
    groups, later = Groups(), constraints_of(pod(selector={"a": "1"}))
    groups.set(0, node_info(node("x", labels={"a": "1"})))
    groups.set(1, node_info(node("y", labels={"a": "2"})))
    assert groups.arrange([constraints_of(pod())])[0].tolist() == [0, 0]
    group, fits = groups.arrange([constraints_of(pod()), later])
    assert fits[:, group].tolist() == [[True, True], [True, False]]


def test_more_selectors_than_fit_into_one_machine_word():
    groups = Groups()
    for index in range(100):
        groups.set(index, node_info(node(str(index), labels={"a": str(index)})))
    group, fits = groups.arrange([constraints_of(pod(selector={"a": str(index)})) for index in range(90)])
    assert fits.shape == (90, 91)
    assert (fits[:, group] == np.eye(90, 100, dtype=bool)).all()


def test_values_of_removed_nodes_and_shapes_are_dropped():
    groups = Groups()
    for round_ in range(300):
        groups.set(0, node_info(node(labels={"a": str(round_)}, taints=[taint(value=str(round_))])))
        _, fits = groups.arrange(
            [constraints_of(pod(selector={"a": str(round_)})), constraints_of(pod(selector={f"k{round_}": ""}))]
        )
        assert fits.tolist() == [[False], [False]]
    assert max(len(groups._taints.known), *(len(each.known) for each in groups._columns.values())) < 70
    assert set(groups._columns) == {(False, "a"), (False, "k299")}


def test_nothing_changes_in_what_was_handed_out():
    groups = Groups()
    groups.set(0, node_info(node("x")))
    shapes = [constraints_of(pod(selector={"a": "1"}))]
    first = groups.arrange(shapes)
    groups.set(0, node_info(node("x", labels={"b": "1"})))
    assert groups.arrange(shapes)[0] is first[0], "no pod requests b"
    groups.set(0, node_info(node("x", labels={"a": "1"})))
    assert groups.arrange(shapes)[1].tolist() == [[True]]
    assert first[1].tolist() == [[False]]


def test_numbers_of_shapes_last_until_most_are_unused():
    book, catalogue = ShapeBook(), Catalogue()
    request = catalogue.request({}, [])
    shapes = [book.shape(request, pod(selector={"a": str(number)})) for number in range(5)]
    assert book.shape(request, pod(selector={"a": "0"})) is shapes[0]
    book.number(dict.fromkeys(shapes), columns=3)
    assert [each.index for each in shapes] == [0, 1, 2, 3, 4]
    assert len(book.number(dict.fromkeys(shapes[2:]), columns=3)) == 5
    assert len(book.number(dict.fromkeys(shapes[3:]), columns=3)) == 2
    assert [each.index for each in shapes] == [-1, -1, -1, 0, 1]
    del shapes
    assert len(book._shapes) == 2


def test_the_shapes_of_the_highest_priority_and_the_first_are_kept():
    book, request = ShapeBook(), Catalogue().request({}, [])
    one, two, three, four = (book.shape(request, pod(selector={"a": each})) for each in "1234")
    asked = [(one, 0), (two, 5), (three, 0), (four, -1), (four, 9)]
    assert list(limit_shapes(asked, 3)) == [four, two, one]
    assert list(limit_shapes(asked, 4)) == [one, two, three, four]
