"""How a script gets its job: that of the process it runs in, or one of its own."""

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
"""Before the script changes its directory, as some libraries do for every run."""
_joined: set[int] = set()
"""The process that has joined, by its id: a forked child has not."""


def join(*, epochs: int = 1, seed: int = 0) -> Job:
    """Join the job that this process was started for; without one, train alone in this process.

    The generators of torch, random and numpy are seeded, so that all trainers begin with the same model. What a script
    may do with its job, and what is refused: ``docs/scripts.md``.

    Args:
        epochs: How often every sample counts, at least 1; a manifest that says it wins.
        seed: Of the samples' order and the initial model, from 0 to 2^63 - 1; a manifest that says it wins.

    Raises:
        Refused: An argument is out of bounds, the call is not in the main thread, it is the second one of this process,
            or another process is this trainer of the job.
    """
    _check(epochs, seed)
    check_main_thread()
    if os.getpid() in _joined:
        raise Refused("trainer.join() is called a second time in one process; keep the job that it gave")
    _joined.add(os.getpid())
    if environment.MASTER in os.environ:
        from shoal.trainer.distributed import DistributedJob  # noqa: PLC0415 - not needed alone

        folder = os.environ.get(environment.FOLDER)
        return DistributedJob.from_environment(epochs=epochs, seed=seed, folder=Path(folder) if folder else _began_in)
    from shoal.trainer.alone import AloneJob  # noqa: PLC0415 - not needed in a job

    seed_everything(seed)
    return AloneJob(epochs=epochs, seed=seed)


def _check(epochs: Any, seed: Any) -> None:
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
        raise Refused(f"join got epochs={epochs!r}; it must be a whole number of at least 1")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise Refused(f"join got seed={seed!r}; it must be a whole number from 0 to 2**63 - 1")
