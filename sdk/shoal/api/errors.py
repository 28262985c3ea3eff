"""What is wrong with a manifest, for people: every problem with its field's path, and the fix."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ManifestError", "Problem"]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    ``path`` is the field (``spec.trainer.minReplicas``), empty for the whole file; ``line`` counts from 1, 0 if unknown.
    """

    path: str
    text: str
    line: int = 0

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{where}{self.path}: {self.text}" if self.path else f"{where}{self.text}"


class ManifestError(ValueError):
    """A manifest that cannot be taken; ``problems`` has everything that is wrong with it."""

    def __init__(self, problems: list[Problem], *, source: str = "") -> None:
        self.problems = problems
        self.source = source
        head = f"{source}: " if source else ""
        lines = [f"{head}{problem}" for problem in problems]
        super().__init__("\n".join(lines))
