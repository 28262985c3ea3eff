"""Selects the master's events that `shoal run` prints. Pure.

The master writes all events into its log. The runner prints every exit of a process itself, so those events are left
out here; and the cost of a lost server is printed once, not once per slot.
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
_PRINTED_BY_THE_RUNNER: Final = re.compile(r"(trainer|pserver)-\d+ (left|disconnected without leaving)")
_REOPENED: Final = re.compile(r"(\d+) batches come back: slots .* were restored without them")
_GATHER_SECONDS: Final = 1.0
"""Seconds during which events about a lost server are summed up: its slots are restored one by one, in less time."""


class Events:
    """Finds the new events and scores in each progress report."""

    def __init__(self) -> None:
        self._generation = 0
        self._number = 0
        self._scores: dict[tuple[int, int], str] | None = None
        self._reopened = 0
        self._reopened_due = 0.0

    def new(self, progress: JobProgress, now: float) -> list[Line]:
        """Return the lines to print after a progress report, in the order of the events."""
        if progress.generation != self._generation:
            self._generation, self._number = progress.generation, 0
        if self._scores is None:
            # A resumed job: earlier scores are not printed again; `shoal status` shows them.
            fresh = any(_SCORED.match(text) for _, _, _, text in progress.events)
            self._scores = {} if fresh else {(e.epoch, e.number): e.score for e in progress.evaluations}
        lines: list[Line] = []
        for number, _, level, text in progress.events:
            if number > self._number:
                self._number = number
                lines += self._line(level, text, progress, now)
        return [*lines, *self._new_scores(progress), *self.due(now)]

    def due(self, now: float) -> list[Line]:
        """Return the summed-up line about a lost server when its time has passed."""
        if not self._reopened or now < self._reopened_due:
            return []
        reopened, self._reopened = self._reopened, 0
        batches = "1 batch is" if reopened == 1 else f"{reopened:,} batches are"
        return [("warning", f"{batches} computed again: the restored server lacked them")]

    def _line(self, level: str, text: str, progress: JobProgress, now: float) -> list[Line]:
        if _SCORED.match(text):
            return self._new_scores(progress)
        if _PRINTED_BY_THE_RUNNER.fullmatch(text):
            return []
        found = _REOPENED.fullmatch(text)
        if found is None:
            return [(level, plain(text))]
        if not self._reopened:
            self._reopened_due = now + _GATHER_SECONDS
        self._reopened += int(found[1])
        return []

    def _new_scores(self, progress: JobProgress) -> list[Line]:
        """Return the scores that were not printed yet; a changed score is printed again."""
        assert self._scores is not None
        lines = []
        for evaluation in progress.evaluations:
            place = (evaluation.epoch, evaluation.number)
            if self._scores.get(place) != evaluation.score:
                self._scores[place] = evaluation.score
                lines.append(("info", evaluated(evaluation, progress.epochs)))
        return lines
