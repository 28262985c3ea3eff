"""Constraints of a parameter after each step: bounds of its values, and the largest norm of its rows."""

from __future__ import annotations

from torch import Tensor

from shoal.protocol.messages import DenseParameter

__all__ = ["constrain", "is_constrained"]


def is_constrained(parameter: DenseParameter) -> bool:
    """Return whether a parameter has constraints, so that `constrain` must follow each step."""
    return bool(parameter.clamp or parameter.max_norm)


def constrain(values: Tensor, parameter: DenseParameter) -> None:
    """Clamp values of a parameter to its bounds, then scale its rows down to their largest norm, in place.

    Args:
        values: Values of the parameter, of any shape; with a largest norm whole rows, [rows, *row].
        parameter: The parameter with its constraints.
    """
    if any(bound is not None for bound in parameter.clamp):
        low, high = parameter.clamp
        values.clamp_(low, high)
    if parameter.max_norm:
        values.renorm_(2, 0, parameter.max_norm)
