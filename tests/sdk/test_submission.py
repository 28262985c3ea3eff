"""What `submit` makes of its arguments, and what it refuses, without a cluster."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shoal.api import TrainingJob, for_script, from_mapping
from shoal.sdk import InvalidJobError, ParameterServers, Resources, Trainers
from shoal.sdk.manifests import base_image, submission
from shoal.sdk.sources import FOLDER, LARGEST, Sources, config_map, mounted

SCRIPT = "import model\n\nprint(model.NAME)\n"


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    (tmp_path / "model.py").write_text("NAME = 'wide'\n")
    return path


def refused(**arguments) -> str:
    with pytest.raises(InvalidJobError) as error:
        submission(**arguments)
    return str(error.value)


def test_the_arguments_are_the_fields_of_the_manifest():
    made = submission(
        name="flights",
        image="registry.example.org/flights:1",
        command=["python", "train.py"],
        arguments=["--lr", "0.1"],
        trainers=Trainers(min=2, max=8, resources=Resources(cpu=1, memory="1Gi", gpu=1)),
        parameter_servers=ParameterServers(replicas=2, storage="50Gi", resources=Resources(memory="2Gi")),
        epochs=3,
        seed=7,
        env={"DATA": "/data"},
        labels={"team": "search"},
        output="model.safetensors",
        output_claim="models",
        priority="batch",
    )
    assert made.sources is None
    assert made.job.to_mapping() == {
        "apiVersion": "shoal.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "flights", "labels": {"team": "search"}},
        "spec": {
            "image": "registry.example.org/flights:1",
            "command": ["python", "train.py", "--lr", "0.1"],
            "env": [{"name": "DATA", "value": "/data"}],
            "epochs": 3,
            "seed": 7,
            "priority": "batch",
            "trainer": {
                "minReplicas": 2,
                "maxReplicas": 8,
                "resources": {
                    "requests": {"cpu": "1", "memory": "1Gi"},
                    "limits": {"memory": "1Gi", "nvidia.com/gpu": "1"},
                },
            },
            "parameterServer": {
                "replicas": 2,
                "volumeClaimSpec": {"resources": {"requests": {"storage": "50Gi"}}},
                "resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "2Gi"}},
            },
            "output": {"path": "model.safetensors", "volumeClaimName": "models"},
        },
    }


@pytest.mark.parametrize(
    ("trainers", "part"),
    [
        (3, {"minReplicas": 3, "maxReplicas": 3}),
        ("2:8", {"minReplicas": 2, "maxReplicas": 8}),
        (Trainers(min=2), {"minReplicas": 2, "maxReplicas": 2}),
        (Trainers(min=2, max=4, replicas=3), {"minReplicas": 2, "maxReplicas": 4, "replicas": 3}),
    ],
)
def test_the_number_of_trainers_in_several_forms(trainers, part):
    made = submission(name="a", image="i", command=["x"], trainers=trainers)
    assert made.job.to_mapping()["spec"]["trainer"] == part


def test_resources_alone_leave_a_manifest_its_bounds(tmp_path):
    job = for_script("train.py", trainers="2:8")
    made = submission(job, trainers=Trainers(resources=Resources(cpu=2)))
    trainer = made.job.to_mapping()["spec"]["trainer"]
    assert trainer == {"minReplicas": 2, "maxReplicas": 8, "resources": {"requests": {"cpu": "2"}}}


def test_a_job_a_mapping_and_a_file_are_the_same_job(tmp_path):
    job = for_script("train.py", ["--lr", "0.1"], trainers="2:4", servers=2, epochs=3)
    (tmp_path / "job.json").write_text(json.dumps(job.to_mapping()))
    assert submission(job).job == submission(manifest=job.to_mapping()).job == job
    from_file = submission(manifest=tmp_path / "job.json")
    assert (from_file.job, from_file.folder) == (job, tmp_path)


def test_options_change_a_manifest(tmp_path):
    job = for_script("train.py", trainers="2:4", servers=2, epochs=3)
    made = submission(job, name="other", epochs=5, image="i:2", env={"A": "1"}, annotations={"note": "x"}).job
    assert (made.metadata.name, made.spec.epochs, made.spec.image) == ("other", 5, "i:2")
    assert made.metadata.annotations == {"note": "x"}
    assert made.spec.trainer == job.spec.trainer
    assert [(each.name, each.value) for each in made.spec.env] == [("A", "1")]


def test_a_script_is_shipped_with_its_files(script):
    made = submission(script=script, files=[script.with_name("model.py")], arguments=["--lr", "0.1"], trainers="1:4")
    assert made.job.metadata.name == "train"
    assert made.job.spec.command == ["python", "train.py", "--lr", "0.1"]
    assert made.job.spec.image == base_image()
    assert made.sources == Sources({"train.py": SCRIPT.encode(), "model.py": b"NAME = 'wide'\n"}, "train.py")


def test_the_image_of_a_script_may_be_set_by_the_environment(script, monkeypatch):
    monkeypatch.setenv("SHOAL_IMAGE", "registry.example.org/base:2")
    assert submission(script=script).job.spec.image == "registry.example.org/base:2"


def test_folders_are_shipped_with_their_paths_and_without_what_is_hidden(tmp_path, script):
    package = tmp_path / "nets"
    (package / "__pycache__").mkdir(parents=True)
    (package / "__pycache__" / "wide.pyc").write_bytes(b"\0")
    (package / "wide.py").write_text("")
    (package / ".hidden").write_text("")
    made = submission(script=script, files=[package])
    assert sorted(made.sources.files) == ["nets/wide.py", "train.py"]


def train(lr, steps=3):
    import json as format_

    print(format_.dumps({"lr": lr, "steps": steps}))


def test_a_function_becomes_a_script_that_calls_it(tmp_path):
    made = submission(function=train, arguments={"lr": 0.1}, name="f", trainers=2)
    assert made.job.spec.command == ["python", "train.py"]
    (tmp_path / "train.py").write_bytes(made.sources.files["train.py"])
    ran = subprocess.run([sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == {"lr": 0.1, "steps": 3}


TABLE = np.zeros(3)


def uses_a_global(lr):
    return TABLE * lr


def closure():
    large = np.zeros(1_000_000)

    def inner(lr):
        return large * lr

    return inner


def decorated(function):
    return function


@decorated
def with_decorator():
    pass


async def coroutine():
    pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"function": uses_a_global, "arguments": {"lr": 1}}, "uses TABLE from outside of its body"),
        ({"function": closure(), "arguments": {"lr": 1}}, "inner uses large"),
        ({"function": lambda: None}, "is not a function that was defined by `def`"),
        ({"function": print}, "is not a function that was defined by `def`"),
        ({"function": with_decorator}, "has a decorator"),
        ({"function": coroutine}, "is a coroutine function"),
        ({"function": train}, "missing a required argument: 'lr'"),
        ({"function": train, "arguments": {"lr": 1, "speed": 2}}, "unexpected keyword argument 'speed'"),
        ({"function": train, "arguments": {"lr": np.zeros(2)}}, "an argument is not plain data"),
        ({"function": train, "arguments": {"lr": math.nan}}, "an argument is not plain data"),
        ({"function": train, "arguments": [1]}, "arguments= of a function is a mapping"),
        ({"command": ["x"], "arguments": {"lr": 1}, "name": "a"}, "arguments= of a command is a list"),
        ({"command": ["x"], "files": ["a"], "name": "a"}, "files= are shipped with script= or function="),
        ({"command": ["x"]}, "name= is missing"),
        ({}, "nothing to run"),
        ({"command": ["x"], "script": "a.py", "name": "a"}, "both script and command"),
        ({"job": "train.py"}, "str is not a TrainingJob"),
        ({"manifest": "no-such.yaml"}, "no-such.yaml: there is no such file"),
        ({"script": "train.sh"}, "is not a Python script"),
        ({"script": "none.py"}, "none.py does not exist"),
        ({"command": ["x"], "name": "Flights_1"}, "metadata.name: 'Flights_1'"),
        ({"command": ["x"], "name": "a", "trainers": "4:2"}, "MIN must be at least 1 and at most MAX"),
        ({"command": ["x"], "name": "a", "trainers": Trainers(min=4, max=2)}, "4 is more than maxReplicas 2"),
        ({"command": ["x"], "name": "a", "output_claim": "c"}, "output= is missing"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_is_refused(arguments, message):
    assert message in refused(**arguments)


def test_two_mebibytes_of_sources_are_refused_with_what_to_do(script):
    script.with_name("data.bin").write_bytes(b"\0" * (2 << 20))
    text = refused(script=script, files=[script.with_name("data.bin")])
    assert "2,097,152 bytes" in text
    assert "the largest is data.bin" in text
    assert "put data on a volume" in text


def test_many_small_files_are_refused_together(tmp_path, script):
    folder = tmp_path / "parts"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number}.bin").write_bytes(os.urandom(LARGEST // 16))
    assert f"{LARGEST:,} can be shipped" in refused(script=script, files=[folder])


def test_two_files_of_one_name_are_refused(tmp_path, script):
    other = tmp_path / "below"
    other.mkdir()
    (other / "model.py").write_text("")
    outside = Path(str(tmp_path) + "-outside")
    outside.mkdir()
    (outside / "model.py").write_text("")
    text = refused(script=script, files=[script.with_name("model.py"), outside / "model.py"])
    assert "two of the files would be model.py" in text


# The ConfigMap


def created(name="train"):
    return {
        "apiVersion": "shoal.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name, "namespace": "default", "uid": "u-1"},
    }


def test_the_sources_are_an_immutable_configmap_of_the_job():
    sources = Sources({"train.py": b"print(1)\n", "nets/wide.py": b"", "weights.bin": b"\xff\x00"}, "train.py")
    made = config_map(sources, created())
    assert made["immutable"]
    assert made["metadata"]["ownerReferences"][0]["uid"] == "u-1"
    assert made["data"] == {"file-0": "", "file-1": "print(1)\n"}
    assert made["binaryData"] == {"file-2": "/wA="}


def test_the_trainers_run_in_the_folder_of_the_sources():
    sources = Sources({"train.py": b"1", "nets/wide.py": b"2"}, "train.py")
    mapping = mounted(for_script("train.py").to_mapping(), sources)
    job = from_mapping(mapping)
    assert isinstance(job, TrainingJob)
    pod = mapping["spec"]["trainer"]["template"]["spec"]
    assert pod["containers"] == [
        {
            "name": "trainer",
            "workingDir": FOLDER,
            "volumeMounts": [{"name": "shoal-source", "mountPath": FOLDER, "readOnly": True}],
        }
    ]
    assert pod["volumes"][0]["configMap"]["items"] == [
        {"key": "file-0", "path": "nets/wide.py"},
        {"key": "file-1", "path": "train.py"},
    ]
    assert pod["volumes"][0]["configMap"]["name"] == config_map(sources, created())["metadata"]["name"]


def test_a_template_keeps_its_own_parts_beside_the_sources():
    mapping = for_script("train.py").to_mapping()
    own = {
        "containers": [{"name": "trainer", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}, {"name": "side"}],
        "volumes": [{"name": "data", "emptyDir": {}}],
        "nodeSelector": {"disk": "ssd"},
    }
    mapping["spec"]["trainer"]["template"] = {"spec": own}
    pod = mounted(mapping, Sources({"train.py": b""}, "train.py"))["spec"]["trainer"]["template"]["spec"]
    assert [each["name"] for each in pod["containers"]] == ["trainer", "side"]
    assert [each["name"] for each in pod["containers"][0]["volumeMounts"]] == ["data", "shoal-source"]
    assert [each["name"] for each in pod["volumes"]] == ["data", "shoal-source"]
    assert pod["nodeSelector"] == {"disk": "ssd"}
    assert "volumeMounts" in own["containers"][0]
    assert len(own["containers"][0]["volumeMounts"]) == 1


def test_a_working_directory_of_the_template_is_refused():
    mapping = for_script("train.py").to_mapping()
    mapping["spec"]["trainer"]["template"] = {"spec": {"containers": [{"name": "trainer", "workingDir": "/app"}]}}
    with pytest.raises(InvalidJobError, match="the template sets workingDir /app"):
        mounted(mapping, Sources({"train.py": b""}, "train.py"))
