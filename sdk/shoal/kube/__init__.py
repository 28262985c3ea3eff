"""Client of the Kubernetes API; the only package that imports the Kubernetes client library."""

from shoal.kube.client import Kube, Listed
from shoal.kube.errors import (
    KubeConflictError,
    KubeError,
    KubeFencedError,
    KubeForbiddenError,
    KubeGoneError,
    KubeInvalidError,
    KubeUnreachableError,
)
from shoal.kube.follow import Changed, follow

__all__ = [
    "Changed",
    "Kube",
    "KubeConflictError",
    "KubeError",
    "KubeFencedError",
    "KubeForbiddenError",
    "KubeGoneError",
    "KubeInvalidError",
    "KubeUnreachableError",
    "Listed",
    "follow",
]
