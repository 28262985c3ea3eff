"""The handler of evaluations: one trainer makes each evaluation, and all others receive its score.

An evaluation is identified by its epoch and by the number of the script's call within that epoch, so that calls are
distinct wherever in its loop a trainer makes them. The same applies to the values of a learning
rate scheduler.
"""

from __future__ import annotations

from shoal.master.state.job import JobState
from shoal.protocol.messages import Evaluate, Evaluated, EvaluateTurn, Metric

__all__ = ["EvaluationHandler"]


class EvaluationHandler:
    """Assigns evaluations to trainers and keeps the scores.

    Args:
        job: The job's state.
    """

    def __init__(self, job: JobState) -> None:
        self._job = job

    def evaluate(self, life: int, message: Evaluate) -> None:
        """Handle ``Evaluate``: assign the evaluation to the first trainer; the others wait for the score."""
        job = self._job
        view = job.trainers[life]
        job.evaluates = True
        place = (message.epoch, message.number)
        score = job.records.score(*place)
        view.evaluating = place if score is None else None
        self._reassign(life, but=place)
        if score is not None:
            job.send(view.connection, Evaluated(epoch=message.epoch, number=message.number, score=score))
        elif job.evaluators.setdefault(place, life) == life:
            job.send(view.connection, EvaluateTurn(epoch=message.epoch, number=message.number))

    def evaluated(self, life: int, message: Evaluated) -> None:
        """Handle ``Evaluated``: keep the first score and send it to all trainers that wait for it."""
        job = self._job
        place = (message.epoch, message.number)
        job.evaluators.pop(place, None)
        score = job.records.score(*place)
        if score is None:
            score = message.score
            job.records.evaluated(*place, score)
            again = f"evaluation {message.number + 1} of" if message.number else "evaluation after"
            # After its loop over the epochs a script evaluates the model of the last epoch.
            epoch = min(message.epoch + 1, job.epochs)
            job.event(f"{again} epoch {epoch}: {score}")
            job.moved()
        for view in job.trainers.values():
            # The sender of the score waits too: an earlier master may have assigned the evaluation to it.
            if view.evaluating == place or view.identity.life == life:
                view.evaluating = None
                job.send(view.connection, Evaluated(epoch=message.epoch, number=message.number, score=score))

    def removed(self, life: int) -> None:
        """Assign the evaluations of a trainer that has left or died to another trainer that waits for the score."""
        self._reassign(life)

    def measured(self, message: Metric) -> None:
        """Handle ``Metric``: record a value that the script passed to a scheduler."""
        self._job.records.measured(message.epoch, message.number, message.value)

    def _reassign(self, life: int, but: tuple[int, int] | None = None) -> None:
        job = self._job
        for place in [place for place, by in job.evaluators.items() if by == life and place != but]:
            del job.evaluators[place]
            waiting = next((view for view in job.trainers.values() if view.evaluating == place), None)
            if waiting is not None:
                job.evaluators[place] = waiting.identity.life
                job.send(waiting.connection, EvaluateTurn(epoch=place[0], number=place[1]))
