"""The master's events as `shoal run` tells them. Pure.

The master writes each event for its log, as it happens to it. Here the runner stands beside: it has seen every process
end already, so it does not say that twice; and what a lost server costs is told once, not once per slot.
"""

from __future__ import annotations

import re
from typing import Final

from shoal.local.view.formatting import evaluated, plain
from shoal.protocol.messages import JobProgress

__all__ = ["Events"]

Line = tuple[str, str]
"""Level and text."""

_SCORED: Final = re.compile(r"evaluation (after|\d+ of) epoch ")
_TOLD_BY_THE_RUNNER: Final = re.compile(r"(trainer|pserver)-\d+ (left|is gone without a word)")
_BACK: Final = re.compile(r"(\d+) batches come back: slots .* were restored without them")
_GATHER_SECONDS: Final = 1.0
"""A lost server's slots are restored one after the other, in less."""


class Events:
    """Finds what is new in each progress."""

    def __init__(self) -> None:
        self._generation = 0
        self._number = 0
        self._scores: dict[tuple[int, int], str] | None = None
        self._back = 0
        self._back_due = 0.0

    def new(self, progress: JobProgress, now: float) -> list[Line]:
        """What to tell after another progress, in the order in which it happened."""
        if progress.generation != self._generation:
            self._generation, self._number = progress.generation, 0
        if self._scores is None:
            # A job that goes on: `shoal status` has what was scored before.
            fresh = any(_SCORED.match(text) for _, _, _, text in progress.events)
            self._scores = {} if fresh else {(e.epoch, e.number): e.score for e in progress.evaluations}
        lines: list[Line] = []
        for number, _, level, text in progress.events:
            if number > self._number:
                self._number = number
                lines += self._line(level, text, progress, now)
        return [*lines, *self._new_scores(progress), *self.due(now)]

    def due(self, now: float) -> list[Line]:
        """What was gathered, when nothing more is to be expected of it."""
        if not self._back or now < self._back_due:
            return []
        back, self._back = self._back, 0
        batches = "1 batch is" if back == 1 else f"{back:,} batches are"
        return [("warning", f"{batches} computed again: the restored server lacked them")]

    def _line(self, level: str, text: str, progress: JobProgress, now: float) -> list[Line]:
        if _SCORED.match(text):
            return self._new_scores(progress)
        if _TOLD_BY_THE_RUNNER.fullmatch(text):
            return []
        found = _BACK.fullmatch(text)
        if found is None:
            return [(level, plain(text))]
        if not self._back:
            self._back_due = now + _GATHER_SECONDS
        self._back += int(found[1])
        return []

    def _new_scores(self, progress: JobProgress) -> list[Line]:
        """Those that were not told yet; one that was made again is new."""
        assert self._scores is not None
        lines = []
        for evaluation in progress.evaluations:
            place = (evaluation.epoch, evaluation.number)
            if self._scores.get(place) != evaluation.score:
                self._scores[place] = evaluation.score
                lines.append(("info", evaluated(evaluation, progress.epochs)))
        return lines
