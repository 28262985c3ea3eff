"""The local backend on state folders without a running job."""

import os
import subprocess
import sys

import msgspec
import pytest

from shoal.api import from_mapping
from shoal.local.state.state_folder import BusyError, Origin, RunEnd, StateFolder
from shoal.local.view.status import account_of
from shoal.sdk import (
    AlreadyExistsError,
    Client,
    FetchError,
    InvalidJobError,
    JobFailedError,
    NotFoundError,
    NotInstalledError,
    ShoalError,
    State,
)
from shoal.sdk.local import runs
from shoal.sdk.manifests import Submission
from shoal.sdk.sources import Sources, sources_of_script
from tests.local.test_formatting import PROGRESS, STATUS

HEAD = "--- 2026-01-02 03:04:05 starts: python train.py\n"


def job(name="train", **spec):
    return from_mapping(
        {
            "apiVersion": "shoal.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": name, "labels": {"team": name}},
            "spec": {"command": ["python", "train.py"], "parameterServer": {"replicas": 1}, **spec},
        }
    )


@pytest.fixture
def base(tmp_path):
    return tmp_path / "state"


@pytest.fixture
def client(base):
    with Client(backend="local", state=base) as made:
        yield made


@pytest.fixture
def kept(base, tmp_path):
    """Return a function that makes the state folder of a job that has ended."""

    def keep(name="train", *, state="Stopped", reason="", process="", final=True, **spec):
        folder = StateFolder(base, name)
        folder.lock()
        folder.prepare(job(name, **spec), Origin(folder=str(tmp_path), source=""))
        folder.write_last(msgspec.json.encode(msgspec.structs.replace(STATUS, name=name)))
        end = RunEnd(state, reason, final, account_of(state, PROGRESS, seconds=2.0), process)
        folder.write_end(end)
        folder.unlock()
        return folder

    return keep


def test_a_job_that_does_not_exist_is_an_error_with_those_that_do(client, kept):
    for name in ("nothing", "", ".", "..", "a/b", "\0"):
        with pytest.raises(NotFoundError, match="there are no jobs here"):
            client.get(name)
    kept()
    with pytest.raises(NotFoundError, match="jobs here: train"):
        client.get("nothing")


def test_jobs_are_listed_by_name_state_and_labels(client, kept, base):
    assert client.list() == []
    kept("b", state="Complete")
    kept("a")
    (base / "b" / "last.json").unlink()
    (base / ".hidden").mkdir()
    (base / ".hidden" / "job.json").write_text("{}")
    assert [(each.name, each.state) for each in client.list()] == [("a", State.SUSPENDED), ("b", State.COMPLETE)]
    assert [each.name for each in client.list(state="complete")] == ["b"]
    assert [each.name for each in client.list(labels={"team": "a"}, all_namespaces=True)] == ["a"]


def test_a_damaged_manifest_does_not_hide_the_other_jobs(client, kept):
    kept("a")
    kept("b").manifest.write_text("{")
    first, second = client.list()
    assert (first.name, first.refusal) == ("a", "")
    assert (second.name, second.state) == ("b", State.PENDING)
    assert "job.json" in second.refusal


def test_a_wait_for_a_failed_job_has_the_process_and_its_last_lines(client, kept):
    state = kept(
        state="Failed", reason="the script failed 7 times in a row (runPolicy.backoffLimit: 6)", process="trainer-1"
    )
    (state.logs / "trainer-1.log").write_text(HEAD + "Traceback\nValueError: mine\n")
    with pytest.raises(JobFailedError, match="ValueError: mine") as caught:
        client.get("train").wait()
    assert (caught.value.reason, caught.value.process) == ("BackoffLimitExceeded", "trainer-1")
    assert caught.value.last_lines[-1] == "ValueError: mine"
    with pytest.raises(InvalidJobError, match="has failed and cannot continue"):
        client.get("train").resume()


def test_a_job_made_anew_is_not_the_one_that_was_found(client, kept):
    found = client.get(kept().name)
    found.delete()
    kept()
    with pytest.raises(NotFoundError, match="another job has its name now"):
        found.status()
    with pytest.raises(NotFoundError):
        found.delete()
    with pytest.raises(NotFoundError, match="was deleted"):
        found.wait()
    assert client.get("train").status().state is State.SUSPENDED


