"""What a parameter has to keep after each step: bounds of its values, and a largest norm of its rows."""

from __future__ import annotations

from torch import Tensor

from shoal.protocol.messages import DenseParameter

__all__ = ["constrain", "is_constrained"]


def is_constrained(parameter: DenseParameter) -> bool:
    """Whether a step is followed by `constrain`."""
    return bool(parameter.clamp or parameter.max_norm)


def constrain(values: Tensor, parameter: DenseParameter) -> None:
    """Bring values of a parameter into its bounds, and then its rows to their largest norm, in place.

    Args:
        values: Any of them; with a largest norm, whole rows: [rows, *row].
        parameter: What it has to keep.
    """
    if any(bound is not None for bound in parameter.clamp):
        low, high = parameter.clamp
        values.clamp_(low, high)
    if parameter.max_norm:
        values.renorm_(2, 0, parameter.max_norm)
