"""The job's state folder: its files, and the lock against a second run."""

import subprocess
import sys
from pathlib import Path

import pytest

from shoal.api import for_script
from shoal.local.state.manifest_changes import notes, refusals
from shoal.local.state.state_folder import BusyError, Origin, RunEnd, StateFolder, base_folder, job_names
from shoal.local.view.status import account_of

JOB = for_script("train.py", ["--x"], trainers="1:2", epochs=3, seed=7)
ORIGIN = Origin(folder="/somewhere", source="train.py")


def test_where_jobs_are_kept(monkeypatch, tmp_path):
    monkeypatch.delenv("SHOAL_STATE", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert base_folder() == tmp_path / "xdg" / "shoal"
    monkeypatch.setenv("SHOAL_STATE", str(tmp_path / "here"))
    assert base_folder() == tmp_path / "here"
    assert base_folder(tmp_path / "named") == tmp_path / "named"


def test_the_files_of_a_job_are_written_and_kept(tmp_path):
    state = StateFolder(tmp_path, "train")
    state.lock()
    state.prepare(JOB, ORIGIN)
    uid, token = state.uid, state.token.read_bytes()
    assert state.token.stat().st_mode & 0o777 == 0o600
    assert state.path.stat().st_mode & 0o777 == 0o700
    assert state.job() == JOB
    assert state.origin() == ORIGIN
    assert (state.snapshots / "pserver-0").is_dir()
    assert job_names(tmp_path) == ["train"]
    state.prepare(JOB, ORIGIN)
    assert (state.uid, state.token.read_bytes()) == (uid, token)


def test_a_fresh_start_keeps_nothing_but_the_lock(tmp_path):
    state = StateFolder(tmp_path, "train")
    state.lock()
    state.prepare(JOB, ORIGIN)
    uid = state.uid
    assert "snapshots" in state.clear()
    assert [path.name for path in state.path.iterdir()] == ["lock"]
    state.prepare(JOB, ORIGIN)
    assert state.uid != uid


def test_how_it_ended_is_kept_until_it_runs_again(tmp_path):
    state = StateFolder(tmp_path, "train")
    state.lock()
    state.prepare(JOB, ORIGIN)
    end = RunEnd(state="Failed", reason="so", final=False, account=account_of("Failed", None, seconds=1.5))
    state.write_end(end)
    assert state.end() == end
    state.prepare(JOB, ORIGIN)
    assert state.end() is None


def test_one_runner_at_a_time(tmp_path):
    code = (
        "import sys; from pathlib import Path; from shoal.local.state.state_folder import StateFolder; "
        "state = StateFolder(Path(sys.argv[1]), 'train'); state.lock(); print('ready', flush=True); input()"
    )
    state = StateFolder(tmp_path, "train")
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert state.runner() == other.pid
        with pytest.raises(BusyError, match=f"running already \\(pid {other.pid}\\)"):
            state.lock()
        other.kill()
    assert state.runner() is None
    state.lock()


def test_sockets_have_short_paths_wherever_the_folder_lies(tmp_path):
    for name in ("short", "x" * 100):
        state = StateFolder(tmp_path, name)
        state.lock()
        state.prepare(JOB, ORIGIN)
        folder = state.make_sockets()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert len(str(folder / "pserver-99")) < 107
        again = state.make_sockets()
        state.drop_sockets()
        assert not again.exists()
        assert not folder.exists()


def changed(**more):
    arguments = {"trainers": "1:2", "epochs": 3, "seed": 7, **more}
    return for_script("train.py", ["--x"], **arguments)


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"seed": 8}, "spec.seed"),
        ({"seed": None}, "spec.seed"),
        ({"servers": 2}, "spec.parameterServer.replicas"),
        ({"epochs": 2}, "spec.epochs"),
        ({"epochs": None}, "spec.epochs"),
    ],
)
def test_fields_that_the_account_depends_on_must_not_change(more, field):
    (reason,) = refusals(JOB, changed(**more))
    assert reason.startswith(field)
    assert "--fresh" in reason


@pytest.mark.parametrize(
    ("more", "notes_count"), [({}, 0), ({"trainers": "2:5"}, 0), ({"epochs": 5}, 1), ({"python": "pypy"}, 1)]
)
def test_the_rest_may_change(more, notes_count):
    assert refusals(JOB, changed(**more)) == []
    assert len(notes(JOB, changed(**more))) == notes_count


def test_nothing_is_read_from_a_folder_that_is_not_there():
    state = StateFolder(Path("/nonexistent"), "train")
    assert not state.exists
    assert state.runner() is None
    assert state.end() is None