def test_delete_removes_the_folder(client, kept, base):
    kept()
    client.get("train").delete()
    assert list(base.iterdir()) == []
    assert client.list() == []


def test_what_one_machine_does_not_have_is_named(client, kept):
    kept()
    with pytest.raises(ShoalError, match="no autoscaler"):
        client.plan()
    for bounds, named in (({"min": 1}, "min="), ({"max": 3}, "max="), ({"min": 1, "max": 3}, "min= and max=")):
        with pytest.raises(InvalidJobError, match=f"^{named}:"):
            client.get("train").scale(**bounds)
    with pytest.raises(InvalidJobError, match="it is Suspended; resume it first"):
        client.get("train").scale(2)
    with pytest.raises(ShoalError, match="since= needs the time of each line"):
        list(client.get("train").logs(since="5m"))


def test_a_dry_run_returns_the_manifest_and_creates_nothing(client, base, tmp_path):
    (tmp_path / "train.py").write_text("")
    found = client.submit(script=tmp_path / "train.py", trainers="2:3", dry_run=True)
    assert found["spec"]["trainer"] == {"minReplicas": 2, "maxReplicas": 3}
    assert not base.exists()


def test_a_name_that_is_taken(client, kept):
    kept()
    for dry_run in (True, False):
        with pytest.raises(AlreadyExistsError, match="choose another name="):
            client.submit(job(), dry_run=dry_run)
    assert client.get("train").status().state is State.SUSPENDED


def test_a_script_of_two_mebibytes_is_refused_and_leaves_nothing(client, base, tmp_path):
    (tmp_path / "train.py").write_text("#" * (2 << 20))
    with pytest.raises(InvalidJobError, match="2,097,152 bytes, and 921,600 can be shipped"):
        client.submit(script=tmp_path / "train.py")
    assert not base.exists()


def test_a_variable_from_a_cluster_is_refused_and_leaves_nothing(client, base):
    env = [{"name": "SECRET_OF_MINE", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}]
    with pytest.raises(InvalidJobError, match="export SECRET_OF_MINE") as caught:
        client.submit(job(env=env))
    assert caught.value.problems[0].path == "spec.env[0].valueFrom"
    assert not base.exists()


def test_a_machine_without_an_etcd(client, base, monkeypatch):
    monkeypatch.setattr("shoal.local.etcd_server._packaged", lambda: None)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NotInstalledError, match="no etcd was found"):
        client.submit(job())
    assert not base.exists()


def test_a_suspended_manifest_is_created_and_not_started(client, base):
    made = client.submit(job(suspend=True))
    assert (made.status().state, made.status().reason) == (State.SUSPENDED, "SuspendRequested")
    assert StateFolder(base, "train").runner() is None
    made.delete()


def test_a_shipped_file_stays_in_its_folder(client, base, tmp_path):
    (tmp_path / "train.py").write_text("print('here')")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "model.py").write_text("x = 'ü'")
    (tmp_path / "weights.bin").write_bytes(b"\xff\0")
    sources = sources_of_script(tmp_path / "train.py", [tmp_path / "parts", tmp_path / "weights.bin"])
    state = runs.create(base, Submission(job(), sources))
    assert (state.source / "parts" / "model.py").read_text() == "x = 'ü'"
    assert (state.source / "weights.bin").read_bytes() == b"\xff\0"
    assert state.origin() == Origin(folder=str(state.source), source="")
    with pytest.raises(InvalidJobError, match="below the working directory"):
        runs.create(base, Submission(job("other"), Sources({"../escaped.py": b""}, "train.py")))
    assert not (base / "other").exists()


def test_of_two_submits_at_once_one_creates_the_job(base):
    holder = StateFolder(base, "train")
    holder.lock()
    with pytest.raises(AlreadyExistsError):
        runs.create(base, Submission(job(), None))
    holder.unlock()
    runs.create(base, Submission(job(), None))
    with pytest.raises(AlreadyExistsError):
        runs.create(base, Submission(job(), None))


