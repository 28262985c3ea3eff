"""From the API server's errors to those of the SDK: each names what the caller can do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from shoal.api import Problem
from shoal.kube import (
    KubeConflictError,
    KubeError,
    KubeForbiddenError,
    KubeGoneError,
    KubeInvalidError,
    KubeUnconfiguredError,
)
from shoal.sdk.errors import (
    AlreadyExistsError,
    ClusterUnreachableError,
    ConflictError,
    ForbiddenError,
    InvalidJobError,
    NotConfiguredError,
    NotFoundError,
    NotInstalledError,
    ShoalError,
)

__all__ = ["translated", "translation"]

_UNAUTHORIZED: Final = 401
_USER: Final = re.compile(r'User "([^"]+)" cannot (\w+) resource')
_READS: Final = frozenset({"get", "list", "watch"})
_VIEWABLE: Final = frozenset({"trainingjobs", "pods", "pods/log", "events", "configmaps"})
_INSTALL: Final = "install Shoal: kubectl apply -k deploy/overlays/default, or the Helm chart"


@contextmanager
def translated(what: str, *, namespace: str = "") -> Iterator[None]:
    """Convert the errors of the API server.

    Args:
        what: What the call is about, such as ``job default/flights``.
        namespace: Namespace of the call, for the fix of a missing permission. Default: empty, the whole cluster.
    """
    try:
        yield
    except KubeError as error:
        raise translation(error, what, namespace=namespace) from error


def translation(error: KubeError, what: str, *, namespace: str = "") -> ShoalError:
    """Return the SDK's error for an error of the API server; the arguments are those of `translated`."""
    text = f"{what}: {error}"
    if isinstance(error, KubeGoneError):
        # For a group that it does not have, an API server answers without a Status object, and so without a reason.
        if not error.reason or "could not find the requested resource" in str(error):
            return NotInstalledError(f"the cluster has no TrainingJobs: {_INSTALL}")
        return NotFoundError(text)
    if isinstance(error, KubeConflictError):
        return AlreadyExistsError(text) if error.reason == "AlreadyExists" else ConflictError(text)
    if isinstance(error, KubeInvalidError):
        return InvalidJobError(text, [Problem(field, message) for field, message in error.causes])
    if isinstance(error, KubeForbiddenError):
        return ForbiddenError(f"{text}{_fix(error, namespace)}")
    is_configured = not isinstance(error, KubeUnconfiguredError)
    return ClusterUnreachableError(text) if is_configured else NotConfiguredError(str(error))


def _fix(error: KubeError, namespace: str) -> str:
    if error.status == _UNAUTHORIZED:
        return "; the credentials of the kubeconfig are not accepted (any more): log in to the cluster again"
    found = _USER.search(str(error))
    if found is None:
        return ""
    user, verb = found.groups()
    resource = re.search(r'resource "([^"]+)"', str(error))
    viewable = verb in _READS and resource is not None and resource[1] in _VIEWABLE
    role = "view" if viewable else "edit"
    if user.startswith("system:serviceaccount:"):
        subject = f"--serviceaccount={':'.join(user.split(':')[2:4])}"
    else:
        subject = f"--user={user}"
    where = f"rolebinding shoal-users --namespace={namespace}" if namespace else "clusterrolebinding shoal-users"
    return f"; an administrator can allow it: kubectl create {where} --clusterrole={role} {subject}"
