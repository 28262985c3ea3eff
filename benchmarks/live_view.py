"""``python -m benchmarks.live_view FILE.svg``: draws the live view of `shoal run` from a real run of examples/flights.

Two trainers train on 294,629 flights; when 40 % of the first epoch are committed, the live view of the runner's status is
drawn.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from shoal.local.view.live import render
from shoal.local.view.status import RunStatus, read_status

ROOT = Path(__file__).resolve().parents[1]
SHARE = 0.4


def status(environment: dict[str, str]) -> RunStatus | None:
    """Return the job's status; None: the job has none yet."""
    command = [sys.executable, "-m", "shoal.cli", "status", "flights", "--output", "json"]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    return read_status(done.stdout) if done.returncode == 0 else None


def main() -> None:
    """Run the job, draw it, and stop it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.live_view")
    parser.add_argument("file", type=Path)
    own = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shoal-live-") as folder:
        environment = {**os.environ, "SHOAL_STATE": folder}
        command = [
            sys.executable,
            "-m",
            "shoal.cli",
            "run",
            str(ROOT / "examples/flights/job.yaml"),
            "--trainers",
            "2:4",
        ]
        runner = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, cwd=folder)
        try:
            while True:
                found = status(environment)
                progress = found.progress if found is not None else None
                if (
                    progress is not None
                    and progress.samples_epoch
                    and progress.samples_done > SHARE * progress.samples_epoch
                ):
                    break
                if runner.poll() is not None:
                    raise SystemExit("the job ended early")
                time.sleep(0.2)  # interval of the checks
            assert found is not None
            console = Console(record=True, width=88, file=io.StringIO())
            console.print(render(found, height=24))
            console.save_svg(str(own.file), title="shoal run job.yaml")
        finally:
            runner.terminate()
            runner.wait(60)


if __name__ == "__main__":
    main()
