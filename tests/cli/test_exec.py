"""`shoal exec` as the first process of a container."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

SHOAL = [sys.executable, "-m", "shoal.cli", "exec", "--"]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SHOAL, *command], capture_output=True, text=True, check=False, timeout=60)


def python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def start(*command: str) -> subprocess.Popen[str]:
    started = subprocess.Popen([*SHOAL, *command], stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    return started


@pytest.mark.parametrize("code", [0, 1, 78])
def test_the_exit_code_is_the_command_s(code):
    assert run(*python(f"import sys; sys.exit({code})")).returncode == code


def test_a_command_that_a_signal_ended():
    assert run(*python("import os; os.kill(os.getpid(), 9)")).returncode == 128 + 9


def test_output_and_arguments_go_through():
    done = run(*python("import sys; print(sys.argv[1:])"), "--epochs", "3", "--", "-x", "--help")
    assert done.stdout == "['--epochs', '3', '--', '-x', '--help']\n"


@pytest.mark.parametrize(("command", "code", "said"), [
    (["/nowhere/train"], 127, "no such program"),
    ([os.devnull], 127, "no such program"),
])  # fmt: skip
def test_what_cannot_be_run(command, code, said):
    done = run(*command)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1)
    assert said in done.stderr


def test_a_program_of_no_known_form(tmp_path):
    program = tmp_path / "program"
    program.write_bytes(b"\x7fnonsense")
    program.chmod(0o755)
    done = run(str(program))
    assert done.returncode == 126
    assert "exec format error" in done.stderr


def test_a_signal_before_the_command_has_a_handler_is_not_lost():
    """The signal is blocked before the command is started, then forwarded; its default action ends the command."""
    slow = "print('ready', flush=True); import time; time.sleep(60)"
    started = start(*python(slow))
    started.send_signal(signal.SIGTERM)
    started.communicate(timeout=30)
    assert started.returncode == 128 + signal.SIGTERM


def test_the_command_ends_in_its_own_way():
    text = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('drained', flush=True), sys.exit(7)))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)"
    )
    started = start(*python(text))
    started.send_signal(signal.SIGTERM)
    out, _ = started.communicate(timeout=30)
    assert (out, started.returncode) == ("drained\n", 7)


def test_a_script_behind_a_shell_is_signalled_and_awaited():
    text = (
        "import signal, sys, time\n"
        "def leave(*_):\n    time.sleep(0.5)\n    print('drained', flush=True)\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, leave)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)"
    )
    started = start("sh", "-c", '"$@"; true', "sh", *python(text))
    started.send_signal(signal.SIGTERM)
    out, _ = started.communicate(timeout=30)
    assert out == "drained\n"


def test_orphans_are_reaped():
    orphan = "import os, time\nif os.fork() == 0:\n    os.fork()\n    os._exit(0)\ntime.sleep(0.3)\nprint('ready', flush=True)\ntime.sleep(60)"
    started = start(*python(orphan))
    try:
        end = time.monotonic() + 10
        while [p for p in psutil.Process(started.pid).children() if p.status() == psutil.STATUS_ZOMBIE]:
            assert time.monotonic() < end, "a zombie is left"
            time.sleep(0.01)
    finally:
        started.send_signal(signal.SIGTERM)
        started.communicate(timeout=30)
    assert started.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGINT])
def test_other_signals_are_passed_on(number):
    text = (
        "import signal, sys\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(42))\n"
        "print('ready', flush=True)\nsignal.pause()"
    )
    started = start(*python(text))
    started.send_signal(number)
    started.communicate(timeout=30)
    assert started.returncode == 42
