"""Commands and environments of a local job's processes."""

import os
import sys
from pathlib import Path

import pytest

from shoal.api import ManifestError, from_mapping
from shoal.local.launch import Launcher


def launcher(inherited=None, **spec):
    spec = {"command": ["python", "train.py"], "parameterServer": {"replicas": 2}, **spec}
    job = from_mapping(
        {"apiVersion": "shoal.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "x"}, "spec": spec}
    )
    return Launcher(
        job=job,
        manifest=Path("/state/x/job.json"),
        folder=Path("/project"),
        token=Path("/state/x/token"),
        uid="abc",
        sockets=Path("/state/x/sockets"),
        master=Path("/state/x/master.address"),
        snapshots=Path("/state/x/snapshots"),
        etcd="unix:///e",
        cores=16,
        inherited=inherited or {},
    )


def test_a_trainer_runs_the_command_where_the_manifest_lies():
    launch = launcher(args=["--deep"], env=[{"name": "MODE", "value": "fast"}]).launch("trainer", 3, trainers=2)
    assert launch.command == [sys.executable, "train.py", "--deep"]
    assert launch.folder == Path("/project")
    assert launch.environment["MODE"] == "fast"
    assert launch.environment["SHOAL_MASTER"] == "file:///state/x/master.address"
    assert launch.environment["SHOAL_INDEX"] == "3"
    assert launch.environment["SHOAL_ROLE"] == "trainer"


def test_a_shell_in_the_command_finds_the_same_python():
    own = str(Path(sys.executable).parent)
    assert launcher(inherited={"PATH": "/usr/bin"}).launch("trainer", 0, trainers=1).environment["PATH"] == (
        f"{own}:/usr/bin"
    )
    assert launcher().launch("trainer", 0, trainers=1).environment["PATH"] == f"{own}:{os.defpath}"
    given = launcher(inherited={"PATH": "/usr/bin"}, env=[{"name": "PATH", "value": "/mine"}])
    assert given.launch("trainer", 0, trainers=1).environment["PATH"] == "/mine", "the manifest's value is used"


@pytest.mark.parametrize("role", ["master", "pserver", "trainer"])
def test_only_the_name_of_the_token_file_is_handed_on(role):
    launch = launcher().launch(role, 0, trainers=1)
    assert launch.environment["SHOAL_TOKEN_FILE"] == "/state/x/token"
    assert not any("token" in argument for argument in launch.command)


def test_cores_are_shared_out():
    assert launcher().launch("trainer", 0, trainers=2).environment["OMP_NUM_THREADS"] == "4"
    assert launcher().launch("trainer", 0, trainers=60).environment["OMP_NUM_THREADS"] == "1"


def test_the_requested_cores_and_the_users_variable_take_precedence():
    requested = {"minReplicas": 1, "resources": {"requests": {"cpu": "3500m"}}}
    assert launcher(trainer=requested).launch("trainer", 0, trainers=1).environment["OMP_NUM_THREADS"] == "3"
    mine = launcher({"OMP_NUM_THREADS": "9"}, trainer=requested)
    assert mine.launch("trainer", 0, trainers=1).environment["OMP_NUM_THREADS"] == "9"


def test_a_variable_from_a_cluster_is_taken_from_here():
    env = [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}]
    assert launcher({"KEY": "v"}, env=env).launch("trainer", 0, trainers=1).environment["KEY"] == "v"
    with pytest.raises(ManifestError, match=r"spec\.env\[0\]\.valueFrom.*export KEY"):
        launcher(env=env).launch("trainer", 0, trainers=1)
