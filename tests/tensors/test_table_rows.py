"""A row's slot and initial value are the same for every caller, whichever rows it requests and in whichever order."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol.messages import SparseTable
from shoal.tensors import table_rows as rows_module
from shoal.tensors.table_rows import GIVEN, first_values, given_tables, slot_of, slots_of_table
from tests.pserver.shapes import make_shape
from tests.soak import examples

WORD = (1 << 64) - 1


def table(family: str, first: float = 0.0, second: float = 1.0, *, dim: int = 8, **others) -> SparseTable:
    options = {"name": "t", "rows": 1 << 40, "dtype": "float32", "group": 0, "zero_rows": []} | others
    return SparseTable(family=family, first=first, second=second, dim=dim, **options)


def splitmix(word: int) -> int:
    """Compute the reference hash with Python's integers."""
    word = (word + 0x9E3779B97F4A7C15) & WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & WORD
    return word ^ (word >> 31)


@given(st.lists(st.integers(0, (1 << 62) - 1)), st.integers(1, 5000))
def test_slots_are_equal_ranges_of_splitmix64(rows: list[int], slots: int) -> None:
    found = slot_of(torch.tensor(rows, dtype=torch.int64), slots).tolist()
    assert found == [(splitmix(row) >> 32) * slots >> 32 for row in rows]


@given(rows=st.integers(0, 50), slots=st.integers(1, 20), at_once=st.integers(1, 60))
def test_the_slots_of_a_table_do_not_depend_on_how_it_is_cut(rows: int, slots: int, at_once: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "_ROWS_AT_ONCE", at_once)
        found = slots_of_table(rows, slots)
    assert found.dtype == torch.int32
    assert found.tolist() == slot_of(torch.arange(rows), slots).tolist()


def test_slots_get_equal_shares_of_consecutive_rows() -> None:
    shares = torch.bincount(slot_of(torch.arange(160_000), 16), minlength=16)
    assert shares.min() > 9_500
    assert shares.max() < 10_500


@examples(30)
@given(
    st.lists(st.integers(0, (1 << 40) - 1), min_size=1, max_size=40, unique=True),
    st.sampled_from(["normal", "uniform", "constant"]),
    st.integers(1, 9),
    st.integers(0, (1 << 63) - 1),
    st.randoms(),
)
def test_values_do_not_depend_on_order_or_company(rows, family, dim, seed, random) -> None:
    kind = table(family, 0.25, 2.0, dim=dim)
    together = first_values(kind, 3, seed, torch.tensor(rows))
    places = list(range(len(rows)))
    random.shuffle(places)
    for place in places:
        assert torch.equal(first_values(kind, 3, seed, torch.tensor([rows[place]])), together[place : place + 1])
    shuffled = first_values(kind, 3, seed, torch.tensor([rows[place] for place in places]))
    assert torch.equal(shuffled, together[places])
    assert together.shape == (len(rows), dim)


def test_known_values_do_not_change() -> None:
    """A change would give untouched rows other values after an upgrade in the middle of a job."""
    rows = torch.tensor([0, 1, 123_456_789_012])
    normal = first_values(table("normal", dim=3, dtype="float64"), 0, 7, rows)
    uniform = first_values(table("uniform", dim=3, dtype="float64"), 0, 7, rows)
    assert [value.hex() for value in normal.flatten().tolist()] == KNOWN_NORMAL
    assert [value.hex() for value in uniform.flatten().tolist()] == KNOWN_UNIFORM


def test_normal_moments_and_independence() -> None:
    values = first_values(table("normal", 3.0, 2.0, dim=7, dtype="float64"), 0, 1, torch.arange(60_000))
    standard = (values - 3) / 2
    count = math.sqrt(standard.numel())
    assert abs(standard.mean()) < 4 / count
    assert abs(standard.pow(2).mean() - 1) < 4 * math.sqrt(2) / count
    assert abs(standard.pow(3).mean()) < 4 * math.sqrt(15) / count
    assert abs(standard.pow(4).mean() - 3) < 4 * math.sqrt(96) / count
    between = torch.corrcoef(standard.T) - torch.eye(7)
    assert between.abs().max() < 5 / math.sqrt(60_000)
    neighbours = (standard[1:] * standard[:-1]).mean()
    assert abs(neighbours) < 4 / count
    within = (standard.abs() < 1).double().mean()
    assert abs(within - math.erf(math.sqrt(0.5))) < 0.005


def test_uniform_moments_and_bounds() -> None:
    values = first_values(table("uniform", -1.0, 3.0, dtype="float64"), 0, 1, torch.arange(60_000))
    assert values.min() >= -1
    assert values.max() < 3
    assert abs(values.mean() - 1) < 0.01
    assert abs(values.var() - 16 / 12) < 0.01


def test_seed_table_and_row_all_matter() -> None:
    rows = torch.arange(100)
    kind = table("normal")
    made = [first_values(kind, index, seed, rows) for index, seed in [(0, 1), (1, 1), (0, 2), (1, 2)]]
    for place, values in enumerate(made):
        assert len(torch.unique(values)) > 0.99 * values.numel()
        for other in made[place + 1 :]:
            assert (values != other).float().mean() > 0.99


def test_zero_rows_constants_and_dtypes() -> None:
    rows = torch.tensor([4, 0, 9])
    assert first_values(table("normal", zero_rows=[0, 9], dim=2), 0, 1, rows).abs().sum(1).gt(0).tolist() == [
        True,
        False,
        False,
    ]
    assert first_values(table("constant", 0.5, dim=2), 0, 1, rows).tolist() == [[0.5, 0.5]] * 3
    assert first_values(table("normal", dim=3, dtype="bfloat16"), 0, 1, rows).dtype == torch.bfloat16
    assert first_values(table("normal", dim=3), 0, 1, rows[:0]).shape == (0, 3)
    with pytest.raises(ValueError, match="no family 'gamma'"):
        first_values(table("gamma"), 0, 1, rows)
    with pytest.raises(ValueError, match="table t: its rows are given"):
        first_values(table(GIVEN), 0, 1, rows)
    assert given_tables(make_shape(tables=[table("normal"), table(GIVEN), table("constant")])) == [1]


def test_the_scripts_random_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    first_values(table("normal"), 0, 1, torch.arange(10))
    assert torch.equal(torch.get_rng_state(), before)


# These values were computed once, from the definition.
KNOWN_NORMAL = [
    "-0x1.7eccf9d7e9ba5p-1",
    "-0x1.7c2749481d251p-2",
    "-0x1.debc7232f7d4ap-3",
    "-0x1.957fc100e2358p+0",
    "-0x1.56b61eecb5cd5p+0",
    "0x1.0aeb43a6fd135p+0",
    "-0x1.9a784006c94c5p-1",
    "0x1.e4333f7c1ac91p-3",
    "-0x1.5963052262aa6p+1",
]
KNOWN_UNIFORM = [
    "0x1.78b8d0179078dp-1",
    "0x1.db7ff7ac5d1f4p-1",
    "0x1.18b153ced56e1p-1",
    "0x1.15897ce1a9850p-1",
    "0x1.53309453d43e8p-3",
    "0x1.0a49a7d69416ep-2",
    "0x1.f49e6811efd30p-4",
    "0x1.bac90eab54a38p-2",
    "0x1.481abc3d4ff00p-3",
]
