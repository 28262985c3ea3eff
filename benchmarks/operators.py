"""An operator as a child process: start, metrics, measurements of its resources, and stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.processes import free_ports

__all__ = ["OperatorProcess", "cpu_seconds", "say"]

SECONDS_TO_BE_READY = 60.0
TICKS = os.sysconf("SC_CLK_TCK")


@contextmanager
def say(what: str) -> Iterator[None]:
    """Print an activity and its duration."""
    print(f"{what} ...", end="", flush=True)
    since = time.monotonic()
    try:
        yield
    finally:
        print(f" {time.monotonic() - since:.1f} s", flush=True)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process in user and system mode, in seconds; 0 if it does not exist."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


class OperatorProcess:
    """Runs an operator process, at most one at a time.

    Args:
        kubeconfig: Kubeconfig of the cluster; the operator serves all namespaces.
        etcd: Endpoint of etcd.
        log: File for the operator's output.
        options: Further command-line options.
    """

    def __init__(self, kubeconfig: Path, etcd: str, log: Path, *options: str) -> None:
        self.options = options
        self._environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
        self._etcd = etcd
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._address = ""

    @property
    def pid(self) -> int | None:
        """Process id; None if no operator runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start an operator, and wait until it is ready.

        Raises:
            RuntimeError: The operator exited, or was not ready before the timeout.
        """
        self._address = f"127.0.0.1:{free_ports(1)[0]}"
        profile = os.environ.get("BENCH_PROFILE")
        measured = ("-m", "cProfile", "-o", profile) if profile else ()
        command = [sys.executable, *measured, "-m", "shoal.operator", "--etcd", self._etcd, "--serve", self._address]
        command += self.options
        with self._log.open("ab") as log:
            # Its own session, so that Ctrl-C reaches only the benchmark, which stops the operator.
            self._process = subprocess.Popen(
                command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + SECONDS_TO_BE_READY
        while not self._ready():
            if self.pid is None or time.monotonic() > end:
                raise RuntimeError(f"the operator is not ready:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop the operator (SIGTERM, SIGKILL after 20 s); does nothing if none runs."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def cpu(self) -> float:
        """Return the operator's CPU time, in seconds."""
        return cpu_seconds(self.pid or 0)

    def peak_megabytes(self) -> float:
        """Return the peak resident memory, in MB of 1,000,000 bytes."""
        return self._memory("VmHWM:")

    def megabytes(self) -> float:
        """Return the present resident memory, in MB of 1,000,000 bytes."""
        return self._memory("VmRSS:")

    def _memory(self, what: str) -> float:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        kibibytes = next(int(line.split()[1]) for line in lines if line.startswith(what))
        return kibibytes * 1024 / 1e6

    def metrics(self) -> dict[str, float]:
        """Return all samples of /metrics, by the metric's name and its labels' values, separated by slashes."""
        text = self._get("/metrics")
        return {
            "/".join([sample.name, *sample.labels.values()]): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def _ready(self) -> bool:
        with suppress(OSError, urllib.error.URLError):
            return self._get("/readyz") == "ok\n"
        return False

    def _get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{self._address}{path}", timeout=10) as answer:
            return str(answer.read().decode())
