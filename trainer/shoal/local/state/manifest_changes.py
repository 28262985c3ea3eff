"""Checks whether a job can resume with a changed manifest. Pure.

The fields that the account of samples depends on (order, slots, committed epochs) must not change; all others may
change between two runs.
"""

from __future__ import annotations

from shoal.api import TrainingJob

__all__ = ["notes", "refusals"]

_HINT = "or start over with --fresh"


def refusals(old: TrainingJob, new: TrainingJob) -> list[str]:
    """Return the reasons why the job cannot resume with the new manifest; empty if it can."""
    found = []
    if new.spec.seed != old.spec.seed:
        found.append(
            f"spec.seed: the job began with {_or_script(old.spec.seed)}, which determines the order of its samples; "
            f"it cannot become {_or_script(new.spec.seed)}: set it back, {_HINT}"
        )
    if new.servers != old.servers:
        found.append(
            f"spec.parameterServer.replicas: the job began with {old.servers}, which its parameters are divided among; "
            f"it cannot become {new.servers}: set it back, {_HINT}"
        )
    if (new.spec.epochs or 0) < (old.spec.epochs or 0):
        found.append(
            f"spec.epochs: the job began with {old.spec.epochs}; it may be raised, "
            f"but not become {_or_script(new.spec.epochs)}: raise it, {_HINT}"
        )
    return found


def notes(old: TrainingJob, new: TrainingJob) -> list[str]:
    """Return messages about accepted changes."""
    found = []
    if [*new.spec.command, *new.spec.args] != [*old.spec.command, *old.spec.args]:
        found.append("the command has changed; the training resumes with the present model")
    if (new.spec.epochs or 0) > (old.spec.epochs or 0):
        found.append(f"epochs: {new.spec.epochs} instead of {_or_script(old.spec.epochs)}")
    return found


def _or_script(value: int | None) -> str:
    return "the script's own" if value is None else str(value)
