"""The handler of model files: for each ``save`` of the script, one trainer writes the current model.

A call is identified by its path, its epoch, and its number among the calls for that path within the epoch. A file that
was written for a later call also completes an earlier one: that trainer is behind, and the earlier model no longer exists.
"""

from __future__ import annotations

from shoal.master.state.job import JobState, TrainerView
from shoal.protocol.messages import Save, Saved, SaveTurn

__all__ = ["ModelFileHandler"]


class ModelFileHandler:
    """Assigns the writing of models to trainers, one at a time.

    Args:
        job: The job's state.
    """

    def __init__(self, job: JobState) -> None:
        self._job = job

    def save(self, life: int, message: Save) -> None:
        """Handle ``Save``: one trainer writes the model, the others wait."""
        job = self._job
        job.trainers[life].saving = message
        if job.saver == life:
            job.saver = None
        self._reply_all(message.path)
        self.next_saver()

    def saved(self, life: int, message: Saved) -> None:
        """Handle ``Saved``: record the file and reply to all trainers that wait for it."""
        job = self._job
        job.records.record_model_file(message.path, message.epoch, message.number)
        job.event(f"model written to {message.path}")
        if job.saver == life:
            job.saver = None
        view = job.trainers[life]
        if view.saving is None or view.saving.path != message.path:
            # The writer waits too: an earlier master may have assigned the file to it.
            job.send(view.connection, message)
        self._reply_all(message.path)
        self.next_saver()

    def next_saver(self) -> None:
        """Assign the next model file, unless a connected trainer is writing one."""
        job = self._job
        if job.saver is not None and job.saver in job.trainers:
            return
        job.saver = None
        for life, view in job.trainers.items():
            if view.saving is not None:
                job.saver = life
                request = view.saving
                job.send(view.connection, SaveTurn(path=request.path, epoch=request.epoch, number=request.number))
                return

    def _reply_all(self, path: str) -> None:
        """Reply to all trainers that wait for a file that is written at this path."""
        for view in self._job.trainers.values():
            if view.saving is not None and view.saving.path == path and self._is_written(view.saving):
                self._reply(view, view.saving)

    def _is_written(self, request: Save) -> bool:
        last = self._job.records.saved.get(request.path)
        return last is not None and last >= (request.epoch, request.number)

    def _reply(self, view: TrainerView, request: Save) -> None:
        view.saving = None
        self._job.send(view.connection, Saved(path=request.path, epoch=request.epoch, number=request.number))
