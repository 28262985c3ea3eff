"""Durations and quantities as Kubernetes writes them: values with a unit that keep their written form."""

from __future__ import annotations

import re
from decimal import Decimal
from functools import total_ordering
from typing import Any, ClassVar, Final, Self

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

from shoal.api.errors import shown
from shoal.api.quantity import SHORT_QUANTITY, parse_quantity

__all__ = ["Duration", "Quantity"]

_LONGEST: Final = 40
_UNITS: Final = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600)}
_DURATION: Final = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h))+")
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_LONGEST_DURATION: Final = Decimal(100 * 365 * 86400)
_QUANTITY: Final = re.compile(SHORT_QUANTITY)
_MOST: Final = Decimal(2**63 - 1)


@total_ordering
class _Written:
    """An exact number that keeps its written form; compares by the number."""

    __slots__ = ("_number", "_text")
    _schema: ClassVar[JsonSchemaValue]

    def __init__(self, text: str) -> None:
        self._text = text
        self._number = self._parse(text)

    @staticmethod
    def _parse(text: str) -> Decimal:
        raise NotImplementedError

    @classmethod
    def _accept(cls, value: Any) -> Self:
        """Convert a manifest's value, or return an instance unchanged."""
        return value if isinstance(value, cls) else cls(value)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        del source, handler
        return core_schema.no_info_plain_validator_function(
            cls._accept, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        del schema, handler
        return dict(cls._schema)

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._text!r})"

    def __hash__(self) -> int:
        return hash(self._number)

    def __eq__(self, other: object) -> bool:
        return self._number == other._number if isinstance(other, type(self)) else NotImplemented

    def __lt__(self, other: object) -> bool:
        return self._number < other._number if isinstance(other, type(self)) else NotImplemented


class Duration(_Written):
    """A duration such as ``30s``, ``1m30s``, ``500ms`` or ``2h``; from 0 to 100 years.

    Raises:
        ValueError: It is not a duration.
    """

    __slots__ = ()
    _schema: ClassVar[JsonSchemaValue] = {"type": "string", "pattern": f"^{_DURATION.pattern}$", "maxLength": _LONGEST}

    @staticmethod
    def _parse(text: Any) -> Decimal:
        if not isinstance(text, str) or len(text) > _LONGEST or not _DURATION.fullmatch(text):
            bare = isinstance(text, int | float) and not isinstance(text, bool)
            hint = f'; write "{text}s" for {text} seconds' if bare else ""
            raise ValueError(f'{shown(text)} is not a duration such as "30s", "1m30s" or "500ms"{hint}')
        total = sum((Decimal(number) * _UNITS[unit] for number, unit in _PART.findall(text)), Decimal(0))
        if total > _LONGEST_DURATION:
            raise ValueError(f"{text!r} is longer than 100 years")
        return total

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return float(self._number)


class Quantity(_Written):
    """A quantity of a resource such as ``100m`` (of a core), ``1Gi`` or ``0.5``; plain numbers are accepted, too.

    The grammar is that of Kubernetes' ``resource.Quantity``; amounts above its maximum, 2^63 - 1, are refused.

    Raises:
        ValueError: The value is not a quantity, or it is negative or too large.
    """

    __slots__ = ()
    _schema: ClassVar[JsonSchemaValue] = {
        "x-kubernetes-int-or-string": True,
        "pattern": f"^{SHORT_QUANTITY}$",
        "maxLength": _LONGEST,
    }

    def __init__(self, text: str | float) -> None:
        super().__init__(str(text) if isinstance(text, int | float) and not isinstance(text, bool) else text)  # type: ignore[arg-type]

    @staticmethod
    def _parse(text: Any) -> Decimal:
        if not isinstance(text, str) or not _QUANTITY.fullmatch(text):
            raise ValueError(f'{shown(text)} is not a quantity such as "1", "500m" or "1Gi"')
        amount = parse_quantity(text, longest=_LONGEST).exact()
        if amount > _MOST:
            raise ValueError(f"{text!r} is too large; the most is 2^63 - 1")
        return amount

    @property
    def amount(self) -> Decimal:
        """Exact amount, in units (cores, bytes, pieces)."""
        return self._number
