"""How a script gets its job: that of the process it runs in, or one of its own."""

from __future__ import annotations

import os
from typing import Any

from shoal.trainer.describe import Refusal
from shoal.trainer.job import Job, seed_everything
from shoal.wire import environment

__all__ = ["join"]


def join(*, epochs: int = 1, seed: int = 0) -> Job:
    """Join the job that this process was started for; without one, train alone in this process.

    The generators of torch, random and numpy are seeded, so that all trainers begin with the same model.

    Args:
        epochs: How often every sample counts, at least 1; a manifest that says it wins.
        seed: Of the samples' order and the initial model, from 0 to 2^63 - 1; likewise.

    Raises:
        Refusal: One of them is out of bounds.
    """
    together = environment.MASTER in os.environ
    wrong = _wrong(epochs, seed)
    if together:
        from shoal.trainer.distributed import DistributedJob  # noqa: PLC0415 - not needed alone
        from shoal.trainer.engine import Refused  # noqa: PLC0415

        if wrong:
            raise Refused(wrong)
        return DistributedJob.from_environment(epochs=epochs, seed=seed)
    if wrong:
        raise Refusal(wrong)
    from shoal.trainer.alone import AloneJob  # noqa: PLC0415 - not needed in a job

    seed_everything(seed)
    return AloneJob(epochs=epochs, seed=seed)


def _wrong(epochs: Any, seed: Any) -> str:
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
        return f"join got epochs={epochs!r}; it must be a whole number of at least 1"
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        return f"join got seed={seed!r}; it must be a whole number from 0 to 2**63 - 1"
    return ""
