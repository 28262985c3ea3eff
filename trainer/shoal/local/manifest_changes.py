"""May a job that began with one manifest go on with another? Pure.

What the account of samples rests on (order, slots, epochs done) must stay; everything else may change between two runs.
"""

from __future__ import annotations

from shoal.api import TrainingJob

__all__ = ["notes", "refusals"]

_HINT = "or start over with --fresh"


def refusals(old: TrainingJob, new: TrainingJob) -> list[str]:
    """Why the job cannot go on with the new manifest; empty if it can."""
    found = []
    if new.spec.seed != old.spec.seed:
        found.append(
            f"spec.seed: the job began with {_or_script(old.spec.seed)}, and the order of its samples follows from it; "
            f"it cannot become {_or_script(new.spec.seed)}: set it back, {_HINT}"
        )
    if new.servers != old.servers:
        found.append(
            f"spec.parameterServer.replicas: the job began with {old.servers}, and its parameters are cut accordingly; "
            f"it cannot become {new.servers}: set it back, {_HINT}"
        )
    if (new.spec.epochs or 0) < (old.spec.epochs or 0):
        found.append(
            f"spec.epochs: the job began with {old.spec.epochs}; it may grow, "
            f"not become {_or_script(new.spec.epochs)}: raise it, {_HINT}"
        )
    return found


def notes(old: TrainingJob, new: TrainingJob) -> list[str]:
    """What the user should be told about changes that are accepted."""
    found = []
    if [*new.spec.command, *new.spec.args] != [*old.spec.command, *old.spec.args]:
        found.append("the command has changed; the model goes on from where it was")
    if (new.spec.epochs or 0) > (old.spec.epochs or 0):
        found.append(f"epochs: {new.spec.epochs} instead of {_or_script(old.spec.epochs)}")
    return found


def _or_script(value: int | None) -> str:
    return "the script's own" if value is None else str(value)
