"""The parser of Kubernetes' quantities: numbers with a unit such as ``100m``, ``1Gi`` or ``1e3``.

The grammar is that of ``resource.Quantity`` in Kubernetes' apimachinery. The cost of parsing and of rounding is bounded by the
length of the text, also for exponents with many digits.
"""

from __future__ import annotations

import re
from decimal import Context, Decimal
from typing import Final, NamedTuple

from shoal.api.errors import shown

__all__ = ["SHORT_QUANTITY", "ParsedQuantity", "parse_quantity"]

_NUMBER: Final = r"([+-]?)([0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_SUFFIX: Final = "([KMGTPE]i|[numkMGTPE])"
_GRAMMAR: Final = re.compile(rf"{_NUMBER}(?:[eE]([+-]?[0-9]+)|{_SUFFIX})?", re.ASCII)
SHORT_QUANTITY: Final = rf"{_NUMBER}(?:[eE]([+-]?[0-9]{{1,2}})|{_SUFFIX})?"
"""Regular expression of a quantity whose exponent has at most two digits; a manifest of Shoal accepts no longer one."""
_TENS: Final = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_TWOS: Final = {f"{letter}i": 10 * power for power, letter in enumerate("KMGTPE", 1)}
_FURTHEST: Final = 300
"""Larger exponents count as this one: no text that is read here is long enough for the difference to change a result."""
_EXACT: Final = Context(prec=400)


class ParsedQuantity(NamedTuple):
    """An exact quantity: ``digits`` x 10^``tens`` x 2^``twos``; at least 0."""

    digits: int
    tens: int
    twos: int

    def exact(self) -> Decimal:
        """Return the exact amount in units."""
        return _EXACT.multiply(Decimal(self.digits).scaleb(self.tens, _EXACT), Decimal(1 << self.twos))

    def thousandths(self, *, up: bool) -> int:
        """Return the amount in thousandths of a unit, rounded up or down."""
        tens = self.tens + 3
        above: int = self.digits * 10 ** max(tens, 0) << self.twos
        below: int = 10 ** max(-tens, 0)
        return -(-above // below) if up else above // below


def parse_quantity(text: str, *, longest: int) -> ParsedQuantity:
    """Parse a quantity.

    Args:
        text: The quantity as written in a manifest.
        longest: Maximum length of the text in characters, at most 100.

    Raises:
        ValueError: The text is not a quantity, it is longer than `longest`, or the amount is negative.
    """
    found = _GRAMMAR.fullmatch(text) if len(text) <= longest else None
    if found is None:
        raise ValueError(f'{shown(text)} is not a quantity such as "1", "500m" or "1Gi"')
    sign, number, exponent, suffix = found.groups()
    before, _, behind = number.partition(".")
    digits = int(before + behind)
    if digits and sign == "-":
        raise ValueError(f"{shown(text)} is negative")
    tens = min(max(int(exponent), -_FURTHEST), _FURTHEST) if exponent else _TENS.get(suffix, 0)
    return ParsedQuantity(digits, tens - len(behind), _TWOS.get(suffix, 0))
