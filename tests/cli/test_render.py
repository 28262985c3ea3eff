"""The texts of jobs, the template of a new job, and completion, without a cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
import yaml
from rich.console import Console

from shoal.api import load
from shoal.api.plan import Plan, PlannedJob
from shoal.cli.errors import CommandError
from shoal.cli.jobs.top import top_table
from shoal.cli.render import as_text, job_row, progress_text, status_lines, wide_row
from shoal.cli.tables import print_table
from shoal.cli.tools.completion import completion_script
from shoal.cli.tools.init import create_job
from shoal.sdk.display import html, shown
from shoal.sdk.types import Account, JobStatus, Member, Progress, Replicas, State

NOW = datetime.now(UTC)
RUNNING = JobStatus(
    name="flights",
    namespace="default",
    state=State.RUNNING,
    progress=Progress(400, 1000, 2, 3, 100.0, NOW + timedelta(hours=9)),
    trainers=Replicas(3, 4, 2, 8),
    parameter_servers=Replicas(2, 2, 2, 2),
    created=NOW - timedelta(hours=2),
)
QUEUED = JobStatus(name="batch", namespace="default", state=State.QUEUED, reason="Queued", message="no room for cpu 4")
COMPLETE = JobStatus(
    name="done",
    state=State.COMPLETE,
    progress=Progress(1000, 1000, 3, 3),
    account=Account(3, 1000, 1000, 0, 0, 0, 0, 4, 4, 1, 12.0),
)


def test_a_row_has_size_progress_rate_and_time_left():
    name, state, trainers, bounds, percent, rate, left, age = job_row(RUNNING)
    assert (name, state, trainers, bounds, percent, rate) == ("flights", "Running", "3/4", "2-8", "40%", "100")
    # The end is nine hours after this module was imported, and the tests before this one may take minutes.
    assert left == "9h00m" or left.startswith("8h5")
    assert age.startswith("2h0")
    assert job_row(RUNNING, with_namespace=True)[0] == "default/flights"
    assert wide_row(QUEUED)[-2:] == ("Queued", "no room for cpu 4")


def test_the_progress_of_a_job_that_waits_has_the_reason():
    assert progress_text(QUEUED) == "(Queued: no room for cpu 4)"
    assert progress_text(RUNNING).startswith("epoch 2/3  40%  100 samples/s")


def test_the_status_of_an_ended_job_has_its_account():
    head, rows = status_lines(COMPLETE, [Member("trainer-0", "Succeeded", "node-1", 2, "exit code 0\nmore")])
    assert "samples: 1,000 of 1,000 counted, 0 lost, 0 twice; trainers: 4 joined, 4 left, 1 died" in head[-1]
    assert rows == [("trainer-0", "Succeeded", "node-1", "2", "exit code 0")]


def test_json_and_yaml_have_the_same_content():
    found = json.loads(as_text([RUNNING], "json"))
    assert found == yaml.safe_load(as_text([RUNNING], "yaml"))
    assert (found[0]["state"], found[0]["progress"]["percent"]) == ("Running", 40.0)


def test_a_table_in_a_pipe_has_no_colours_and_wraps_nothing(capsys):
    print_table(("NAME", "MESSAGE"), [("a", "x" * 500), ("b", "[bold]é ✓[/bold]")])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["NAME  MESSAGE", f"a     {'x' * 500}", "b     [bold]é ✓[/bold]"]


def test_the_screen_of_all_jobs_fits_a_narrow_terminal():
    plan = Plan(
        time="", seconds=0.0, acts=True, nodes=3, usable=2, problem="", jobs=[
            PlannedJob("default", "flights", -5, 4, 4, 3, 2, 8, "NoRoom", "no node has room for cpu 1")
        ], claims=[], jobs_left_out=0, claims_left_out=0,
    )  # fmt: skip
    console = Console(width=40, file=open(os.devnull, "w"), record=True)  # noqa: SIM115, PTH123
    with console.file:
        console.print(top_table([QUEUED, RUNNING, COMPLETE], plan, with_namespace=False))
        text = console.export_text()
    assert "3 jobs, 1 running, 3 trainers" in text
    assert max(map(len, text.splitlines())) <= 40


def test_a_notebook_shows_state_reason_and_members_and_no_markup_of_a_job():
    text = html(RUNNING, [Member("trainer-0", "<b>", message="x & y")])
    assert "default/flights" in text
    assert "width:96px" in text
    assert "&lt;b&gt;" in text
    assert "x &amp; y" in text
    assert "and 5 more" in html(RUNNING, [Member(f"trainer-{index}", "Ready") for index in range(25)])


def test_states_pass_a_bar_unchanged(capsys):
    assert list(shown(iter([QUEUED, RUNNING]), bar=True)) == [QUEUED, RUNNING]
    assert "flights Running" in capsys.readouterr().out
    assert list(shown(iter([QUEUED]), bar=None)) == [QUEUED]


def test_a_new_job_is_valid_and_is_not_written_over_another(tmp_path, capsys):
    create_job(tmp_path / "My job 1")
    job = load(tmp_path / "My job 1" / "job.yaml")
    assert (job.metadata.name, job.spec.trainer.most) == ("my-job-1", 4)
    assert "shoal run job.yaml" in capsys.readouterr().out
    with pytest.raises(CommandError, match=r"train\.py exists already"):
        create_job(tmp_path / "My job 1")


@pytest.mark.slow
def test_a_new_job_trains_at_once(tmp_path):
    create_job(tmp_path / "circle")
    environment = {**os.environ, "SHOAL_STATE": str(tmp_path / "state")}
    ran = subprocess.run(
        [sys.executable, "-m", "shoal.cli", "run", "job.yaml", "--trainers", "1"],
        cwd=tmp_path / "circle", env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "circle" / "model.safetensors").stat().st_size > 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_completes_commands(shell):
    assert "_SHOAL_COMPLETE" in completion_script(shell)
    environment = {**os.environ, "_SHOAL_COMPLETE": f"complete_{shell}", "COMP_WORDS": "shoal desc", "COMP_CWORD": "1",
                   "_TYPER_COMPLETE_ARGS": "shoal desc", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}  # fmt: skip
    ran = subprocess.run(
        [sys.executable, "-m", "shoal.cli"], env=environment, capture_output=True, text=True, check=False
    )
    assert "describe" in ran.stdout


def test_names_of_jobs_are_completed(tmp_path):
    for name in ("flights", "flowers", "digits"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "job.json").write_text("{}")
    environment = {**os.environ, "SHOAL_STATE": str(tmp_path), "HOME": str(tmp_path), "_SHOAL_COMPLETE": "complete_bash",
                   "COMP_WORDS": "shoal describe fl", "COMP_CWORD": "2"}  # fmt: skip
    environment.pop("KUBECONFIG", None)
    ran = subprocess.run(
        [sys.executable, "-m", "shoal.cli"], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.stdout.split() == ["flights", "flowers"]


def test_an_unknown_shell_is_refused():
    with pytest.raises(CommandError, match="no completion for this shell"):
        completion_script("tcsh")


def test_the_jobs_here_are_listed_where_the_cluster_is_away_and_without_a_word_where_there_is_none(tmp_path):
    environment = {**os.environ, "SHOAL_STATE": str(tmp_path), "HOME": str(tmp_path)}
    environment.pop("KUBECONFIG", None)
    command = [sys.executable, "-m", "shoal.cli", "list"]
    alone = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (alone.stdout, alone.stderr) == ("no jobs; submit one with `shoal submit`\n", "")
    (tmp_path / "broken").write_text("{")
    broken = {**environment, "KUBECONFIG": str(tmp_path / "broken")}
    away = subprocess.run(command, env=broken, capture_output=True, text=True, check=True)
    assert away.stdout == alone.stdout
    assert "only the jobs of this machine: no cluster can be reached" in away.stderr
