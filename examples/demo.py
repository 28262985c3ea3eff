"""``make demo``: trains on the flights while a trainer and a parameter server are killed, and accounts for every sample.

The demo runs `shoal run` as one process, and `shoal status`, `kill -9` and `shoal scale` beside it. The last line of its
output is the job's final account of samples.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SHOAL = [sys.executable, "-m", "shoal.cli"]


def say(text: str) -> None:
    print(f"demo: {text}", file=sys.stderr, flush=True)


class Demo:
    """One run of the flights example in a state folder of its own."""

    def __init__(self, state: str) -> None:
        self.environment = {**os.environ, "SHOAL_STATE": state}

    def start(self) -> subprocess.Popen[str]:
        command = [*SHOAL, "run", str(HERE / "flights" / "job.yaml"), "--trainers", "2:4", "--output", "json"]
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, text=True)

    def status(self) -> dict[str, Any]:
        command = [*SHOAL, "status", "flights", "--output", "json"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        found: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 and done.stdout else {}
        return found

    def share(self) -> float:
        """Return the share of all samples that the model has been trained on."""
        progress = self.status().get("progress") or {}
        return float(progress.get("samples_total", 0)) / max(1, progress.get("samples_expected", 0) or 1)

    def wait_for(self, share: float, running: subprocess.Popen[str]) -> None:
        while running.poll() is None and self.share() < share:
            time.sleep(0.2)  # seconds between two calls of `shoal status`

    def kill(self, role: str) -> None:
        members = [member for member in self.status().get("members", []) if member["role"] == role and member["pid"]]
        if members:
            member = members[-1]
            say(f"kill -9 {member['pid']}: {role}-{member['index']}")
            os.kill(member["pid"], signal.SIGKILL)

    def scale(self, trainers: int) -> None:
        say(f"shoal scale flights --trainers {trainers}")
        command = [*SHOAL, "scale", "flights", "--trainers", str(trainers)]
        subprocess.run(command, env=self.environment, stdout=sys.stderr, check=False)

    def run(self) -> int:
        """Run the job to its end; return its exit code."""
        say("training on 294,629 flights, 3 epochs; 2 trainers, 2 parameter servers")
        running = self.start()
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(running.stdout or []))
        reader.start()
        try:
            self.wait_for(0.1, running)
            self.kill("trainer")
            self.wait_for(0.3, running)
            self.scale(3)
            self.wait_for(0.5, running)
            self.kill("pserver")
            code = running.wait()
        except KeyboardInterrupt:
            running.send_signal(signal.SIGINT)
            code = running.wait()
        reader.join()
        print("".join(lines), end="", flush=True)
        return code


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="shoal-demo-") as state:
        return Demo(state).run()


if __name__ == "__main__":
    sys.exit(main())
