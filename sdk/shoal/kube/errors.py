"""Errors of the Kubernetes API with the API server's messages, by what a caller can do."""

from __future__ import annotations

from typing import Any

__all__ = [
    "KubeConflictError",
    "KubeError",
    "KubeFencedError",
    "KubeForbiddenError",
    "KubeGoneError",
    "KubeInvalidError",
    "KubeUnconfiguredError",
    "KubeUnreachableError",
    "error_of",
]


class KubeError(Exception):
    """Base class: the API server did not execute a request.

    Args:
        message: The API server's message.
        status: HTTP status. Default: 0, no response.
        reason: The API server's reason, such as ``AlreadyExists``. Default: empty.
        causes: (field, message) of each invalid field. Default: empty.
    """

    def __init__(
        self, message: str, *, status: int = 0, reason: str = "", causes: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.causes = causes
        self.retry_after_seconds = 0.0
        """Value of the ``Retry-After`` header, in seconds; 0 if it is not set."""


class KubeGoneError(KubeError):
    """The object does not exist (status 404), or a revision is no longer available (410)."""


class KubeConflictError(KubeError):
    """The object exists already, has changed, has another uid, or another manager owns the field."""


class KubeForbiddenError(KubeError):
    """The request is forbidden: a permission is missing, a quota is exceeded, or a policy rejects it."""


class KubeInvalidError(KubeError):
    """The manifest is invalid; a retry is useless."""


class KubeUnreachableError(KubeError):
    """No valid response before the timeout; the request may or may not have been executed."""


class KubeUnconfiguredError(KubeError):
    """There is neither a kubeconfig nor the service account of a pod, or the kubeconfig is not usable."""


class KubeFencedError(KubeError):
    """The request was not sent, because this process may not write (any more)."""


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
    """Return the error for a response whose status is 300 or higher.

    Args:
        status: HTTP status.
        body: Decoded body, in general a ``Status`` object.
    """
    if not isinstance(body, dict):
        return _BY_STATUS.get(status, KubeUnreachableError)(f"the API server answers {status}", status=status)
    details = body.get("details") or {}
    causes = tuple(
        (str(cause.get("field", "")), str(cause.get("message", ""))) for cause in details.get("causes") or ()
    )
    message = str(body.get("message") or f"the API server answers {status}")
    # The object is too large for the API server's etcd, which is permanent; the API server reports an internal error.
    kind = KubeInvalidError if _TOO_LARGE in message else _BY_STATUS.get(status, KubeUnreachableError)
    return kind(
        message,
        status=status,
        reason=str(body.get("reason") or ""),
        causes=causes,
    )
