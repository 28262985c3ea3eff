"""Real child processes: how they are started, watched and ended."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from shoal.local.processes import Launch, LaunchError, Processes, last_lines


def python(code, folder, **environment):
    return Launch(command=[sys.executable, "-c", code], environment={**os.environ, **environment}, folder=folder)


def run(folder, *launches, after=lambda processes: None):
    """Start processes and wait for all of them; return their exit codes and last output."""

    async def main():
        ended, done = {}, asyncio.Event()

        def on_exit(role, index, code, last_lines):
            ended[role, index] = (code, last_lines)
            if len(ended) == len(launches):
                done.set()

        processes = Processes(folder, on_exit)
        for index, launch in enumerate(launches):
            processes.start("trainer", index, launch)
        after(processes)
        await asyncio.wait_for(done.wait(), 30)
        return ended

    return asyncio.run(main())


def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def has_exited(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_exit_codes_and_last_lines(tmp_path):
    ended = run(tmp_path, python("", tmp_path), python("print('so'); raise KeyError('x')", tmp_path))
    assert ended["trainer", 0] == (0, "")
    code, last_lines = ended["trainer", 1]
    assert code == 1
    assert last_lines.startswith("Traceback")
    assert last_lines.endswith("KeyError: 'x'")


def test_output_is_appended_after_a_line_for_each_start(tmp_path):
    for text in ("one", "two"):
        run(tmp_path, python(f"print('{text}')", tmp_path))
    lines = (tmp_path / "trainer-0.log").read_text().splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["---", "one", "---", "two"]


def test_last_lines_are_of_the_last_start(tmp_path):
    log = tmp_path / "x.log"
    log.write_text("Traceback (most recent call last):\nold\n")
    before = log.stat().st_size
    log.write_text(log.read_text() + "new\n")
    assert last_lines(log, since=before) == "new"
    assert last_lines(tmp_path / "missing.log") == ""


def test_the_last_lines_of_a_syntax_error_name_the_file(tmp_path):
    (tmp_path / "broken.py").write_text("print('far')\ndef x(:")
    ended = run(tmp_path, Launch(command=[sys.executable, "broken.py"], environment=dict(os.environ), folder=tmp_path))
    assert "broken.py" in ended["trainer", 0][1].splitlines()[0]


def test_a_shoal_error_line_is_returned_without_its_time(tmp_path):
    log = tmp_path / "x.log"
    log.write_text("12:00:00 info so far\n12:00:01 error optimizer LBFGS is refused\nuse Adam\n")
    assert last_lines(log) == "optimizer LBFGS is refused\nuse Adam"


def test_a_refusal_is_returned_without_the_output_before_it(tmp_path):
    code = "print('epoch 0'); from shoal.trainer.refusal import Refused; raise Refused('optimizer LBFGS: use Adam')"
    ended = run(tmp_path, python(code, tmp_path))
    assert ended["trainer", 0] == (78, "optimizer LBFGS: use Adam")


def test_a_signal_is_reported_as_a_negative_exit_code(tmp_path):
    endless = python("import time; time.sleep(1000)", tmp_path)
    ended = run(tmp_path, endless, after=lambda processes: processes.signal("trainer", 0, signal.SIGKILL))
    assert ended["trainer", 0][0] == -signal.SIGKILL


PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
open(sys.argv[1] if len(sys.argv) > 1 else "child.pid", "w").write(str(child.pid))
{end}
"""


def test_the_children_of_a_process_end_with_it(tmp_path):
    run(tmp_path, python(PARENT.format(end=""), tmp_path))
    until(lambda: has_exited(int((tmp_path / "child.pid").read_text())))


def test_what_cannot_be_started_is_named(tmp_path):
    launches = {
        "no program 'nowhere'": Launch(command=["nowhere"], environment=os.environ, folder=tmp_path),
        "no folder": Launch(command=[sys.executable], environment=os.environ, folder=tmp_path / "missing"),
    }

    async def main(launch):
        Processes(tmp_path, lambda *_: None).start("trainer", 0, launch)

    for text, launch in launches.items():
        with pytest.raises(LaunchError, match=text):
            asyncio.run(main(launch))


RUNNER = """
import asyncio, os, sys
from pathlib import Path
from shoal.local.processes import Launch, Processes

async def main():
    folder = Path(sys.argv[1])
    processes = Processes(folder, lambda *_: None)
    command = [sys.executable, "-c", "import time; time.sleep(1000)"]
    pid = processes.start("trainer", 0, Launch(command=command, environment=os.environ, folder=folder))
    print(pid, flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


def test_nothing_outlives_a_runner_that_is_killed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", RUNNER, str(tmp_path)], stdout=subprocess.PIPE) as runner:
        child = int(runner.stdout.readline())
        assert psutil.pid_exists(child)
        runner.kill()
    until(lambda: has_exited(child))


def test_the_log_folder_holds_one_file_per_process(tmp_path):
    run(tmp_path, python("", tmp_path), python("", tmp_path))
    assert sorted(path.name for path in Path(tmp_path).glob("*.log")) == ["trainer-0.log", "trainer-1.log"]
