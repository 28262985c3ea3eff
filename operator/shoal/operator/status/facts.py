"""Facts that only the status needs, beside the observed state that actions follow from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from shoal.api.status import AccountStatus, ProgressStatus, Reason

__all__ = ["Facts"]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts that only the status needs. None: not known.

    Attributes:
        etcd: Whether etcd is reachable; if not, all records are as they were read last.
        placed: Names of the job's pods that have a node.
        ready: Names of the job's pods that are ready.
        generation: Generation of the present master, from its election record.
        reported_at: When the master's record was last observed to change.
        moved: When a commit of samples, or the next stage of the job, was last observed; by the clock of `reported_at`.
        account: The final account of samples.
        failures: Number of consecutive errors of the script.
        restarts: How often the job was restarted from the beginning.
        last_failure: When the last error happened.
        retried: Value of the annotation that asks for a retry, once it was handled.
        reason: Why the autoscaler allocates no more trainers; empty: it gave no reason.
        autoscaled: Reason and message of the condition Autoscaled. None: there is no autoscaler.
        planned: Whether the autoscaler decides the number of trainers. None: the number is not decided, so the status has no new
            entry in its history.
        requested_by: Field manager of the last change of the job's size; empty: not known.
    """

    etcd: bool = True
    placed: frozenset[str] | None = None
    ready: frozenset[str] | None = None
    generation: int | None = None
    reported_at: datetime | None = None
    moved: datetime | None = None
    account: AccountStatus | None = None
    failures: int | None = None
    restarts: int | None = None
    last_failure: datetime | None = None
    retried: str | None = None
    reason: str = ""
    autoscaled: tuple[Reason, str] | None = None
    planned: bool | None = None
    requested_by: str = ""

    def last_step(self, samples: int | None, earlier: ProgressStatus | None) -> datetime | None:
        """Return when a commit of samples was last observed, by the operator's clock: the master's may differ.

        An operator that has just started keeps the time of its predecessor, as long as no sample was committed since.

        Args:
            samples: Samples that the master reports as committed; None: it has not reported yet.
            earlier: The progress in the status that was written last.
        """
        if samples is None or self.moved is None:
            return None
        if earlier is None or earlier.last_step_time is None or earlier.samples != samples:
            return self.moved
        return min(self.moved, earlier.last_step_time)
