"""The slot layout that trainer and server compute independently: a partition, aligned, and identical on both sides."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.protocol.messages import Buffer, DenseParameter, ModelSpec
from shoal.protocol.slot_layout import ALIGNMENT, ITEM_SIZES, Area, Piece, TensorArea, pieces

sizes = st.lists(st.lists(st.integers(0, 7), max_size=3), max_size=8)
dtypes = st.sampled_from(sorted(ITEM_SIZES))


def make_shape(shapes: list[list[int]], dtype: str = "float32", *, max_norm: float = 0.0) -> ModelSpec:
    return ModelSpec(
        samples=1,
        fingerprint="",
        batch_size=1,
        drop_last=False,
        shuffle=False,
        task_batches=1,
        accumulate=1,
        dense=[DenseParameter(f"p{index}", shape, dtype, 0, [], max_norm) for index, shape in enumerate(shapes)],
        tables=[],
        groups=[],
        buffers=[Buffer(f"b{index}", shape, dtype, "last") for index, shape in enumerate(shapes)],
    )


@given(sizes, st.integers(1, 20))
def test_every_element_is_in_exactly_one_slot_and_slots_are_equal(shapes: list[list[int]], slots: int) -> None:
    cut = pieces(make_shape(shapes), slots)
    found = [(piece.parameter, at) for slot in cut for piece in slot for at in range(piece.start, piece.stop)]
    assert found == [(index, at) for index, shape in enumerate(shapes) for at in range(math.prod(shape))]
    total = len(found)
    for slot, mine in enumerate(cut):
        assert all(len(piece) > 0 for piece in mine)
        assert sum(map(len, mine)) == (slot + 1) * total // slots - slot * total // slots


@given(sizes, st.integers(1, 20))
def test_rows_with_a_norm_are_never_cut(shapes: list[list[int]], slots: int) -> None:
    rowed = [shape if len(shape) > 1 else [*shape, 1] for shape in shapes]
    cut = pieces(make_shape(rowed, max_norm=1.0), slots)
    found = [(piece.parameter, at) for slot in cut for piece in slot for at in range(piece.start, piece.stop)]
    assert found == [(index, at) for index, shape in enumerate(rowed) for at in range(math.prod(shape))]
    for piece in (piece for slot in cut for piece in slot):
        row = math.prod(rowed[piece.parameter][1:])
        assert (piece.start % row, piece.stop % row) == (0, 0)


@given(sizes, st.integers(1, 20), dtypes, st.data())
def test_an_area_holds_the_attached_slots_in_their_order(
    shapes: list[list[int]], slots: int, dtype: str, data: st.DataObject
) -> None:
    shape = make_shape(shapes, dtype)
    attached = data.draw(st.permutations(range(slots)))[: data.draw(st.integers(0, slots))]
    area = Area(shape, slots, attached)
    cut = pieces(shape, slots)
    assert [(entry.slot, entry.piece) for entry in area.entries] == [(s, piece) for s in attached for piece in cut[s]]
    assert list(area.by_slot()) == list(attached)
    assert [entry for entries in area.by_slot().values() for entry in entries] == list(area.entries)
    end = 0
    for entry in area.entries:
        assert entry.offset % ALIGNMENT == 0
        assert 0 <= entry.offset - end < ALIGNMENT
        assert entry.nbytes == entry.count * ITEM_SIZES[dtype]
        end = entry.offset + entry.nbytes
    assert area.size == -(-end // ALIGNMENT) * ALIGNMENT


def test_a_small_example() -> None:
    assert pieces(make_shape([[2, 3], [], [3]]), 3) == [
        [Piece(0, 0, 3)],
        [Piece(0, 3, 6)],
        [Piece(1, 0, 1), Piece(2, 0, 3)],
    ]


@given(sizes, dtypes)
def test_whole_tensors_lie_one_after_another(shapes: list[list[int]], dtype: str) -> None:
    area = TensorArea(make_shape(shapes, dtype).buffers)
    assert [list(entry.shape) for entry in area.entries] == shapes
    end = 0
    for entry in area.entries:
        assert entry.offset % ALIGNMENT == 0
        assert 0 <= entry.offset - end < ALIGNMENT
        end = entry.offset + entry.nbytes
    assert 0 <= area.size - end < ALIGNMENT


def test_what_is_refused() -> None:
    shape = make_shape([[4]])
    with pytest.raises(ValueError, match="no slots"):
        Area(shape, 2, [0, 2])
    with pytest.raises(ValueError, match="named twice"):
        Area(shape, 2, [1, 1])
    with pytest.raises(ValueError, match="at least one"):
        pieces(shape, 0)
    with pytest.raises(ValueError, match="p0 has the dtype float8_e4m3fn"):
        Area(make_shape([[4]], "float8_e4m3fn"), 2, [0])


def test_the_layout_needs_neither_torch_nor_numpy() -> None:
    code = "import sys, shoal.protocol.slot_layout; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
