"""Values on their way to a log, and scores."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Values", "numbers", "scored"]


class Values:
    """Logged values: numbers at once; tensors on a GPU when their copy has arrived, without waiting for it."""

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}
        self.not_finite = 0
        self._coming: list[tuple[str, Tensor, Any]] = []

    def add(self, values: dict[str, Any]) -> None:
        """Take what the script logs.

        Raises:
            TypeError: A value is neither a number nor a tensor of one element.
        """
        for name, value in values.items():
            if isinstance(value, Tensor):
                self._add_tensor(name, value.detach())
            elif isinstance(value, int | float):
                self._arrived(name, float(value))
            elif getattr(value, "size", 0) == 1 and hasattr(value, "item"):  # of numpy, and what is made like it
                self._arrived(name, float(value.item()))
            else:
                raise TypeError(f"job.log({name}=...) got a {type(value).__name__}; give it one number")

    def _add_tensor(self, name: str, value: Tensor) -> None:
        if value.numel() != 1:
            raise TypeError(f"job.log({name}=...) got a tensor of {value.numel()} elements; give it one number")
        if value.device.type != "cuda":
            self._arrived(name, float(value))
            return
        copied = torch.empty((), dtype=value.dtype, pin_memory=True)
        copied.copy_(value.reshape(()), non_blocking=True)
        event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._coming.append((name, copied, event))

    def collect(self) -> None:
        """Take what has arrived meanwhile."""
        while self._coming and self._coming[0][2].query():
            name, value, _ = self._coming.pop(0)
            self._arrived(name, float(value))

    def _arrived(self, name: str, value: float) -> None:
        self.latest[name] = value
        if not math.isfinite(value):
            self.not_finite += 1


def scored(model: nn.Module, score: Callable[[Any], Any]) -> str:
    """Run a script's evaluation on the model: in eval mode, without gradients; the score as JSON text.

    Raises:
        TypeError: The score cannot be written as JSON.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            result = score(model)
    finally:
        model.train(training)
    return json.dumps(result, default=_plain)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"evaluate's function gave a {type(value).__name__}; give numbers, or a dict of numbers")


def numbers(score: Any) -> frozenset[float]:
    """All numbers in a score."""
    if isinstance(score, bool | int | float):
        return frozenset([float(score)])
    parts = score.values() if isinstance(score, dict) else score if isinstance(score, list) else ()
    return frozenset(number for part in parts for number in numbers(part))
