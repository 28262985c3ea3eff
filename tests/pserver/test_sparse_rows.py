"""Sparse tables equal a plain loop over nn.Embedding(sparse=True), and store only the rows that were touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st
from torch import Tensor

from shoal.protocol.messages import Group, SparseTable
from shoal.pserver.state.parameters import Parameters
from shoal.tensors.optimizers import UnsupportedOptimizer
from shoal.tensors.table_rows import GIVEN, first_values, slot_of, slots_of_table
from tests.pserver.shapes import fill, make_shape, make_views, registered, restarted, rows_of_slot, started
from tests.soak import examples

ROWS, DIM, SEED = 200, 6, 5
CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "maximize": True}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.01, "initial_accumulator_value": 0.2}),
    ("SparseAdam", {"lr": 0.01, "betas": (0.8, 0.95)}),
]


def make_table_shape(name: str, options: dict[str, Any], *, zero_rows: list[int] | None = None, given: bool = False):
    """Make a shape of two tables; with ``given``, the first trainer provides the first table's rows."""
    family = GIVEN if given else "normal"
    return make_shape(
        sizes={"w": [10]},
        groups=[Group("SGD", registered("SGD", {"lr": 0.1})), Group(name, registered(name, options))],
        tables=[
            SparseTable("users", ROWS, DIM, "float32", 1, family, 0.0, 1.0, zero_rows or []),
            SparseTable("items", ROWS, DIM, "float32", 1, "uniform", -1.0, 1.0, []),
        ],
    )


def pretrained() -> Tensor:
    """Return the weight that a script loaded into a table."""
    return torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(3))


def batch(step: int, table: int) -> Tensor:
    """Return a batch's row numbers, with repetitions."""
    generator = torch.Generator().manual_seed(1000 * table + step)
    return torch.randint(0, 60 + 20 * table, (15,), generator=generator)


def rows_of(gradient: Tensor, table: int) -> tuple[int, Tensor, Tensor]:
    gradient = gradient.coalesce()
    return table, gradient.indices()[0], gradient.values()


class Loop:
    """A plain loop over two embeddings; the second has no gradient in every fourth step."""

    def __init__(self, shape, name: str, options: dict[str, Any]) -> None:
        every = torch.arange(ROWS)
        weights = [
            pretrained() if table.family == GIVEN else first_values(table, index, SEED, every)
            for index, table in enumerate(shape.tables)
        ]
        self.modules = [torch.nn.Embedding.from_pretrained(w, freeze=False, sparse=True) for w in weights]
        self.optimizer = getattr(torch.optim, name)([module.weight for module in self.modules], **options)

    def step(self, number: int, rate: float) -> list[tuple[int, Tensor, Tensor]]:
        """Take a step; return the gradients as a trainer pushes them."""
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.zero_grad()
        used = [0] if number % 4 == 3 else [0, 1]
        for table in used:
            self.modules[table](batch(number, table)).pow(3).sum().backward()
        pushed = [rows_of(self.modules[table].weight.grad.clone(), table) for table in used]
        # Adagrad creates sparse tensors, and PyTorch warns that it does not check them unless this is enabled.
        with torch.sparse.check_sparse_tensor_invariants(enable=True):
            self.optimizer.step()
        return pushed


