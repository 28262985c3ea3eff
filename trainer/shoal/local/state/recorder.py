"""Writes the record and the logged values of a running job into its state folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from shoal.api.metric_series import REPORTED_SCORES, EpochScore, MetricSeries, score_values
from shoal.local.state.job_record import JobRecord
from shoal.local.state.state_folder import StateFolder
from shoal.protocol.messages import JobProgress

__all__ = ["Recorder"]

_RECORD_SECONDS: Final = 0.5
_METRICS_SECONDS: Final = 5.0


class Recorder:
    """Records what happens to a job.

    Each write replaces a file, at most every 0.5 s for events and changes and every 5 s for logged values; a killed run
    loses what it has not written.

    Args:
        state: The job's state folder, locked and prepared.
        clock: Seconds since 1970. Default: `time.time`.
    """

    def __init__(self, state: StateFolder, *, clock: Callable[[], float] = time.time) -> None:
        self._state = state
        self._clock = clock
        self._record = JobRecord(state.record())
        self._series = MetricSeries.from_json(state.metrics().decode(errors="replace"))
        self._metrics_changed = False
        self._record_due = self._metrics_due = 0.0

    def add_event(self, level: str, text: str) -> None:
        """Record an event."""
        self._record.add_event(self._clock(), level, text)

    def resize(self, trainers: int, cause: str, by: str = "") -> None:
        """Record a change of the desired number of trainers."""
        self._record.resize(self._clock(), trainers, cause, by)

    def progressed(self, progress: JobProgress) -> None:
        """Record the values in a progress report."""
        now = self._clock()
        if progress.state == "Running":
            self._record.begin(now)
        scores = [
            EpochScore(each.epoch + 1, score_values(each.score)) for each in progress.evaluations[-REPORTED_SCORES:]
        ]
        if progress.values or scores:
            self._metrics_changed |= self._series.add(
                time=datetime.fromtimestamp(now, UTC),
                epoch=min(progress.epoch + 1, progress.epochs),
                samples=progress.samples_total,
                values=progress.values,
                scores=scores,
            )

    def write(self, *, at_once: bool = False) -> None:
        """Write what has changed, if the last write is old enough.

        Args:
            at_once: Whether it is written regardless of the last write. Default: false.
        """
        # A full disk must not end the job.
        with suppress(OSError):
            self._write(at_once=at_once)

    def _write(self, *, at_once: bool) -> None:
        now = time.monotonic()
        if self._record.changed and (at_once or now >= self._record_due):
            self._record_due = now + _RECORD_SECONDS
            self._state.write_record(self._record.encode())
        if self._metrics_changed and (at_once or now >= self._metrics_due):
            self._metrics_due = now + _METRICS_SECONDS
            self._metrics_changed = False
            self._state.write_metrics(self._series.to_json().encode())
