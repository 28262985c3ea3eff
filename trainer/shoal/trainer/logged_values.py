"""Values of ``job.log`` and scores of ``job.evaluate``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Values", "numbers", "scored"]

NAMES, NAME_CHARACTERS = 100, 100
"""Maximum number of names of logged values, and maximum length of a name in characters."""
SCORE_CHARACTERS = 64_000
"""Maximum length of a score as JSON text. The master stores up to 1,000 scores in etcd."""


class Values:
    """The latest logged values. Numbers are available immediately, tensors on a GPU when their asynchronous copy is done."""

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}
        self.not_finite = 0
        self._coming: list[tuple[str, Tensor, Any]] = []
        self._names: set[str] = set()

    def add(self, values: dict[str, Any]) -> None:
        """Add values that the script logs.

        Raises:
            TypeError: A value is neither a number nor a tensor of one element.
            ValueError: There are too many names, or one is too long.
        """
        for name, value in values.items():
            if name not in self._names:
                self._check_name(name)
            if isinstance(value, Tensor):
                self._add_tensor(name, value.detach())
            elif isinstance(value, int | float):
                self._arrived(name, float(value))
            elif getattr(value, "size", 0) == 1 and hasattr(
                value, "item"
            ):  # numpy scalars and arrays, and similar types
                self._arrived(name, float(value.item()))
            else:
                raise TypeError(f"job.log({name}=...) got a {type(value).__name__}; give it one number")

    def _check_name(self, name: str) -> None:
        if len(name) > NAME_CHARACTERS:
            raise ValueError(f"job.log got a name of {len(name)} characters; at most {NAME_CHARACTERS} are allowed")
        if len(self._names) == NAMES:
            raise ValueError(
                f"job.log got {name!r} as its name number {NAMES + 1}: a name stands for a series of values, as in "
                f"job.log(loss=...), and at most {NAMES} are allowed"
            )
        self._names.add(name)

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
        """Add the tensors whose copies are done."""
        while self._coming and self._coming[0][2].query():
            name, value, _ = self._coming.pop(0)
            self._arrived(name, float(value))

    def _arrived(self, name: str, value: float) -> None:
        self.latest[name] = value
        if not math.isfinite(value):
            self.not_finite += 1


def scored(model: nn.Module, score: Callable[[Any], Any]) -> str:
    """Run a script's evaluation on the model, in eval mode and without gradients; return the score as JSON text.

    Raises:
        TypeError: JSON cannot represent the score.
        ValueError: The score is longer than ``SCORE_CHARACTERS``.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            result = score(model)
    finally:
        model.train(training)
    text = json.dumps(result, default=_plain)
    if len(text) > SCORE_CHARACTERS:
        raise ValueError(
            f"evaluate's function gave {len(text):,} characters of JSON, and a score has {SCORE_CHARACTERS:,} at most; give "
            "the numbers by which the model is judged, and write the rest to a file"
        )
    return text


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"evaluate's function gave a {type(value).__name__}; give numbers, or a dict of numbers")


def numbers(score: Any) -> frozenset[float]:
    """Return all numbers in a score."""
    if isinstance(score, bool | int | float):
        return frozenset([float(score)])
    parts = score.values() if isinstance(score, dict) else score if isinstance(score, list) else ()
    return frozenset(number for part in parts for number in numbers(part))
