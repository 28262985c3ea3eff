"""Client of the Kubernetes API; the only package that imports the Kubernetes client library."""

from shoal.kube.client import Kube, Listed
from shoal.kube.errors import (
    KubeConflictError,
    KubeError,
    KubeFencedError,
    KubeForbiddenError,
    KubeGoneError,
    KubeInvalidError,
    KubeUnconfiguredError,
    KubeUnreachableError,
)
from shoal.kube.follow import Changed, follow
from shoal.kube.streams import CommandError, command_output, log_lines

__all__ = [
    "Changed",
    "CommandError",
    "Kube",
    "KubeConflictError",
    "KubeError",
    "KubeFencedError",
    "KubeForbiddenError",
    "KubeGoneError",
    "KubeInvalidError",
    "KubeUnconfiguredError",
    "KubeUnreachableError",
    "Listed",
    "command_output",
    "follow",
    "log_lines",
]
