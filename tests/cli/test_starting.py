"""A process of a job that cannot start writes the reason in one line, and exits with the code for a permanent failure."""

import os
import socket
import subprocess
import sys

import pytest

from shoal.transport import auth

pytestmark = pytest.mark.slow  # each test starts a process that imports torch

MANIFEST = """
apiVersion: shoal.dev/v1alpha1
kind: TrainingJob
metadata: {name: late}
spec: {command: [python, train.py], parameterServer: {}}
"""


@pytest.fixture
def start(tmp_path):
    auth.Token.create(tmp_path / "token")
    (tmp_path / "job.yaml").write_text(MANIFEST)
    variables = {
        "SHOAL_MASTER": f"unix://{tmp_path}/nobody",
        "SHOAL_TOKEN_FILE": str(tmp_path / "token"),
        "SHOAL_UID": "0123",
        "SHOAL_INDEX": "0",
    }
    commands = {
        "master": ["--manifest", str(tmp_path / "job.yaml"), "--etcd", f"unix://{tmp_path}/no-etcd"],
        "pserver": ["--snapshots", str(tmp_path / "snapshots")],
    }

    def start(role: str, listen: str, **changed: str | None) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in (os.environ | variables | changed).items() if v is not None}
        return subprocess.run(
            [sys.executable, "-m", f"shoal.{role}", *commands[role], "--listen", listen],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return start


@pytest.mark.parametrize("role", ["master", "pserver"])
def test_a_port_that_is_taken(start, role):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        ended = start(role, address)
    assert ended.returncode == 78
    last = ended.stderr.splitlines()[-1]
    assert f"cannot listen at {address}: address already in use; use another port, or 0 for any that is free" in last
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("role", ["master", "pserver"])
def test_a_folder_that_is_missing(start, tmp_path, role):
    ended = start(role, f"unix://{tmp_path}/no/such/folder")
    assert ended.returncode == 78
    assert "/no/such/folder: no such file or directory" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("SHOAL_MASTER", None, "SHOAL_MASTER is not set"),
        ("SHOAL_UID", None, "SHOAL_UID is not set"),
        ("SHOAL_INDEX", "first", "SHOAL_INDEX is 'first'; it must be a whole number from 0"),
        ("SHOAL_TOKEN_FILE", "/nowhere/token", "/nowhere/token"),
    ],
)
def test_an_environment_with_a_missing_program(start, tmp_path, variable, value, said):
    ended = start("pserver", f"unix://{tmp_path}/p", **{variable: value})
    assert ended.returncode == 78
    assert said in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
