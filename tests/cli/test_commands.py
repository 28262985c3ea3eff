"""The command line in real processes, with no job running."""

import json
import os
import subprocess
import sys

import pytest

GOOD = """
apiVersion: shoal.dev/v1alpha1
kind: TrainingJob
metadata: {name: digits}
spec:
  command: [python, train.py]
  trainer: {minReplicas: 1, maxReplicas: 2}
  parameterServer: {replicas: 1}
"""
BAD = GOOD.replace("minReplicas: 1", "minReplica: 1").replace("replicas: 1", "replicas: many")


@pytest.fixture
def shoal(tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "shoal.cli", *map(str, arguments)]
        environment = {**os.environ, "SHOAL_STATE": str(tmp_path / "state"), "COLUMNS": "100", "TERM": "dumb"}
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False, timeout=60
        )
        assert "Traceback" not in done.stderr
        return done

    return run


@pytest.fixture
def manifest(tmp_path):
    def write(text):
        path = tmp_path / "job.yaml"
        path.write_text(text)
        return path

    return write


def test_help_names_every_command(shoal):
    done = shoal("--help")
    assert done.returncode == 0
    for command in ("run", "status", "scale", "logs", "validate", "version"):
        assert f" {command} " in done.stdout


def test_help_needs_neither_torch_nor_etcd():
    code = (
        "import sys, shoal.cli.main; "
        "slow = {'torch', 'numpy', 'grpc', 'etcd3', 'pydantic', 'kubernetes'} & set(sys.modules); "
        "sys.exit(', '.join(slow) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_version(shoal):
    assert shoal("version").stdout.startswith("shoal 0.")


def test_a_good_manifest(shoal, manifest):
    done = shoal("validate", manifest(GOOD))
    assert done.returncode == 0
    assert "good" in done.stdout
    assert json.loads(shoal("validate", manifest(GOOD), "--output", "json").stdout)["valid"] is True


def test_everything_wrong_with_a_manifest_is_listed(shoal, manifest):
    done = shoal("validate", manifest(BAD))
    assert done.returncode == 2
    assert done.stdout == ""
    assert "did you mean minReplicas?" in done.stderr
    assert "spec.parameterServer.replicas" in done.stderr
    found = json.loads(shoal("validate", manifest(BAD), "--output", "json").stdout)
    assert {problem["path"] for problem in found["problems"]} >= {"spec.trainer.minReplica"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "missing.py"], "missing.py does not exist"),
        (["run", "."], "is a folder"),
        (["run", "notes.txt"], "neither a manifest"),
        (["run", "train.py", "--trainers", "4:2"], "--trainers"),
        (["run", "train.py", "--servers", "0"], "--servers: 0 is too small"),
        (["run", "train.py", "--name", "No_Name"], "--name: 'No_Name' must begin"),
        (["run", "train.py", "--etcd", "127.0.0.1:1"], "--etcd 127.0.0.1:1"),
        (["run", "train.py", "--etcd", "/nowhere/etcd"], "--etcd /nowhere/etcd"),
        (["run", "train.py", "--output", "xml"], "is not one of text, json"),
        (["run"], "Missing argument"),
        (["status", "missing"], "no job 'missing'"),
        (["status", "../etc"], "no job '../etc'"),
        (["scale", "missing", "--trainers", "2"], "no job 'missing'"),
        (["scale", "missing"], "give a number of trainers, --auto, or the bounds"),
        (["logs", "missing"], "there are no jobs here"),
        (["walk"], "No such command"),
    ],
)
def test_a_mistake_gets_one_clear_message(shoal, tmp_path, arguments, said):
    (tmp_path / "train.py").write_text("")
    (tmp_path / "notes.txt").write_text("")
    done = shoal(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""


def test_an_unknown_option_is_refused_with_a_manifest(shoal, manifest):
    done = shoal("run", manifest(GOOD), "--trainer", "2")
    assert done.returncode == 2
    assert "--trainer 2: unknown here" in done.stderr


def test_a_paused_job_is_not_run(shoal, manifest):
    done = shoal("run", manifest(GOOD.replace("spec:", "spec:\n  suspend: true")))
    assert done.returncode == 2
    assert "spec.suspend" in done.stderr


def test_no_jobs_yet(shoal):
    assert shoal("status").stdout.startswith("no jobs in ")
    assert shoal("status", "--output", "json").stdout == "[]\n"
