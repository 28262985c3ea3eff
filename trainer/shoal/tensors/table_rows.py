"""The slot of each row of a sparse table, and the initial values of rows that are not given.

Both are pure functions of numbers that every process has: a trainer groups the rows of a gradient by slot, and a row that
was never pushed is stored nowhere but has the same initial values in every process, also after a restore. PyTorch's random
generator is not used, as it belongs to the script.

The hash is splitmix64, in wrapping int64 arithmetic. The normal distribution uses the Box-Muller transform, with logarithm,
sine and cosine computed here from additions, multiplications, divisions and square roots, which IEEE 754 rounds identically
everywhere. The functions of the library differ in the last bit between processors, and even between the middle and the end
of one tensor; a row's initial values would then depend on the batch in which it is requested.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from shoal.protocol.messages import ModelSpec, SparseTable

__all__ = ["GIVEN", "GIVEN_TABLE_BYTES", "first_values", "given_tables", "slot_of", "slots_of_table"]

GIVEN = "given"
"""The family of tables whose rows the first trainer sends."""

GIVEN_TABLE_BYTES = 2**30
"""The largest table, in bytes of its values, whose rows are given; a row of a larger table is drawn at its first use."""

_ROWS_AT_ONCE = 1 << 18

_WORD = (1 << 64) - 1
_STRIDE = 0x9E3779B97F4A7C15
_FIRST_FACTOR = 0xBF58476D1CE4E5B9
_SECOND_FACTOR = 0x94D049BB133111EB

_UNIT = 2.0**-53
_SQRT_HALF = math.sqrt(0.5)
# Taylor coefficients, highest power first; the argument's square is below 0.03 for the logarithm, 0.62 for the others,
# so that the omitted terms are below the rounding of float64.
_LOG = [1 / (2 * k + 1) for k in range(10, -1, -1)]
_SINE = [(-1) ** k / math.factorial(2 * k + 1) for k in range(9, -1, -1)]
_COSINE = [(-1) ** k / math.factorial(2 * k) for k in range(9, -1, -1)]


def slot_of(rows: Tensor, slots: int) -> Tensor:
    """Return the slot of each row: the one of ``slots`` equal ranges that contains the row's hash.

    Args:
        rows: The row numbers, int64, of any shape.
        slots: The number of slots of the job, below 2**31.

    Returns:
        The slots, int64, of the same shape.
    """
    upper = _shift_right(_mix(rows + _signed(_STRIDE)), 32)
    return upper.mul_(slots).bitwise_right_shift_(32)


def slots_of_table(rows: int, slots: int) -> Tensor:
    """Return the slot of each row of a table, int32 [rows], computed in parts to bound the temporary memory."""
    found = torch.empty(rows, dtype=torch.int32)
    for start in range(0, rows, _ROWS_AT_ONCE):
        part = found[start : start + _ROWS_AT_ONCE]
        part.copy_(slot_of(torch.arange(start, start + len(part)), slots))
    return found


def given_tables(shape: ModelSpec) -> list[int]:
    """Return the indices of the tables whose rows the first trainer sends."""
    return [index for index, table in enumerate(shape.tables) if table.family == GIVEN]


def first_values(table: SparseTable, table_index: int, seed: int, rows: Tensor) -> Tensor:
    """Return the initial values of rows of a table whose rows are not given.

    Args:
        table: The table, with its distribution.
        table_index: The table's index in the model spec; tables with the same distribution have different values.
        seed: The job's seed.
        rows: The row numbers, int64 [n].

    Returns:
        The values, [n, table.dim], of the table's dtype.

    Raises:
        ValueError: The table's rows are given, or its family of distributions is unknown.
    """
    dtype: torch.dtype = getattr(torch, table.dtype)
    if table.family == "constant":
        values = torch.full((len(rows), table.dim), table.first, dtype=dtype)
    elif table.family == "uniform":
        unit = _uniform(_words(table_index, seed, rows, table.dim))
        values = unit.mul_(table.second - table.first).add_(table.first).to(dtype)
    elif table.family == "normal":
        half = (table.dim + 1) // 2
        words = _words(table_index, seed, rows, 2 * half)
        normal = _normal(words[:, :half], words[:, half:])[:, : table.dim]
        values = normal.mul(table.second).add_(table.first).to(dtype)
    elif table.family == GIVEN:
        raise ValueError(f"table {table.name}: its rows are given by the first trainer, and these are not here")
    else:
        raise ValueError(f"table {table.name}: no family {table.family!r}; there are given, normal, uniform, constant")
    if table.zero_rows:
        values[torch.isin(rows, torch.tensor(table.zero_rows, dtype=torch.int64))] = 0
    return values


def _words(table_index: int, seed: int, rows: Tensor, width: int) -> Tensor:
    """Return 64 random bits for each (row, column): element row*width + column of the table's sequence."""
    key = _mix_word((_mix_word(seed & _WORD) + (table_index + 1) * _STRIDE) & _WORD)
    counter = rows.reshape(-1, 1) * width + torch.arange(1, width + 1, dtype=torch.int64)
    return _mix(counter.mul_(_signed(_STRIDE)).add_(_signed(key)))


