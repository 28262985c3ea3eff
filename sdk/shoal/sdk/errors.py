"""Errors of the SDK, by what a caller can do about them. The API server's message is part of each text."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.api import ManifestError, Problem

__all__ = [
    "AlreadyExistsError",
    "ClusterUnreachableError",
    "ConflictError",
    "FetchError",
    "ForbiddenError",
    "InvalidJobError",
    "JobDeletedError",
    "JobFailedError",
    "NotConfiguredError",
    "NotFoundError",
    "NotInstalledError",
    "ShoalError",
    "WaitTimeoutError",
]


class ShoalError(Exception):
    """Base class of the SDK's errors."""


class NotFoundError(ShoalError):
    """The job, or another object that the call names, does not exist."""


class JobDeletedError(NotFoundError):
    """The job was deleted, or made anew under the same name, while a call waited for it."""


class AlreadyExistsError(ShoalError):
    """The namespace has a job of this name already."""


class ConflictError(ShoalError):
    """The job changed at the same time, and the change could not be repeated."""


class InvalidJobError(ShoalError):
    """The job is invalid, or a change of it was refused.

    Args:
        message: The text.
        problems: Each problem with the path of its field. Default: none.
    """

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)

    @classmethod
    def of(cls, error: ManifestError) -> InvalidJobError:
        """Return the error for an invalid manifest."""
        return cls(str(error), error.problems)


class ForbiddenError(ShoalError):
    """The caller lacks a permission, a quota is exceeded, or a policy refuses the request; the text has the fix."""


class ClusterUnreachableError(ShoalError):
    """The API server of the cluster does not answer, or no cluster is configured."""


class NotConfiguredError(ClusterUnreachableError):
    """No cluster is configured: there is neither a kubeconfig nor the service account of a pod."""


class NotInstalledError(ShoalError):
    """The cluster has no TrainingJobs: Shoal's CRD is missing; or a program that the call needs is not installed."""


class FetchError(ShoalError):
    """The model could not be fetched; the text says why, and how to fetch it by hand."""


class JobFailedError(ShoalError):
    """The job failed.

    Attributes:
        reason: Reason in one word, such as ``BackoffLimitExceeded``.
        process: Process that failed last, such as ``trainer-0``; empty if it is unknown.
        last_lines: Last lines of the log of that process.
    """

    def __init__(self, message: str, *, reason: str = "", process: str = "", last_lines: Sequence[str] = ()) -> None:
        self.reason = reason
        self.process = process
        self.last_lines = tuple(last_lines)
        lines = "".join(f"\n  {process} | {line}" for line in self.last_lines)
        super().__init__(f"{message}{lines}")


class WaitTimeoutError(ShoalError, TimeoutError):
    """The job did not reach the state in time; it continues."""