@pytest.mark.parametrize("given", [False, True], ids=["drawn", "given"])
@pytest.mark.parametrize("slots_total", [1, 3, 16])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_equals_a_plain_loop_also_over_a_restart(
    name: str, options: dict[str, Any], slots_total: int, *, given: bool
) -> None:
    shape = make_table_shape(name, options, given=given)
    loop = Loop(shape, name, options)
    server = started(shape, slots_total, [torch.zeros(10)], weights={0: pretrained()} if given else None)
    nothing = make_views(shape, slots_total, list(range(slots_total)))
    for number in range(30):
        if number == 11:
            server = restarted(server)
        rate = options["lr"] / (1 + number)
        rows = loop.step(number, rate)
        server.apply(range(slots_total), nothing, absent=[0], options={1: {"lr": rate}}, rows=rows)
    every = torch.arange(ROWS)
    for table, module in enumerate(loop.modules):
        torch.testing.assert_close(server.rows(table, every), module.weight.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_slots_fall_behind_and_catch_up_each_by_itself(name: str, options: dict[str, Any]) -> None:
    shape = make_table_shape(name, options)
    loop = Loop(shape, name, options)
    pushes = [loop.step(number, 0.01) for number in range(10)]
    straight, ragged = started(shape, 3, [torch.zeros(10)]), started(shape, 3, [torch.zeros(10)])
    nothing = make_views(shape, 3, [0, 1, 2])
    for rows in pushes:
        straight.apply([0, 1, 2], nothing, absent=[0], rows=rows)
    for rows in pushes[:6]:
        ragged.apply([1], nothing, absent=[0], rows=rows)
    for rows in pushes[:6]:
        ragged.apply([0, 2], nothing, absent=[0], rows=rows)
    ragged = restarted(ragged)
    for rows in pushes[6:]:
        ragged.apply([2, 1, 0], nothing, absent=[0], rows=rows)
    for slot in range(3):
        left, right = straight.state(slot), ragged.state(slot)
        assert left.keys() == right.keys()
        for key, tensor in left.items():
            torch.testing.assert_close(tensor, right[key], rtol=1e-6, atol=1e-6)


def test_slots_with_different_steps_in_one_push() -> None:
    """One slot has applied more pushes than the other, and each continues with its own count of steps."""
    shape = make_table_shape("SparseAdam", {"lr": 0.1})
    nothing = make_views(shape, 2, [0, 1])
    ids = torch.arange(20)
    gradient = torch.ones(20, DIM)
    mixed, apart = started(shape, 2, [torch.zeros(10)]), started(shape, 2, [torch.zeros(10)])
    for server in (mixed, apart):
        server.apply([0], nothing, rows=[(0, ids, gradient)])
    mixed.apply([0, 1], nothing, rows=[(0, ids, gradient)])
    apart.apply([1], nothing, rows=[(0, ids, gradient)])
    apart.apply([0], nothing, rows=[(0, ids, gradient)])
    assert torch.equal(mixed.rows(0, ids), apart.rows(0, ids))
    assert [int(mixed.state(slot)["rows/users/step"]) for slot in (0, 1)] == [2, 1]


def test_only_touched_rows_are_kept_and_reading_touches_none() -> None:
    shape = make_table_shape("Adagrad", {"lr": 0.1}, zero_rows=[4])
    server = started(shape, 2, [torch.zeros(10)])
    every = torch.arange(ROWS)
    assert torch.equal(server.rows(0, every), first_values(shape.tables[0], 0, SEED, every))
    assert server.rows(0, torch.tensor([4])).abs().sum() == 0
    assert all(len(server.export(slot).tables[0][0]) == 0 for slot in (0, 1))
    ids = torch.tensor([9, 3, 150])
    server.apply([0, 1], make_views(shape, 2, [0, 1]), rows=[(0, ids, torch.ones(3, DIM))])
    exported = [server.export(slot).tables[0] for slot in (0, 1)]
    assert sorted(torch.cat([numbers for numbers, _ in exported]).tolist()) == [3, 9, 150]
    for slot, (numbers, values) in enumerate(exported):
        assert (slot_of(numbers, 2) == slot).all()
        assert torch.equal(values, server.rows(0, numbers))


def test_a_dropped_slot_takes_its_rows_along_and_leaves_the_others() -> None:
    shape = make_table_shape("SparseAdam", {"lr": 0.1})
    server = started(shape, 3, [torch.zeros(10)])
    nothing = make_views(shape, 3, [0, 1, 2])
    ids = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))[:120]
    server.apply([0, 1, 2], nothing, rows=[(0, ids, torch.ones(120, DIM))])
    kept, dropped = server.state(2), server.state(1)
    server.drop(1)
    assert all(torch.equal(kept[key], part) for key, part in server.state(2).items())
    with pytest.raises(ValueError, match=r"slots \[1\] are not held"):
        server.rows(0, dropped["rows/users/ids"][:1])
    server.create(1)
    mine = dropped["rows/users/ids"]
    assert torch.equal(server.rows(0, mine), first_values(shape.tables[0], 0, SEED, mine))
    server.load(1, dropped)
    server.apply([1], nothing, rows=[(0, mine, torch.ones(len(mine), DIM))])
    assert int(server.state(1)["rows/users/step"]) == 2


def test_a_slot_without_dense_elements_can_be_initialised_and_read() -> None:
    shape = make_table_shape("SGD", {"lr": 0.1})
    server = Parameters(shape, 16, SEED)
    empty = make_views(shape, 16, [0])
    assert empty.by_slot == {0: []}
    server.initialise(0, empty)
    server.read(empty)
    server.apply([0], empty)
    assert server.export(0).dense == []


