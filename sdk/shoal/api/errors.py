"""Errors in a manifest: every problem with its field's path and the fix."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["ManifestError", "Problem", "RulesBrokenError", "shown"]

_LONGEST: Final = 80


@dataclass(frozen=True)
class Problem:
    """One problem of a manifest.

    Attributes:
        path: Path of the field, such as ``spec.trainer.minReplicas``; empty for the whole file.
        text: What is wrong, and the fix.
        line: Line in the file, from 1. Default: 0, unknown.
    """

    path: str
    text: str
    line: int = 0

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{where}{self.path}: {self.text}" if self.path else f"{where}{self.text}"


class ManifestError(ValueError):
    """A manifest is invalid; ``problems`` lists everything that is wrong with it."""

    def __init__(self, problems: Sequence[Problem], *, source: str = "") -> None:
        self.problems = list(problems)
        self.source = source
        head = f"{source}: " if source else ""
        super().__init__("\n".join(f"{head}{problem}" for problem in self.problems))


class RulesBrokenError(ValueError):
    """Fields of one part contradict each other; the problems' paths are relative to that part."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(str(problem) for problem in self.problems))


def shown(value: Any) -> str:
    """Format a value for a message: null and booleans as in YAML, cut at 80 characters."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