def _uniform(words: Tensor) -> Tensor:
    """Return numbers in [0, 1), float64, from the 53 upper bits of the words."""
    return _shift_right(words, 11).to(torch.float64).mul_(_UNIT)


def _normal(first: Tensor, second: Tensor) -> Tensor:
    """Return two standard normal deviates for each pair of words: [n, half] and [n, half] -> [n, 2 * half]."""
    # Half a step is added, as the logarithm of 0 is infinite.
    radius = _log(_uniform(first).add_(_UNIT / 2)).mul_(-2).clamp_(min=0).sqrt_()
    # The angle is split into up to an eighth of a turn around 0 and a number of quarter turns; each step is exact.
    turn = _uniform(second).mul_(4)
    quarter = turn.add(0.5).floor_()
    angle = turn.sub_(quarter).mul_(math.pi / 2)
    square = angle * angle
    sine = _polynomial(_SINE, square).mul_(angle)
    cosine = _polynomial(_COSINE, square)
    quarter = quarter.to(torch.int64).bitwise_and_(3)
    odd, negative_cosine, negative_sine = quarter % 2 == 1, (quarter == 1) | (quarter == 2), quarter >= 2
    across = torch.where(odd, sine, cosine)
    along = torch.where(odd, cosine, sine)
    across = torch.where(negative_cosine, -across, across)
    along = torch.where(negative_sine, -along, along)
    return torch.cat([radius * across, radius * along], dim=1)


def _log(numbers: Tensor) -> Tensor:
    """Return the natural logarithm of numbers in (0, 1]."""
    fraction, exponent = torch.frexp(numbers)
    small = fraction < _SQRT_HALF
    fraction = torch.where(small, fraction * 2, fraction)
    power = exponent.to(torch.float64).sub_(small.to(torch.float64))
    ratio = (fraction - 1) / (fraction + 1)
    series = _polynomial(_LOG, ratio * ratio).mul_(ratio).mul_(2)
    return power.mul_(math.log(2)).add_(series)


def _polynomial(coefficients: list[float], argument: Tensor) -> Tensor:
    value = torch.full_like(argument, coefficients[0])
    for coefficient in coefficients[1:]:
        value.mul_(argument).add_(coefficient)
    return value


def _mix(words: Tensor) -> Tensor:
    words = (words ^ _shift_right(words, 30)).mul_(_signed(_FIRST_FACTOR))
    words = (words ^ _shift_right(words, 27)).mul_(_signed(_SECOND_FACTOR))
    return words ^ _shift_right(words, 31)


def _mix_word(word: int) -> int:
    word = ((word ^ (word >> 30)) * _FIRST_FACTOR) & _WORD
    word = ((word ^ (word >> 27)) * _SECOND_FACTOR) & _WORD
    return word ^ (word >> 31)


def _shift_right(words: Tensor, bits: int) -> Tensor:
    """Shift to the right logically; the shift of torch copies the sign."""
    return (words >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
