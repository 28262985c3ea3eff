"""Messages about the script's loop: why a script is refused, and why its job is not complete."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

__all__ = [
    "EPOCHS_BEFORE_PREPARE",
    "EPOCHS_TWICE",
    "OLD_ITERATOR",
    "OUTSIDE_OF_EPOCHS",
    "PREPARE_TWICE",
    "SCHEDULER_FIRST",
    "STEP_OUTSIDE_OF_EPOCHS",
    "STEP_OUTSIDE_OF_LOOP",
    "foreign_metric",
    "foreign_step",
    "groups_changed",
    "left_epochs",
    "second_pass",
    "second_step",
    "unfinished",
    "unfinished_epoch",
    "untrained_pass",
    "used_between",
]

PREPARE_TWICE = (
    "prepare is called a second time: a job trains one model by one pass over the data. Put several models into one "
    "nn.ModuleDict, and give their optimizers as a list"
)
EPOCHS_BEFORE_PREPARE = "job.epochs() before job.prepare(...): prepare the model, the optimizer and the loader first"
EPOCHS_TWICE = "job.epochs() is called a second time: it gives all epochs; say how many by epochs="
OLD_ITERATOR = "an iterator of the loader is used after another one was begun; use one at a time"
OUTSIDE_OF_EPOCHS = (
    "the loader is iterated outside of `for epoch in job.epochs():`, where batches belong to no epoch; put the loop into "
    "it, or look at the data by a DataLoader of your own"
)
STEP_OUTSIDE_OF_LOOP = (
    "optimizer.step() outside of the loop over the loader that prepare returned: a step belongs to a batch of the job; "
    "iterate that loader in `for epoch in job.epochs():`"
)
STEP_OUTSIDE_OF_EPOCHS = (
    "optimizer.step() outside of `for epoch in job.epochs():`; put the loop over the loader into it"
)
SCHEDULER_FIRST = "scheduler.step() is called before optimizer.step(); call it behind"


def unfinished_epoch(epoch: int) -> str:
    """Return the refusal of a loop over the loader that was left before its end."""
    return (
        f"epoch {epoch + 1}: the loop over the loader was left before its end (break, or it was never begun), but every "
        "sample counts once in every epoch. Take the batches from the loader that prepare returned. To end the job early call job.stop('why') before the break; to train on a "
        "part of the data give prepare a torch.utils.data.Subset; a second trainer begins at the job's current epoch by "
        "itself"
    )


def second_pass(epoch: int, *, trained: bool) -> str:
    """Return the refusal of a second pass over the loader in one epoch.

    Args:
        epoch: The epoch, from 0.
        trained: Whether the first pass trained.
    """
    if not trained:
        return untrained_pass(epoch)
    return (
        f"epoch {epoch + 1}: the loader is iterated a second time in one epoch, in which every sample counts once. To "
        "score the model use a DataLoader of your own in job.evaluate; to train longer give join(epochs=...) more epochs"
    )


def untrained_pass(epoch: int) -> str:
    """Return the warning about a pass without training, which is correct only if the script skips all its batches."""
    return (
        f"the loader was iterated in epoch {epoch + 1} without a backward pass of the model that prepare got: these "
        "batches count as skipped, and an epoch's samples come once. Train in that loop; look at the data (statistics, accuracy) by a DataLoader "
        "of your own"
    )


def second_step(optimizer: Any) -> str:
    """Return the refusal of a second step of an optimizer for one batch."""
    return (
        f"{type(optimizer).__name__}.step() is called a second time for one batch: a job makes one step of each optimizer "
        "for a batch, so that it counts once. Give join(epochs=...) more epochs instead of repeating a batch; add several "
        "losses up before one step"
    )


def foreign_step(optimizer: Any) -> str:
    """Return the refusal of a step of an optimizer that was not passed to ``prepare``."""
    return (
        f"{type(optimizer).__name__}.step() of an optimizer that prepare did not get: what it trains would be trained in "
        "each trainer by itself, and be lost with it. Put what it trains into the model (several models into one "
        "nn.ModuleDict), and give prepare the optimizers as a list"
    )


def foreign_metric(value: float) -> str:
    """Return the refusal of a metric for ReduceLROnPlateau that is not a score of ``job.evaluate``."""
    return (
        f"ReduceLROnPlateau.step({value!r}): the number is not what the last job.evaluate gave, so every trainer would see "
        "another one; give it that score, or a value of its dict"
    )


def left_epochs(epoch: int, epochs: int) -> str:
    """Return the refusal of a save after the script left the loop over the epochs."""
    return (
        f"the script left `for epoch in job.epochs():` in epoch {epoch + 1} of {epochs}; to end the job early, with the "
        "model of that moment, call job.stop('why') first"
    )


def unfinished(epoch: int, epochs: int, *, prepared: bool, begun: bool, in_batch: bool) -> str:
    """Return why the job is not complete although the script ends.

    Args:
        epoch: The script's current epoch, from 0.
        epochs: Number of epochs of the job.
        prepared: Whether ``prepare`` was called.
        begun: Whether the loop over the epochs was begun.
        in_batch: Whether the script ends within a batch.
    """
    if not prepared:
        return "the script ended without job.prepare(...): it joined the job and trained nothing"
    if not begun:
        return "the script ended without `for epoch in job.epochs():`"
    if in_batch:
        return (
            f"the script ended in the middle of a batch of epoch {epoch + 1}: an exception may have been caught around the "
            "loop, or the process ended by sys.exit()"
        )
    return (
        f"the script ended in epoch {epoch + 1} of {epochs}: an exception may have been caught around the loop, the loop "
        "was left, or the process ended by sys.exit(); to end a job early call job.stop('why')"
    )


def used_between(used: str, optimizer: Optimizer) -> str:
    """Return the refusal of a step after the model was used between two optimizers' steps for a batch."""
    return (
        f"{used} comes after one optimizer's step and before the step of {type(optimizer).__name__} for the same batch, but "
        "the steps of one batch take effect together. Compute all losses first and make all steps then, or train the parts in turn, a batch "
        "each (a GAN); evaluate and save behind all steps, before them, or behind the loop"
    )


def groups_changed(optimizer: Optimizer) -> str:
    """Return the refusal of an optimizer whose parameter groups changed after ``prepare``."""
    return (
        f"the param_groups of {type(optimizer).__name__} were changed after prepare; give the optimizer all parameters "
        "before, and freeze or unfreeze them by requires_grad_"
    )
