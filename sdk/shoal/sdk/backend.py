"""What a client needs of the place where jobs run: a cluster, or this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from shoal.sdk.manifests import Submission
from shoal.sdk.types import Event, JobStatus, LogLine, Member, SizeChange

__all__ = ["Backend", "Failure", "JobKey", "LogOptions"]


@dataclass(frozen=True)
class JobKey:
    """Identity of a job.

    Attributes:
        name: Name of the job.
        namespace: Namespace of the job; empty on one machine.
        uid: Uid of the job. Default: empty, any job of this name.
    """

    name: str
    namespace: str = ""
    uid: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """Which lines of which logs are read.

    Attributes:
        process: Name of a process, such as ``trainer-0``. Default: None, all processes.
        follow: Whether reading continues until the job ends.
        tail: Number of last lines of each log to begin with. Default: None, all.
        since_seconds: Only lines of this many last seconds. Default: None, all.
        previous: Whether the logs of the containers' last run are read instead of those of the present one.
    """

    process: str | None = None
    follow: bool = False
    tail: int | None = None
    since_seconds: float | None = None
    previous: bool = False


@dataclass(frozen=True)
class Failure:
    """The process whose failure made a job fail, with its last lines."""

    process: str = ""
    last_lines: tuple[str, ...] = ()


class Backend(Protocol):
    """The place where jobs run. Each method raises the errors of `shoal.sdk.errors`."""

    def key(self, name: str) -> JobKey:
        """Return the identity of a job by its name."""

    async def submit(self, submission: Submission) -> JobKey:
        """Create a job."""

    async def dry_run(self, submission: Submission) -> dict[str, Any]:
        """Validate a job as far as the place can, and return its manifest."""

    async def status(self, key: JobKey) -> JobStatus:
        """Return the state of a job."""

    async def list_jobs(self, *, labels: Mapping[str, str], all_namespaces: bool) -> list[JobStatus]:
        """Return the state of all jobs."""

    def watch(self, key: JobKey) -> AsyncIterator[JobStatus]:
        """Yield the state of a job, and again after each change, until the job ends."""

    async def members(self, key: JobKey) -> list[Member]:
        """Return the processes of a job."""

    async def events(self, key: JobKey) -> list[Event]:
        """Return what was recorded of a job, the oldest first."""

    async def history(self, key: JobKey) -> list[SizeChange]:
        """Return the last changes of the number of trainers, the oldest first."""

    async def metrics(self, key: JobKey) -> list[dict[str, Any]]:
        """Return the values that the script logged, the oldest first."""

    def logs(self, key: JobKey, options: LogOptions) -> AsyncIterator[LogLine]:
        """Yield lines of the logs."""

    async def scale(self, key: JobKey, *, replicas: int | None, low: int | None, high: int | None) -> None:
        """Pin the number of trainers (None: un-pin), or change its bounds."""

    async def suspend(self, key: JobKey, *, suspend: bool) -> None:
        """Suspend or resume a job."""

    async def delete(self, key: JobKey) -> None:
        """Delete a job."""

    async def failure(self, key: JobKey) -> Failure:
        """Return the process that failed last."""

    async def output(self, key: JobKey) -> str:
        """Return the path of the model file, as in ``spec.output.path``."""

    async def fetch(self, key: JobKey, name: str, target: Path, on_progress: Callable[[int, int], None]) -> None:
        """Copy a file that the job wrote to `target`, which does not exist yet; report bytes done and in all."""

    async def plan(self, namespace: str) -> Any:
        """Return the last plan of the autoscaler whose operator runs in a namespace."""

    async def close(self) -> None:
        """Close all connections."""
