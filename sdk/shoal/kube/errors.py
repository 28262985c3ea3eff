"""What the API server refuses, in its own words, sorted by what a caller can do about it."""

from __future__ import annotations

from typing import Any

__all__ = [
    "KubeConflictError",
    "KubeError",
    "KubeFencedError",
    "KubeForbiddenError",
    "KubeGoneError",
    "KubeInvalidError",
    "KubeUnreachableError",
    "error_of",
]


class KubeError(Exception):
    """The API server did not do what it was asked.

    Args:
        message: In its own words.
        status: HTTP status; 0: there was no answer.
        reason: Its word for the kind of refusal, such as ``AlreadyExists``.
        causes: (field, message) of each thing that is wrong, where it says so.
    """

    def __init__(
        self, message: str, *, status: int = 0, reason: str = "", causes: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.causes = causes
        self.retry_after_seconds = 0.0
        """How long the API server wants to be left alone; 0: it did not say."""


class KubeGoneError(KubeError):
    """The object is not there (any more)."""


class KubeConflictError(KubeError):
    """It exists already, changed meanwhile, is another one than was meant, or somebody else owns the field."""


class KubeForbiddenError(KubeError):
    """It is not allowed: a right is lacking, a quota is full, or a policy refuses."""


class KubeInvalidError(KubeError):
    """The manifest is wrong; trying again cannot help."""


class KubeUnreachableError(KubeError):
    """No answer came in time, or none that makes sense; whether it was done is not known."""


class KubeFencedError(KubeError):
    """It was not sent: this process may not write (any more)."""


_TOO_LARGE = "etcdserver: request is too large"
_BY_STATUS: dict[int, type[KubeError]] = {
    400: KubeInvalidError,
    401: KubeForbiddenError,
    403: KubeForbiddenError,
    404: KubeGoneError,
    409: KubeConflictError,
    410: KubeGoneError,
    413: KubeInvalidError,
    422: KubeInvalidError,
}


def error_of(status: int, body: Any) -> KubeError:
    """The error of an answer that is none of success.

    Args:
        status: HTTP status.
        body: The answer, a ``Status`` object as a rule.
    """
    if not isinstance(body, dict):
        return _BY_STATUS.get(status, KubeUnreachableError)(f"the API server answers {status}", status=status)
    details = body.get("details") or {}
    causes = tuple(
        (str(cause.get("field", "")), str(cause.get("message", ""))) for cause in details.get("causes") or ()
    )
    message = str(body.get("message") or f"the API server answers {status}")
    # Its etcd will never take it, but it says that this is an error of its own.
    kind = KubeInvalidError if _TOO_LARGE in message else _BY_STATUS.get(status, KubeUnreachableError)
    return kind(
        message,
        status=status,
        reason=str(body.get("reason") or ""),
        causes=causes,
    )