def test_tables_grow_past_any_first_size() -> None:
    shape = make_shape(
        sizes={},
        groups=[Group("SGD", {"lr": 1.0})],
        tables=[SparseTable("t", 100_000, 2, "float64", 0, "constant", 1.0, 0.0, [])],
    )
    server = Parameters(shape, 4, SEED)
    assert [server.create(slot) for slot in range(4)] == [False] * 4
    nothing = make_views(shape, 4, [0, 1, 2, 3])
    for start in range(0, 50_000, 7_000):
        ids = torch.arange(start, start + 7_000)
        server.apply(range(4), nothing, rows=[(0, ids, torch.ones(7_000, 2, dtype=torch.float64))])
    values = server.rows(0, torch.arange(100_000))
    assert values[:56_000].abs().sum() == 0
    assert (values[56_000:] == 1).all()


def test_a_push_that_does_not_fit_changes_nothing() -> None:
    shape = make_table_shape("Adagrad", {"lr": 0.1})
    server = started(shape, 1, [torch.zeros(10)])
    views = fill(make_views(shape, 1, [0]), shape, [torch.ones(10)])
    before = server.state(0)
    one = torch.tensor([1])
    for rows, message in [
        ((0, torch.tensor([ROWS]), torch.ones(1, DIM)), "has the rows 0..199; asked for 200"),
        ((0, torch.tensor([-1]), torch.ones(1, DIM)), "asked for -1"),
        ((0, one, torch.ones(1, DIM + 1)), "rows of 6 x torch.float32"),
        ((0, one, torch.ones(1, DIM, dtype=torch.float64)), "rows of 6 x torch.float32"),
        ((0, one.int(), torch.ones(1, DIM)), "must be int64"),
        ((2, one, torch.ones(1, DIM)), "no table 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            server.apply([0], views, rows=[rows])
    with pytest.raises(ValueError, match="twice in one push"):
        server.apply([0], views, rows=[(0, one, torch.ones(1, DIM))] * 2)
    with pytest.raises(ValueError, match="Adagrad has no option colour"):
        server.apply([0], views, rows=[(0, one, torch.ones(1, DIM))], options={1: {"colour": 1}})
    after = server.state(0)
    assert all(torch.equal(part, after[key]) for key, part in before.items())


def test_load_refuses_rows_of_another_slot() -> None:
    shape = make_table_shape("SGD", {"lr": 0.1})
    server = started(shape, 2, [torch.zeros(10)])
    server.apply([0, 1], make_views(shape, 2, [0, 1]), rows=[(0, torch.arange(20), torch.ones(20, DIM))])
    saved = server.state(0)
    other = server.state(1)
    saved |= {key: part for key, part in other.items() if key.startswith("rows/users")}
    with pytest.raises(ValueError, match="rows of other slots than 0"):
        Parameters(shape, 2, SEED).load(0, saved)


def test_an_optimizer_that_is_none_for_tables_is_refused() -> None:
    with pytest.raises(UnsupportedOptimizer, match="Adam cannot train an embedding"):
        Parameters(make_table_shape("Adam", {}), 2, SEED)


def given_server(slots_total: int, name: str = "SGD") -> Parameters:
    shape = make_table_shape(name, {"lr": 0.1}, given=True)
    return started(shape, slots_total, [torch.zeros(10)], weights={0: pretrained()})


@pytest.mark.parametrize("slots_total", [1, 3, 16])
def test_every_row_of_a_given_table_is_the_scripts_from_the_beginning(slots_total: int) -> None:
    """Each row is read, exported, stored in snapshots and restored, although no row was ever pushed."""
    server = given_server(slots_total)
    for held in (server, restarted(server)):
        assert torch.equal(held.rows(0, torch.arange(ROWS)), pretrained())
        exported = [held.export(slot).tables[0] for slot in range(slots_total)]
        assert sorted(torch.cat([ids for ids, _ in exported]).tolist()) == list(range(ROWS))
        for ids, values in exported:
            assert torch.equal(values, pretrained()[ids])
        assert all(len(held.export(slot).tables[1][0]) == 0 for slot in range(slots_total))


def test_a_slot_of_a_given_table_waits_for_its_rows() -> None:
    groups = [Group("SGD", registered("SGD", {"lr": 1.0}))]
    drawn = SparseTable("t", 9, 2, "float32", 0, "constant", 1.0, 0.0, [])
    given = SparseTable("t", 9, 2, "float32", 0, GIVEN, 0.0, 0.0, [])
    assert Parameters(make_shape(sizes={}, groups=groups, tables=[given]), 2, SEED).create(1)
    assert not Parameters(make_shape(sizes={}, groups=groups, tables=[drawn]), 2, SEED).create(1)


def test_a_given_row_is_never_drawn() -> None:
    server = given_server(2)
    here = slots_of_table(ROWS, 2)
    server.create(1)
    with pytest.raises(
        ValueError, match="table users: its rows are given by the first trainer, and these are not here"
    ):
        server.rows(0, (here == 1).nonzero().squeeze(1))
    mine = (here == 0).nonzero().squeeze(1)
    assert torch.equal(server.rows(0, mine), pretrained()[mine])
    server.drop(1)
    with pytest.raises(ValueError, match=r"slots \[1\] are not held"):
        server.rows(0, (here == 1).nonzero().squeeze(1))


def test_initial_rows_that_are_not_all_of_the_slot_change_nothing() -> None:
    shape = make_table_shape("SGD", {"lr": 0.1}, given=True)
    server = Parameters(shape, 2, SEED)
    views = make_views(shape, 2, [0])
    [(_, ids, values)] = rows_of_slot(0, 2, {0: pretrained()})
    [(_, others, theirs)] = rows_of_slot(1, 2, {0: pretrained()})
    for rows, message in [
        ([], r"initial rows of the tables \[\] instead of \[0\]"),
        ([(0, ids, values), (1, ids, values)], r"of the tables \[0, 1\] instead of \[0\]"),
        ([(0, ids[1:], values[1:])], f"{len(ids) - 1} rows of slot 0, which has {len(ids)}"),
        ([(0, ids[[0, *range(len(ids))]], values[[0, *range(len(ids))]])], "comes twice"),
        ([(0, others, theirs)], "rows of other slots than 0"),
        ([(0, ids, values.double())], "rows of 6 x torch.float32"),
    ]:
        with pytest.raises(ValueError, match=message):
            server.initialise(0, views, rows=rows)
        assert server.slots == []
    server.initialise(0, views, rows=[(0, ids, values)])
    assert torch.equal(server.rows(0, ids), values)


def test_a_snapshot_without_a_given_row_is_refused() -> None:
    server = given_server(2, "SparseAdam")
    saved = server.state(0)
    for key in ("ids", "values", "state/exp_avg", "state/exp_avg_sq"):
        saved[f"rows/users/{key}"] = saved[f"rows/users/{key}"][1:]
    with pytest.raises(ValueError, match="rows of slot 0, which has"):
        Parameters(server.shape, 2, SEED).load(0, saved)


steps = st.one_of(
    st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=30, unique=True),
    st.just("restart"),
    st.integers(0, 2).map(lambda slot: ("restore", slot)),
)


@examples(40)
@hypothesis_given(st.lists(steps, max_size=10))
def test_pushes_restarts_and_falls_back_are_those_of_a_naive_model(actions: list[Any]) -> None:
    """Each row is a number that each push lowers by the rate; a slot that is set back has its rows set back too."""
    shape = make_shape(
        sizes={},
        groups=[Group("SGD", registered("SGD", {"lr": 1.0}))],
        tables=[SparseTable("t", ROWS, 1, "float64", 0, GIVEN, 0.0, 0.0, [])],
    )
    model = [float(row) for row in range(ROWS)]
    slots = slots_of_table(ROWS, 3).tolist()
    server = started(shape, 3, [], weights={0: torch.arange(ROWS, dtype=torch.float64).unsqueeze(1)})
    first = [server.state(slot) for slot in range(3)]
    nothing = make_views(shape, 3, [0, 1, 2])
    for action in actions:
        if action == "restart":
            server = restarted(server)
        elif isinstance(action, tuple):
            server.load(action[1], first[action[1]])
            model = [float(row) if slots[row] == action[1] else value for row, value in enumerate(model)]
        else:
            server.apply([0, 1, 2], nothing, rows=[(0, torch.tensor(action), torch.ones(len(action), 1).double())])
            model = [value - 1 if row in action else value for row, value in enumerate(model)]
        assert server.rows(0, torch.arange(ROWS)).flatten().tolist() == model
