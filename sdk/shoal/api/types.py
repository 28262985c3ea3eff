"""Durations and quantities as Kubernetes writes them: strings with a unit, kept as they were written."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal
from typing import Any, Final

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

__all__ = ["Duration", "Quantity"]

_UNITS: Final = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600)}
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h))+")
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_QUANTITY: Final = re.compile(r"([+-]?\d+(?:\.\d*)?|[+-]?\.\d+)(?:([eE][+-]?\d+)|([KMGTPE]i|[numkMGTPE]?))")
_SCALES: Final = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    **{letter: Decimal(1000) ** power for power, letter in enumerate("kMGTPE", 1)},
    **{f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", 1)},
}


class _Text(str):
    """A string whose form is checked."""

    __slots__ = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        del source, handler
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def parse(cls, value: Any) -> Any:
        """Check and keep."""
        raise NotImplementedError


class Duration(_Text):
    """A length of time such as ``30s``, ``1m30s``, ``500ms`` or ``2h``."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: Any) -> Duration:
        """Check the form.

        Raises:
            ValueError: It is not a duration.
        """
        if isinstance(value, timedelta):
            value = f"{value // timedelta(milliseconds=1)}ms"
        if not isinstance(value, str) or not _DURATION.fullmatch(value):
            hint = f'; write "{value}s" for {value} seconds' if isinstance(value, int | float) else ""
            raise ValueError(f'{value!r} is not a duration such as "30s", "1m30s" or "500ms"{hint}')
        return cls(value)

    @property
    def seconds(self) -> float:
        """The length in seconds."""
        return float(sum(Decimal(number) * _UNITS[unit] for number, unit in _PART.findall(self)))


class Quantity(_Text):
    """An amount of a resource such as ``100m`` (of a core), ``1Gi`` or ``0.5``."""

    __slots__ = ()

    @classmethod
    def parse(cls, value: Any) -> Quantity:
        """Check the form; plain numbers are taken too.

        Raises:
            ValueError: It is not a quantity.
        """
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not _QUANTITY.fullmatch(value):
            raise ValueError(f'{value!r} is not a quantity such as "1", "500m" or "1Gi"')
        if cls(value).amount < 0:
            raise ValueError(f"{value!r} is negative")
        return cls(value)

    @property
    def amount(self) -> Decimal:
        """The exact amount, in units (cores, bytes, pieces)."""
        found = _QUANTITY.fullmatch(self)
        assert found is not None
        number, exponent, suffix = found.groups()
        return Decimal(number + (exponent or "")) * _SCALES[suffix or ""]
