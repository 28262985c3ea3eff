"""The public surface of the SDK: its names, equal signatures of both clients, and its import time's cause."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import shoal.sdk
from shoal.sdk import AsyncClient, AsyncJob, Client, Job

NAMES = [
    "Account", "AlreadyExistsError", "AsyncClient", "AsyncJob", "Client", "ClusterUnreachableError", "ConflictError", "Event",
    "FetchError", "ForbiddenError", "InvalidJobError", "Job", "JobDeletedError", "JobFailedError", "JobStatus", "LogLine",
    "Member", "NotConfiguredError", "NotFoundError", "NotInstalledError", "ParameterServers", "Progress", "Replicas", "Resources", "ShoalError",
    "SizeChange", "State", "Trainers", "TrainingJob", "WaitTimeoutError", "base_image",
]  # fmt: skip


def test_the_public_names():
    assert sorted(shoal.sdk.__all__) == NAMES == dir(shoal.sdk)
    assert all(getattr(shoal.sdk, name) is not None for name in NAMES)


def public(kind):
    return {
        name
        for name, member in inspect.getmembers(kind)
        if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))
    }


@pytest.mark.parametrize(("one", "other"), [(Client, AsyncClient), (Job, AsyncJob)])
def test_both_clients_have_the_same_methods_with_the_same_arguments(one, other):
    assert public(one) == public(other)
    for name in public(one):
        member = getattr(one, name)
        if isinstance(member, property):
            continue
        ours = inspect.signature(member).parameters
        theirs = inspect.signature(getattr(other, name)).parameters
        # Only the synchronous watch shows a bar.
        assert {key: str(value) for key, value in ours.items() if key != "bar"} == {
            key: str(value) for key, value in theirs.items()
        }, name


def test_importing_the_sdk_imports_neither_a_client_library_nor_torch():
    code = (
        "import sys, shoal.sdk\n"
        "print(sorted({'kubernetes', 'aiohttp', 'torch', 'numpy', 'kopf', 'pydantic'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Klient'"):
        _ = shoal.sdk.Klient
