"""Real processes without the seconds that their imports take: each is forked from a process that has imported the modules.

Each child is a process of its own in all that matters here: it has its own sockets, files and signals, and SIGKILL ends it
like any other process. Run as a program, this module reads orders (a line of JSON each) and reports its children's ends.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


JOB = ("torch", "shoal.pserver.service", "shoal.trainer.distributed")
OPERATOR = ("shoal.operator.manager",)
"""What the children of one begin with."""


@dataclass
class Child:
    """A child process; its methods are named as those of `subprocess.Popen`."""

    pid: int = 0
    returncode: int | None = None
    known: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float) -> int:
        if not self.ended.wait(timeout):
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        assert self.returncode is not None
        return self.returncode


class Zygote:
    """The parent of processes that start with some modules imported.

    Args:
        modules: Names of the modules.
        warnings: Action for a warning, as after ``python -W``.
    """

    def __init__(self, modules: Sequence[str], *, warnings: str = "error") -> None:
        self._children: dict[int, Child] = {}
        self._orders = 0
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-W", warnings, str(Path(__file__).resolve()), *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """Pid of the process from which the children are forked."""
        return self._process.pid

    def spawn(self, arguments: list[str], *, environment: Mapping[str, str], log: Path) -> Child:
        """Start ``python ARGUMENTS``; return when the child's pid is known."""
        # A reader of the log need not wait until the child has opened it.
        log.touch(mode=0o600)
        self._orders += 1
        child = Child()
        self._children[self._orders] = child
        order = {"id": self._orders, "arguments": arguments, "environment": dict(environment), "log": str(log)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        assert child.known.wait(60), "the zygote does not answer"
        return child

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            report = json.loads(line)
            child = self._children[report["id"]]
            if "pid" in report:
                child.pid = report["pid"]
                child.known.set()
            else:
                child.returncode = report["code"]
                child.ended.set()

    def close(self) -> None:
        """Kill the children and the zygote with SIGKILL."""
        for child in self._children.values():
            child.kill()
        assert self._process.stdin is not None
        # Closing its input would not suffice, as later children of this process may hold that pipe too.
        self._process.kill()
        self._process.wait(10)
        self._process.stdin.close()
        self._thread.join(10)
        assert self._process.stdout is not None
        self._process.stdout.close()


def _become(order: dict) -> None:
    """Replace this child's program by the ordered one."""
    import runpy

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(os.environ.get("PWD", "/"))
    kind, name, *rest = order["arguments"]
    sys.argv = [name, *rest]
    if kind == "-m":
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(name).parent))
        runpy.run_path(name, run_name="__main__")


def _report(**values: object) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def main() -> None:
    import ctypes
    import importlib
    import select

    for module in sys.argv[1:]:
        importlib.import_module(module)

    running: dict[int, int] = {}
    reader, writer = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    buffer = b""
    while True:
        ready, _, _ = select.select([0, reader], [], [])
        if reader in ready:
            os.read(reader, 4096)
            while running:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                _report(id=running.pop(pid), code=os.waitstatus_to_exitcode(status))
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                break
            buffer += data
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                order = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
                    code = 1
                    try:
                        _become(order)
                        code = 0
                    except SystemExit as end:
                        code = end.code if isinstance(end.code, int) else int(end.code is not None)
                    except BaseException as error:
                        sys.excepthook(type(error), error, error.__traceback__)
                    finally:
                        import atexit

                        atexit._run_exitfuncs()
                        sys.stdout.flush()
                        sys.stderr.flush()
                        os._exit(code)
                running[pid] = order["id"]
                _report(id=order["id"], pid=pid)


if __name__ == "__main__":
    main()
