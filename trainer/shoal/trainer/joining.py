"""``trainer.join``: returns the job of the process that a script runs in, or a job of one process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from shoal.protocol import environment
from shoal.trainer.job import Job, seed_everything
from shoal.trainer.process import check_main_thread
from shoal.trainer.refusal import Refused

__all__ = ["join"]

_began_in = Path.cwd()
"""The directory at import, before the script changes it, as some libraries do for every run."""
_joined: set[int] = set()
"""The ID of the process that has joined; a forked child has another ID."""


def join(*, epochs: int = 1, seed: int = 0) -> Job:
    """Join the job of this process; if there is none, train alone in this process.

    A process belongs to a job if the operator or ``shoal`` set its environment variables. The generators of torch, ``random``
    and numpy are seeded, so that all trainers begin with the same model. ``docs/scripts.md`` describes what a script may do
    and what is refused.

    Args:
        epochs: Number of epochs, at least 1; every sample counts once in each. A value in the manifest takes precedence.
            Default: 1.
        seed: Seed of the order of samples and of the initial model, from 0 to 2^63 - 1. A value in the manifest takes
            precedence. Default: 0.

    Returns:
        The job.

    Raises:
        Refused: An argument is out of bounds, the call is not in the main thread, it is the second one in this process, or
            another process already runs this trainer of the job.
    """
    _check(epochs, seed)
    check_main_thread()
    if os.getpid() in _joined:
        raise Refused("trainer.join() is called a second time in one process; keep the job that it gave")
    _joined.add(os.getpid())
    if environment.MASTER in os.environ:
        from shoal.trainer.distributed import DistributedJob  # noqa: PLC0415 - only needed in a job

        folder = os.environ.get(environment.FOLDER)
        return DistributedJob.from_environment(epochs=epochs, seed=seed, folder=Path(folder) if folder else _began_in)
    from shoal.trainer.alone import AloneJob  # noqa: PLC0415 - only needed without a job

    seed_everything(seed)
    return AloneJob(epochs=epochs, seed=seed)


def _check(epochs: Any, seed: Any) -> None:
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
        raise Refused(f"join got epochs={epochs!r}; it must be a whole number of at least 1")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise Refused(f"join got seed={seed!r}; it must be a whole number from 0 to 2**63 - 1")
