"""Command-line arguments and options become a job's manifest."""

from pathlib import Path

import pytest

from shoal.api import ManifestError
from shoal.cli.errors import CommandError
from shoal.cli.local.run import Options, job_of

MANIFEST = """
apiVersion: shoal.dev/v1alpha1
kind: TrainingJob
metadata: {name: digits}
spec:
  command: [python, train.py]
  trainer: {minReplicas: 2, maxReplicas: 4, replicas: 3}
  parameterServer: {replicas: 1}
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text("")
    Path("job.yaml").write_text(MANIFEST)

    def make(target, *arguments, **more):
        nothing = dict.fromkeys(["trainers", "servers", "epochs", "seed", "name", "state", "etcd"])
        options = {**nothing, "fresh": False, "output": "text", "quiet": False, **more}
        return job_of(Options(target=target, arguments=list(arguments), **options))

    return make


def test_a_script_with_its_arguments(job, tmp_path):
    made, origin = job("train.py", "--lr", "0.1", trainers="1:3")
    assert made.metadata.name == "train"
    assert made.spec.command == ["python", "train.py", "--lr", "0.1"]
    assert (made.spec.trainer.min_replicas, made.spec.trainer.most) == (1, 3)
    assert made.spec.epochs is None
    assert origin.folder == str(tmp_path)
    assert origin.source == str(tmp_path / "train.py")


def test_a_script_takes_few_trainers_by_itself(job):
    made, _ = job("train.py")
    assert 1 <= made.spec.trainer.most <= 4


def test_the_command_line_overrides_the_manifest(job):
    made, origin = job("job.yaml", trainers="1:8", servers=2, epochs=5, seed=9, name="other")
    trainer = made.spec.trainer
    assert (trainer.min_replicas, trainer.most, trainer.replicas) == (1, 8, None)
    assert (made.servers, made.spec.epochs, made.spec.seed, made.metadata.name) == (2, 5, 9, "other")
    assert origin.source == ""


def test_the_manifest_applies_where_no_option_was_given(job):
    made, _ = job("job.yaml")
    assert made.spec.trainer.replicas == 3


def test_wrong_options_name_themselves(job):
    with pytest.raises(ManifestError, match="--trainers"):
        job("job.yaml", trainers="many")
    with pytest.raises(ManifestError, match="--epochs: 0 is too small"):
        job("job.yaml", epochs=0)
    with pytest.raises(CommandError, match="unknown here"):
        job("job.yaml", "--lr", "1")
