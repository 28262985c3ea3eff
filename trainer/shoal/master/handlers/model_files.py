"""The desk for models' files: each call of the script writes the model of its moment, by one trainer.

A call is known by its path, its epoch, and its number among the calls for that path within the epoch. What was written
for a later call serves an earlier one too: that trainer is behind, and its moment has passed.
"""

from __future__ import annotations

from shoal.master.state.job import JobState, TrainerView
from shoal.protocol.messages import Save, Saved, SaveTurn

__all__ = ["ModelFileHandler"]


class ModelFileHandler:
    """Has models written, one at a time.

    Args:
        job: The job's state.
    """

    def __init__(self, job: JobState) -> None:
        self._job = job

    def save(self, life: int, message: Save) -> None:
        """The script wants the model written: one trainer does it, the others wait."""
        job = self._job
        job.trainers[life].saving = message
        if job.saver == life:
            job.saver = None
        self._tell(message.path)
        self.next_saver()

    def saved(self, life: int, message: Saved) -> None:
        """The model is written."""
        job = self._job
        job.records.wrote(message.path, message.epoch, message.number)
        job.event(f"model written to {message.path}")
        if job.saver == life:
            job.saver = None
        view = job.trainers[life]
        if view.saving is None or view.saving.path != message.path:
            # Who wrote it waits, too: it may have got its turn from an earlier master.
            job.send(view.connection, message)
        self._tell(message.path)
        self.next_saver()

    def next_saver(self) -> None:
        """Somebody waits for a model that nobody writes: the saver died, or another call is next."""
        job = self._job
        if job.saver is not None and job.saver in job.trainers:
            return
        job.saver = None
        for life, view in job.trainers.items():
            if view.saving is not None:
                job.saver = life
                wanted = view.saving
                job.send(view.connection, SaveTurn(path=wanted.path, epoch=wanted.epoch, number=wanted.number))
                return

    def _tell(self, path: str) -> None:
        """Whoever waits for what stands at a path by now."""
        for view in self._job.trainers.values():
            if view.saving is not None and view.saving.path == path and self._stands(view.saving):
                self._answer(view, view.saving)

    def _stands(self, wanted: Save) -> bool:
        last = self._job.records.saved.get(wanted.path)
        return last is not None and last >= (wanted.epoch, wanted.number)

    def _answer(self, view: TrainerView, wanted: Save) -> None:
        view.saving = None
        self._job.send(view.connection, Saved(path=wanted.path, epoch=wanted.epoch, number=wanted.number))
