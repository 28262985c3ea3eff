"""Amounts as Kubernetes counts them, for any content of a manifest."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shoal.autoscaler.snapshot.resources import MOST, OTHER, Catalogue, Sums, allocatable_of, amount, request_of


def container(cpu=None, memory=None, *, always=False, limits=None, **others):
    asked = {"cpu": cpu, "memory": memory, **others}
    made = {"resources": {"requests": {name: value for name, value in asked.items() if value is not None}}}
    if limits is not None:
        made["resources"]["limits"] = limits
    return made | ({"restartPolicy": "Always"} if always else {})


def pod(*containers, init=(), **spec):
    return {"spec": {"containers": list(containers), "initContainers": list(init), **spec}}


@pytest.mark.parametrize(
    ("written", "units"),
    [
        ("0", 0), ("1", 1), (1, 1), (3.0, 3), ("+5", 5), (".5", 1), ("5.", 5), ("1.5", 2), ("-0", 0), ("007", 7),
        ("100m", 1), ("1500m", 2), ("1u", 1), ("1n", 1), ("2000000000n", 2), ("1k", 1000), ("1.5k", 1500), ("2M", 2 * 10**6),
        ("1G", 10**9), ("1T", 10**12), ("1P", 10**15), ("1E", MOST), ("1Ki", 1024), ("1.5Ki", 1536), ("1Mi", 2**20),
        ("1Gi", 2**30), ("1Ti", 2**40), ("1Pi", MOST), ("1Ei", MOST), ("1e3", 1000), ("1E3", 1000), ("1e+3", 1000), ("5e-1", 1),
        ("1e-3", 1), ("0e99", 0), ("1e999999999", MOST), ("1e-999999999", 1), (10**40, MOST), ("9" * 90, MOST), (1e300, MOST),
    ],
)  # fmt: skip
def test_a_quantity_in_whole_units(written, units):
    assert amount(written, "memory") == units


@pytest.mark.parametrize(
    ("written", "up", "down"),
    [("1", 1000, 1000), ("100m", 100, 100), ("100u", 1, 0), ("1500u", 2, 1), ("0.1", 100, 100), ("1k", 10**6, 10**6), ("1E", MOST, MOST)],
)  # fmt: skip
def test_cpu_in_thousandths(written, up, down):
    assert (amount(written, "cpu"), amount(written, "cpu", up=False)) == (up, down)


@pytest.mark.parametrize(
    "written",
    ["", ".", "-", "1 ", " 1", "1\n", "m", "Ki", "1K", "1KI", "1mi", "1e", "1e+", "1ee3", "1e1.5", "1_0", "0x1", "٣", "--1", "1Gi2",
     "nan", "inf", "-1", "-1m", "-1e3", "1" * 101, None, True, False, [], {}, -1, -(10**90), float("nan"), float("inf"), -1.5],
)  # fmt: skip
def test_an_invalid_quantity_counts_as_zero_and_is_reported(written):
    with pytest.raises(ValueError):
        amount(written, "cpu")
    reported = []
    assert request_of(pod(container(memory=written or "")), reported) == {"pods": 1}
    assert len(reported) == 1
    assert reported[0].startswith("spec.containers[0].resources.requests.memory: ")
    assert allocatable_of({"status": {"allocatable": {"cpu": written}}}) == {"cpu": 0}


@pytest.mark.timeout(60)
def test_huge_numbers_end():
    """Huge numbers are parsed in linear time; a quadratic parser would take minutes for each of them."""
    for written in (
        "1e99999999",
        "1e-99999999",
        "9" * 10**6,
        "1e" + "9" * 97,
        "1e" + "9" * 10**6,
        10**10**5,
        -(10**10**5),
    ):
        request_of(pod(container(written)))


SUFFIXES = {"": 0, "n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
BINARY = {f"{letter}i": 1024**power for power, letter in enumerate("KMGTPE", 1)}
SCALES = {name: Fraction(10) ** power for name, power in SUFFIXES.items()} | BINARY
SCALES |= {f"{letter}{sign}{power}": Fraction(10) ** int(f"{sign}{power}") for letter in "eE" for sign in ("", "+", "-") for power in (0, 1, 5, 30)}  # fmt: skip
numbers = st.from_regex(r"\+?([0-9]{1,12}(\.[0-9]{0,12})?|\.[0-9]{1,12})", fullmatch=True).filter(str.isascii)


def exact(number, scale):
    whole, _, behind = number.lstrip("+").partition(".")
    return Fraction(int(whole + behind), 10 ** len(behind)) * SCALES[scale]


@given(numbers, st.sampled_from(sorted(SCALES)))
@example("1.", "Ei")
def test_every_legal_form_has_its_exact_amount(number, scale):
    true, written = exact(number, scale), number + scale
    assert amount(written, "cpu") == min(ceil(true * 1000), MOST)
    assert amount(written, "cpu", up=False) == min(floor(true * 1000), MOST)
    # The API server has rounded a request up to thousandths already.
    assert amount(written, "memory") == min(ceil(true), MOST)
    assert amount(written, "memory", up=False) == min(floor(true), MOST)


def test_containers_are_summed_before_the_sum_is_rounded():
    assert request_of(pod(container("250m", "100m"), container("1", "100m"))) == {"cpu": 1250, "memory": 1, "pods": 1}


@pytest.mark.parametrize(
    ("made", "cpu"),
    [
        (pod(container("1"), init=[container("3"), container("2")]), 3),
        (pod(container("4"), init=[container("3"), container("2")]), 4),
        (pod(container("1"), init=[container("2", always=True)]), 3),
        (pod(container("1"), init=[container("2", always=True), container("3")]), 5),
        (pod(container("1"), init=[container("3"), container("2", always=True)]), 3),
        (pod(container("1"), init=[container("2", always=True), container("3"), container("2", always=True)]), 5),
        (pod(container("3"), init=[container("2", always=True), container("3"), container("2", always=True)]), 7),
        (pod(container("1"), overhead={"cpu": "250m"}), 1.25),
        (pod(container("1"), init=[container("3")], overhead={"cpu": "1"}), 4),
        (pod(container("1"), resources={"requests": {"cpu": "5"}}, overhead={"cpu": "1"}), 6),
        (pod(container("3"), resources={"requests": {"cpu": "2"}}), 2),
        (pod(container("3"), resources={"limits": {"cpu": "4"}}), 3),
        (pod(container(), resources={"limits": {"cpu": "4"}}), 4),
        (pod(container("3"), resources={"requests": {"memory": "4"}}), 3),
        (pod(container(limits={"cpu": "2"})), 2),
        (pod(container("1", limits={"cpu": "2"})), 1),
        (pod(container("0", limits={"cpu": "2"})), 0),
    ],
)  # fmt: skip
def test_the_effective_request(made, cpu):
    assert request_of(made).get("cpu", 0) == cpu * 1000


def test_every_resource_counts_and_a_whole_pod_requests_only_some():
    asked = {"nvidia.com/gpu": "2", "hugepages-2Mi": "4Mi"}
    made = pod(container("1", "1Gi", **asked), resources={"requests": {"nvidia.com/gpu": "9", "hugepages-2Mi": "2Mi"}})
    wanted = {"cpu": 1000, "memory": 2**30, "nvidia.com/gpu": 2, "hugepages-2Mi": 2**21, "pods": 1}
    assert request_of(made) == wanted
    assert request_of(pod(container(pods="7"))) == {"pods": 1}


def test_sums_beyond_the_most_are_the_most():
    assert request_of(pod(*[container("1E", "1Ei")] * 50)) == {"cpu": MOST, "memory": MOST, "pods": 1}


rubbish = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["spec", "containers", "initContainers", "resources", "requests", "limits", "cpu", "overhead", "restartPolicy"]
    ), inner, max_size=3),
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["spec", "status"]), rubbish))
def test_no_manifest_makes_it_fail(manifest):
    found = request_of(manifest)
    assert found["pods"] == 1
    assert all(0 < value <= MOST for value in found.values())
    allocatable_of(manifest)


def test_pods_that_ask_the_same_share_a_row_and_rows_grow():
    catalogue = Catalogue()
    one, two = catalogue.request(pod(container("1")), []), catalogue.request(pod(container("1000m")), [])
    assert one is two
    catalogue.request(pod(container(gpu="1")), [])
    assert list(catalogue.columns) == ["cpu", "memory", "pods", "gpu"]
    assert one.row.tolist() == [1000, 0, 1, 0]


def test_names_that_no_node_has_do_not_add_up():
    sums = Sums()
    sums.append()
    pods = [sums.catalogue.request(pod(container(**{f"r{number:03}": "2"})), []) for number in range(300)]
    assert OTHER in sums.catalogue.columns
    assert len(sums.catalogue.columns) < 80
    assert not sums.cleared()
    assert pods[299].row[sums.catalogue.columns[OTHER]] == 2
    sums.take(0, pods[299], 1, leaving=False)
    sums.offer(0, {"r299": 5, "cpu": 1})
    assert sums.cleared(), "what is taken of it stood among the others"
    sums.take(0, pods[299], 1, leaving=False)
    column = sums.catalogue.columns["r299"]
    assert sums.room([(0, pods[299])])[0, column] == 1
    assert sums.room([(0, pods[0])])[0, sums.catalogue.columns["r000"]] == -2


def test_the_row_of_a_removed_node_is_reused_by_the_last():
    sums = Sums()
    request = sums.catalogue.request(pod(container("1")), [])
    for index in range(40):
        sums.append()
        sums.offer(index, {"cpu": index})
        sums.take(index, request, 1, leaving=index % 2 == 1)
    sums.remove(3)
    assert sums.room([])[[2, 3], 0].tolist() == [2 - 1000, 39]
    assert sums.leaving()[[2, 3], 0].tolist() == [0, 1000]
    sums.append()
    assert not np.any(sums.room([])[39])
