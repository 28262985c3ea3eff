"""The one gateway to the Kubernetes API, and the only package that imports its client."""

from shoal.kube.client import Kube
from shoal.kube.errors import (
    KubeConflictError,
    KubeError,
    KubeForbiddenError,
    KubeGoneError,
    KubeInvalidError,
    KubeUnreachableError,
)

__all__ = [
    "Kube",
    "KubeConflictError",
    "KubeError",
    "KubeForbiddenError",
    "KubeGoneError",
    "KubeInvalidError",
    "KubeUnreachableError",
]