def test_a_lock_of_a_removed_folder_is_not_taken_for_that_of_a_new_one(base):
    first = StateFolder(base, "train")
    first.lock()
    first.create(job(), Origin(folder="/", source=""))
    first.remove()
    second = StateFolder(base, "train")
    second.lock()
    assert not second.exists
    with pytest.raises(BusyError):
        StateFolder(base, "train").lock()
    second.unlock()


def test_a_run_that_does_not_answer_has_its_last_status(client, kept, base):
    state = kept()
    (base / "train" / "end.json").unlink()
    assert client.get("train").status().reason == "RunKilled"
    state.lock()
    assert client.get("train").status().state is State.STARTING
    mine = msgspec.structs.replace(STATUS, name="train", runner=os.getpid())
    state.write_last(msgspec.json.encode(mine))
    assert client.get("train").status().state is State.RUNNING
    assert [each.name for each in client.get("train").members()] == [each.name for each in STATUS.members]
    state.unlock()


def test_lines_of_all_logs_and_of_one(client, kept):
    state = kept()
    (state.logs / "trainer-0.log").write_text(f"{HEAD}größer\n{HEAD}\x1b[31mred\n" + "é" * 10_000_000 + "\nlast")
    (state.logs / "trainer-10.log").write_bytes(b"\xff broken\n")
    (state.logs / "trainer-2.log").write_text("two\n")
    lines = list(client.get("train").logs())
    assert [each.process for each in lines] == ["trainer-0"] * 6 + ["trainer-2", "trainer-10"]
    assert [each.text[:10] for each in lines[:6]] == [HEAD[:10], "größer", HEAD[:10], "\x1b[31mred", "é" * 10, "last"]
    assert len(lines[4].text) < 70_000
    assert lines[4].text.endswith("(line cut)")
    assert lines[-1].text == "� broken"
    assert [str(each) for each in client.get("train").logs("trainer-2")] == ["two"]
    assert [str(each) for each in client.get("train").logs("trainer-0", tail=1)] == ["last"]
    assert [each.text for each in client.get("train").logs("trainer-0", previous=True)] == [HEAD.strip(), "größer"]
    assert "has run once" in str(next(client.get("train").logs("trainer-2", previous=True)))
    with pytest.raises(NotFoundError, match="there are: trainer-0, trainer-2, trainer-10"):
        list(client.get("train").logs("trainer-7"))


def test_a_followed_log_of_a_complete_job_ends(client, kept):
    (kept(state="Complete").logs / "trainer-0.log").write_text("one\n")
    assert [str(each) for each in client.get("train").logs(follow=True)] == ["one"]


def test_a_model_is_copied_with_its_progress(client, kept, tmp_path):
    kept(output={"path": "out/model.safetensors"})
    (tmp_path / "out").mkdir()
    (tmp_path / "here").mkdir()
    content = os.urandom(9_000_000)
    (tmp_path / "out" / "model.safetensors").write_bytes(content)
    seen = []
    copy = client.get("train").fetch_model(target=tmp_path / "here", on_progress=lambda *each: seen.append(each))
    assert copy == tmp_path / "here" / "model.safetensors"
    assert copy.read_bytes() == content
    assert seen[0] == (0, len(content))
    assert seen[-1] == (len(content), len(content))
    assert [each.name for each in (tmp_path / "here").iterdir()] == ["model.safetensors"]


def test_files_that_are_not_of_the_job_are_not_copied(client, kept, tmp_path):
    kept()
    found = client.get("train")
    for name, text in (
        ("/etc/hostname", "is not in"),
        ("../x", "is not in"),
        ("state", "is not a file"),
        ("x", "does not exist"),
    ):
        with pytest.raises(FetchError, match=text):
            found.fetch_model(name, tmp_path / "copy")
    with pytest.raises(FetchError, match=r"no spec\.output"):
        found.fetch_model(target=tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_the_import_of_the_local_backend_needs_no_torch_and_no_kubernetes():
    script = (
        "import sys, shoal.sdk.local; sys.exit(bool({'torch', 'numpy', 'kubernetes', 'aiohttp'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
