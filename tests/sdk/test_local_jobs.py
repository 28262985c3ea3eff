"""The local backend with real runs: `shoal run` in the background, with its etcd, master and parameter server."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from shoal.local.etcd_server import EtcdServer, find_etcd
from shoal.local.state.jobs import status_of
from shoal.local.state.state_folder import StateFolder
from shoal.sdk import (
    AsyncClient,
    Client,
    InvalidJobError,
    JobDeletedError,
    JobFailedError,
    NotFoundError,
    ShoalError,
    State,
    Trainers,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
SAMPLES = 1437
SLEEPS = "import os, time\nprint('here I am: ' + os.getcwd(), flush=True)\ntime.sleep(1000)\n"


@pytest.fixture
def base(tmp_path):
    return tmp_path / "state"


@pytest.fixture
def client(base):
    with Client(backend="local", state=base) as made:
        yield made
        for each in made.list():
            made.get(each.name).delete()


@pytest.fixture
def sleeper(client, tmp_path):
    """Return a function that submits a job whose trainers print a line and sleep."""

    def submit(**options):
        (tmp_path / "sleep.py").write_text(SLEEPS)
        return client.submit(script=tmp_path / "sleep.py", **options)

    return submit


def until(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return found


def pids(base, name):
    """Return the ids of the processes of a job, by name."""
    state = StateFolder(base, name)
    return {row.name: row.pid for row in status_of(state).members if row.pid} if state.exists else {}


def gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def watched(job):
    """Return the states of a job, without the bar of `Job.watch`."""
    return job._loop.iterate(job._job.watch())


def up(base, name, *wanted):
    return until(lambda: (found := pids(base, name)).keys() >= {"master-0", "pserver-0", "etcd-0", *wanted} and found)


def train(epochs, path):
    """Train a small network; its imports are here, as the SDK asks."""
    import time

    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    from shoal import trainer

    job = trainer.join(epochs=epochs, seed=1)
    data = TensorDataset(torch.arange(400.0).reshape(-1, 1) / 400, torch.ones(400, 1))
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model, optimizer, loader = job.prepare(model, optimizer, DataLoader(data, batch_size=4, shuffle=True))
    for _ in job.epochs():
        for x, y in loader:
            loss = ((model(x) - y) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            job.log(loss=loss)
            time.sleep(0.005)
    job.save(path)


def test_a_function_is_trained_watched_and_its_model_fetched(client, tmp_path):
    job = client.submit(
        function=train, arguments={"epochs": 2, "path": "m.safetensors"}, trainers="1:2", labels={"a": "b"}
    )
    assert job.name == "train"
    states = list(watched(job))
    assert states[0].state is State.STARTING
    assert State.RUNNING in {each.state for each in states}
    last = states[-1]
    assert (last.state, last.progress.percent, last.progress.samples) == (State.COMPLETE, 100.0, 800)
    assert (last.account.counted, last.account.lost, last.account.twice) == (800, 0, 0)
    assert last.created <= last.started <= last.ended
    assert job.wait() == client.get("train").status()
    assert [each.name for each in client.list(labels={"a": "b"}, state="Complete")] == ["train"]
    records = job.metrics()
    assert records[-1]["epoch"] == 2
    assert 0.0 <= records[-1]["loss"] < 1.0
    (first, *_) = job.history()
    assert (first.before, first.after) == (0, last.trainers.desired)
    assert any("begins" in each.message or "joined" in each.message for each in job.events())
    copy = job.fetch_model(target=tmp_path / "copy.safetensors")
    assert copy.stat().st_size > 0
    assert job.members() == []


def test_a_manifest_runs_in_its_folder_and_both_faces_continue_each_others_job(client, base, tmp_path):
    for name in ("job.yaml", "train.py"):
        shutil.copy(DIGITS / name, tmp_path)
    job = client.submit(manifest=tmp_path / "job.yaml", epochs=8)
    until(lambda: job.status().progress.samples > 0)
    job.suspend()
    status = job.status()
    assert (status.state, status.reason) == (State.SUSPENDED, "SuspendRequested")
    done = status.progress.samples
    assert 0 < done < 8 * SAMPLES
    job.suspend()  # a second one has no effect
    run = subprocess.Popen(
        [sys.executable, "-m", "shoal.cli", "run", "job.yaml", "--epochs", "8", "--state", str(base)],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    until(lambda: job.status().state is State.RUNNING)
    run.send_signal(signal.SIGINT)
    out, _ = run.communicate(timeout=100)
    assert run.returncode == 130, out
    assert "resumes from its state" in out
    job.resume()
    job.resume()  # it runs already
    end = job.wait(timeout="3m")
    assert (end.account.counted, end.account.lost, end.account.twice) == (8 * SAMPLES, 0, 0)
    assert (tmp_path / "model.safetensors").is_file()


def test_the_job_goes_on_when_the_program_that_submitted_it_ends(client, base, tmp_path):
    (tmp_path / "sleep.py").write_text(SLEEPS)
    script = (
        "import sys; from shoal.sdk import Client\n"
        "client = Client(backend='local', state=sys.argv[1]); job = client.submit(script=sys.argv[2], name='sleep')\n"
        "print(job.status().state)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(base), str(tmp_path / "sleep.py")],
        capture_output=True, text=True, check=False, timeout=120, start_new_session=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "Starting\n", "")
    up(base, "sleep", "trainer-0")
    runner = psutil.Process(StateFolder(base, "sleep").runner())
    assert os.getsid(runner.pid) == runner.pid
    assert client.get("sleep").status().state is State.STARTING


def test_a_job_whose_run_was_killed_is_suspended_and_resumes(client, base, sleeper):
    job = sleeper()
    children = up(base, "sleep", "trainer-0")
    with pytest.raises(ShoalError, match=r"is Suspended \(RunKilled"):  # noqa: PT012 - the wait runs beside the kill
        threading.Timer(0.5, os.kill, (StateFolder(base, "sleep").runner(), signal.SIGKILL)).start()
        job.wait(timeout="2m")
    until(lambda: all(map(gone, children.values())))
    assert job.members() == []
    assert client.list(state="Suspended")[0].name == "sleep"
    assert [str(line) for line in job.logs("trainer-0", follow=True)][-1].startswith("here I am")
    job.resume()
    up(base, "sleep", "trainer-0")
    assert job.status().state is State.STARTING
    assert {"master-0", "trainer-0"} <= {each.name for each in job.members()}


def shoal(base, folder, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "shoal.cli", *arguments, "--state", str(base)],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_a_job_of_the_command_line_is_resumed_with_its_folder_and_its_etcd(client, base, tmp_path):
    (tmp_path / "sleep.py").write_text(SLEEPS)
    with EtcdServer(find_etcd(), tmp_path / "theirs") as etcd:
        run = shoal(base, tmp_path, "run", "sleep.py", "--trainers", "1", "--etcd", etcd.endpoint)
        until(lambda: "trainer-0" in pids(base, "sleep"))
        run.kill()
        run.communicate()
        job = client.get("sleep")
        assert job.status().reason == "RunKilled"
        callers = [threading.Thread(target=client.get("sleep").resume) for _ in range(3)]
        for each in callers:
            each.start()
        for each in callers:
            each.join(60)
        until(lambda: "trainer-0" in pids(base, "sleep"))
        assert "etcd-0" not in pids(base, "sleep")
        again = shoal(base, tmp_path, "run", "sleep.py", "--trainers", "1", "--etcd", etcd.endpoint)
        assert "running already" in again.communicate(timeout=60)[0]
        assert [str(line) for line in job.logs("trainer-0", tail=1)] == [f"here I am: {tmp_path}"]
        job.suspend()
        again = shoal(base, tmp_path, "run", "sleep.py", "--trainers", "1", "--etcd", etcd.endpoint)
        until(lambda: "trainer-0" in pids(base, "sleep"))
        job.delete()
        again.communicate(timeout=60)


def test_a_job_that_was_created_suspended_starts_when_it_is_resumed(client, base, tmp_path):
    (tmp_path / "sleep.py").write_text(SLEEPS)
    manifest = {
        "apiVersion": "shoal.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "sleep"},
        "spec": {"command": ["python", str(tmp_path / "sleep.py")], "parameterServer": {}, "suspend": True},
    }
    job = client.submit(manifest=manifest)
    assert job.status().state is State.SUSPENDED
    job.resume()
    up(base, "sleep", "trainer-0")
    assert job.status().state is State.STARTING


def test_a_watch_goes_on_while_the_job_is_suspended(sleeper):
    job = sleeper()
    seen = watched(job)
    assert next(seen).state is State.STARTING
    job.suspend()
    until(lambda: next(seen).state is State.SUSPENDED)
    job.resume()
    until(lambda: next(seen).state is State.STARTING)
    seen.close()


def test_a_submit_that_is_interrupted_leaves_nothing(base, tmp_path):
    (tmp_path / "sleep.py").write_text(SLEEPS)

    async def interrupted():
        async with AsyncClient(backend="local", state=base) as client:
            submit = asyncio.create_task(client.submit(script=tmp_path / "sleep.py", name="sleep"))
            await asyncio.to_thread(until, (base / "sleep" / "run.log").exists)
            submit.cancel()
            with pytest.raises(asyncio.CancelledError):
                await submit

    asyncio.run(interrupted())
    until(lambda: list(base.iterdir()) == [])


def test_a_run_that_does_not_answer_is_stopped_by_a_signal(client, base, sleeper, monkeypatch):
    monkeypatch.setattr("shoal.sdk.local.runs._SILENT_SECONDS", 0.0)
    job = sleeper()
    children = up(base, "sleep", "trainer-0")
    (base / "sleep" / "control").unlink()
    job.suspend()
    assert job.status().reason == "SuspendRequested"
    assert all(map(gone, children.values()))


def test_shipped_files_are_the_working_directory(client, base, tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "words.py").write_text("text = 'grüße'")
    (tmp_path / "main.py").write_text(
        "from parts import words\nimport sys, time\nprint(words.text, sys.argv, flush=True)\ntime.sleep(1000)"
    )
    job = client.submit(script=tmp_path / "main.py", files=[tmp_path / "parts"], arguments=["--lr", "0.1"])
    (tmp_path / "parts" / "words.py").unlink()
    lines = job.logs("trainer-0", follow=True)
    found = [str(next(lines)) for _ in range(2)]
    lines.close()
    assert found[1] == "grüße ['main.py', '--lr', '0.1']"


def test_a_job_is_deleted_while_it_runs_and_those_who_wait_hear_of_it(client, base, sleeper, tmp_path):
    job = sleeper()
    children = up(base, "sleep", "trainer-0")
    runner = StateFolder(base, "sleep").runner()
    errors = []

    def wait():
        with Client(backend="local", state=base) as other:
            try:
                other.get("sleep").wait()
            except ShoalError as error:
                errors.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    seen = watched(job)
    next(seen)
    job.delete()
    waiting.join(60)
    assert [type(each) for each in errors] == [JobDeletedError]
    assert "; it was S" in str(errors[0])
    with pytest.raises(JobDeletedError):
        list(seen)
    assert list(base.iterdir()) == []
    until(lambda: all(map(gone, [runner, *children.values()])))
    with pytest.raises(NotFoundError):
        job.status()
    assert (tmp_path / "sleep.py").is_file()


def test_two_clients_scale_at_once(client, base, sleeper):
    job = sleeper(trainers=Trainers(min=1, max=4, replicas=1))
    up(base, "sleep", "trainer-0")

    def scale(trainers):
        with Client(backend="local", state=base) as other:
            for _ in range(5):
                other.get("sleep").scale(trainers)

    callers = [threading.Thread(target=scale, args=(trainers,)) for trainers in (2, 3)]
    for each in callers:
        each.start()
    for each in callers:
        each.join(60)
    changes = job.history()
    assert all(later.before == earlier.after for earlier, later in pairwise(changes))
    assert changes[-1].after == job.status().trainers.desired
    assert {each.by for each in changes[1:]} == {"shoal-sdk"}
    with pytest.raises(InvalidJobError, match="1 to 4"):
        job.scale(5)
    job.scale(3)
    up(base, "sleep", "trainer-0", "trainer-1", "trainer-2")
    job.suspend()
    with pytest.raises(InvalidJobError, match="resume it first"):
        job.scale(2)
    job.resume()
    assert job.status().trainers.desired == 3, "the pin outlives the suspension"
    job.scale(None)
    until(lambda: job.status().trainers.desired == 1)
    assert job.history()[-1].cause.startswith("un-pinned")


def test_a_followed_log_continues_with_the_successor_of_a_killed_trainer(client, base, sleeper):
    job = sleeper()
    lines = job.logs("trainer-0", follow=True)
    assert [str(next(lines))[:4], str(next(lines))[:9]] == ["--- ", "here I am"]
    before = pids(base, "sleep")["trainer-0"]
    os.kill(before, signal.SIGKILL)
    assert [str(next(lines))[:4], str(next(lines))[:9]] == ["--- ", "here I am"]
    until(lambda: pids(base, "sleep").get("trainer-0") not in {None, before})
    assert next(each for each in job.members() if each.name == "trainer-0").restarts == 1
    assert any("SIGKILL" in each.message and each.kind == "Warning" for each in job.events())
    job.delete()
    assert all(each.process == "trainer-0" for each in lines), "and the log ends with the job"


def test_a_script_that_fails_fails_the_job_with_its_last_lines(client, tmp_path):
    (tmp_path / "bad.py").write_text("print('before')\nraise ValueError('a mistake of mine: ü')\n")
    job = client.submit(script=tmp_path / "bad.py")
    with pytest.raises(JobFailedError, match="a mistake of mine: ü") as caught:
        job.wait(timeout="3m")
    assert (caught.value.reason, caught.value.process) == ("BackoffLimitExceeded", "trainer-0")
    assert caught.value.last_lines[-1] == "ValueError: a mistake of mine: ü"
    assert job.status().is_ended


def test_a_run_that_refuses_the_job_leaves_nothing(client, base, monkeypatch):
    # The variable is there when the SDK checks it, and not any more when `shoal run` does.
    manifest = {
        "apiVersion": "shoal.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "bare"},
        "spec": {
            "command": ["python", "train.py"],
            "parameterServer": {},
            "env": [{"name": "MY_VARIABLE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        },
    }
    monkeypatch.setattr("shoal.sdk.local.variables", lambda *_: {})
    monkeypatch.delenv("MY_VARIABLE", raising=False)
    with pytest.raises(InvalidJobError, match=r"spec\.env\[0\]\.valueFrom: needs a cluster") as caught:
        client.submit(manifest=manifest)
    assert not str(caught.value).startswith("error")
    assert list(base.iterdir()) == []
