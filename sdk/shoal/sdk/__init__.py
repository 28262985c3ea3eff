"""Submit and follow training jobs from Python, on a cluster or on this machine.

    from shoal.sdk import Client, Resources, Trainers

    client = Client()
    job = client.submit(script="train.py", trainers=Trainers(min=2, max=8, resources=Resources(cpu=1, memory="1Gi")))
    for update in job.watch():
        print(update.state, update.progress.percent, update.progress.rate)

Names are imported when they are first used: the Kubernetes client takes half a second.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.api import TrainingJob
    from shoal.sdk.aio import AsyncClient, AsyncJob
    from shoal.sdk.client import Client, Job
    from shoal.sdk.errors import (
        AlreadyExistsError,
        ClusterUnreachableError,
        ConflictError,
        FetchError,
        ForbiddenError,
        InvalidJobError,
        JobDeletedError,
        JobFailedError,
        NotConfiguredError,
        NotFoundError,
        NotInstalledError,
        ShoalError,
        WaitTimeoutError,
    )
    from shoal.sdk.manifests import base_image
    from shoal.sdk.types import (
        Account,
        Event,
        JobStatus,
        LogLine,
        Member,
        ParameterServers,
        Progress,
        Replicas,
        Resources,
        SizeChange,
        State,
        Trainers,
    )

_HOMES = {
    "shoal.api": ("TrainingJob",),
    "shoal.sdk.aio": ("AsyncClient", "AsyncJob"),
    "shoal.sdk.client": ("Client", "Job"),
    "shoal.sdk.manifests": ("base_image",),
    "shoal.sdk.errors": (
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
    ),
    "shoal.sdk.types": (
        "Account",
        "Event",
        "JobStatus",
        "LogLine",
        "Member",
        "ParameterServers",
        "Progress",
        "Replicas",
        "Resources",
        "SizeChange",
        "State",
        "Trainers",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Account",
    "AlreadyExistsError",
    "AsyncClient",
    "AsyncJob",
    "Client",
    "ClusterUnreachableError",
    "ConflictError",
    "Event",
    "FetchError",
    "ForbiddenError",
    "InvalidJobError",
    "Job",
    "JobDeletedError",
    "JobFailedError",
    "JobStatus",
    "LogLine",
    "Member",
    "NotConfiguredError",
    "NotFoundError",
    "NotInstalledError",
    "ParameterServers",
    "Progress",
    "Replicas",
    "Resources",
    "ShoalError",
    "SizeChange",
    "State",
    "Trainers",
    "TrainingJob",
    "WaitTimeoutError",
    "base_image",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
