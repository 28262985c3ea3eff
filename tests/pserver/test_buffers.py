"""Buffers and fixed tensors: the first trainer provides them, each buffer is merged by its own rule, and all are in slot 0."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoal.protocol.messages import Buffer, ModelSpec
from shoal.protocol.messages import Tensor as TensorShape
from shoal.protocol.slot_layout import TensorArea
from shoal.pserver.state.parameters import Parameters
from shoal.tensors.views import TensorViews
from tests.pserver.shapes import make_shape, make_views, restarted, started
from tests.soak import examples

BUFFERS = [
    Buffer("mean", [2], "float64", "mean"),
    Buffer("bn.num_batches_tracked", [], "int64", "sum"),
    Buffer("seen", [2], "bool", "last"),
]
FIXED = [TensorShape("frozen.weight", [2, 2], "float32"), TensorShape("mask", [3], "bool")]


def first_buffers() -> list[Tensor]:
    return [torch.tensor([4.0, 8.0], dtype=torch.float64), torch.tensor([10]), torch.tensor([True, False])]


def first_fixed() -> list[Tensor]:
    return [torch.arange(4.0), torch.tensor([True, False, True])]


def whole_shape(**others) -> ModelSpec:
    return make_shape(sizes={"w": [4]}, buffers=BUFFERS, fixed=FIXED, **others)


def begun(shape: ModelSpec) -> Parameters:
    return started(shape, 2, [torch.zeros(4)], buffers=first_buffers(), fixed=first_fixed())


def merged(server: Parameters, values: list[Tensor], trainers: int) -> list[list]:
    area = TensorArea(BUFFERS)
    views = TensorViews(area, bytearray(area.size))
    for target, value in zip(views.tensors, values, strict=True):
        target.copy_(value)
    server.merge_buffers(views, trainers)
    return [tensor.tolist() for tensor in views.tensors]


def fixed_of(server: Parameters) -> list[list]:
    area = TensorArea(FIXED)
    views = TensorViews(area, bytearray(area.size))
    server.read_fixed(views)
    return [tensor.tolist() for tensor in views.tensors]


def test_they_are_the_first_trainers_before_anybody_merged() -> None:
    server = begun(whole_shape())
    nothing = [torch.zeros(2), torch.zeros(1), torch.zeros(2)]
    assert merged(server, nothing, 0) == [[4.0, 8.0], [10], [True, False]]
    assert fixed_of(server) == [[0.0, 1.0, 2.0, 3.0], [True, False, True]]
    saved = server.state(0)
    assert saved["buffers/bn.num_batches_tracked"].shape == ()
    assert saved["fixed/frozen.weight"].tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert not [name for name in server.state(1) if name.startswith(("buffers/", "fixed/"))]


def test_each_buffer_is_merged_in_its_own_way() -> None:
    server = begun(whole_shape())
    mine = [torch.tensor([8.0, 8.0]), torch.tensor([3]), torch.tensor([False, True])]
    assert merged(server, mine, 4) == [[5.0, 8.0], [13], [False, True]]
    assert merged(server, mine, 1) == [[8.0, 8.0], [16], [False, True]]
    assert fixed_of(server) == [[0.0, 1.0, 2.0, 3.0], [True, False, True]]


merges = st.tuples(
    st.lists(st.integers(-8, 8), min_size=2, max_size=2),
    st.integers(0, 5),
    st.lists(st.booleans(), min_size=2, max_size=2),
    st.integers(0, 4),
)


@examples(60)
@given(st.lists(st.one_of(merges, st.just("restart")), max_size=12))
def test_any_sequence_of_merges_and_restarts_is_that_of_a_naive_model(steps) -> None:
    server = begun(whole_shape())
    mean, total, seen = [4.0, 8.0], 10, [True, False]
    for step in steps:
        if step == "restart":
            server = restarted(server)
            continue
        values, increase, flags, trainers = step
        if trainers:
            mean = [
                held + (value - held) / trainers if trainers > 1 else value
                for held, value in zip(mean, values, strict=True)
            ]
            total, seen = total + increase, flags
        given_now = [torch.tensor(values), torch.tensor([increase]), torch.tensor(flags)]
        assert merged(server, given_now, trainers) == [mean, [total], seen]
    assert fixed_of(restarted(server)) == [[0.0, 1.0, 2.0, 3.0], [True, False, True]]


@pytest.mark.parametrize("kind", ["buffers", "fixed"])
def test_slot_0_waits_for_them_also_without_any_dense_value(kind: str) -> None:
    held = {"buffers": BUFFERS} if kind == "buffers" else {"fixed": FIXED}
    assert Parameters(make_shape(sizes={}, **held), 2, seed=5).create(0)
    assert not Parameters(make_shape(sizes={}), 2, seed=5).create(0)


def test_they_go_with_slot_0_and_are_refused_in_part() -> None:
    shape = whole_shape()
    server = begun(shape)
    saved = server.state(0)
    server.create(0)
    with pytest.raises(ValueError, match="slot 0 still waits for its initial values"):
        fixed_of(server)
    server.drop(0)
    with pytest.raises(ValueError, match=r"slots \[0\] are not held"):
        merged(server, first_buffers(), 0)
    with pytest.raises(ValueError, match=r"slots \[0\] are not held"):
        fixed_of(server)
    views = make_views(shape, 2, [0])
    for buffers, fixed in ((first_buffers()[:2], first_fixed()), (first_buffers(), [])):
        with pytest.raises(ValueError, match="slot 0 needs"):
            server.initialise(0, views, buffers=buffers, fixed=fixed)
    assert server.slots == [1]
    for name in ("buffers/seen", "fixed/mask"):
        with pytest.raises(ValueError, match=f"slot 0 has no {name}"):
            Parameters(shape, 2, seed=5).load(0, {key: part for key, part in saved.items() if key != name})


def test_a_merge_that_does_not_exist_or_does_not_suit_is_refused() -> None:
    for buffer in (Buffer("b", [1], "int64", "mean"), Buffer("b", [1], "float32", "most")):
        with pytest.raises(ValueError, match="cannot be merged by"):
            Parameters(make_shape(buffers=[buffer]), 1, seed=5)
