"""``make test``: run every test tier that this machine allows, and list the others, each with its fix.

``python -m tests.tiers NAME...`` runs these tiers alone.

Tiers that wait for much of their time run side by side; the output of the first is printed at once, that of each other after
the one before it has ended. With ``SHOAL_TIERS=all``, or for a tier that was named, a tier that cannot run is a failure.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree as ET

from tests.cluster import binaries
from tests.cluster.binaries import Missing

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Tier:
    """A set of tests, and its prerequisites.

    Attributes:
        name: Name, in one word.
        what: Short description.
        selection: Arguments of pytest.
        prepare: Builds what is missing and returns the tests' environment; raises `Missing` where that is impossible.
        workers: Number of processes that run its files side by side: tests that mostly wait do not wait for each other.
    """

    name: str
    what: str
    selection: list[str]
    prepare: Callable[[], dict[str, str]]
    workers: int = 1

    @property
    def arguments(self) -> list[str]:
        """Arguments of pytest; a file of one long test starts in its listed position and not last."""
        side_by_side = (
            ["-n", str(self.workers), "--dist", "loadfile", "--no-loadscope-reorder"] if self.workers > 1 else []
        )
        return [*self.selection, *side_by_side]


def nothing() -> dict[str, str]:
    return {}


def one_thread() -> dict[str, str]:
    """Limit each process to one computing thread, as the tests' processes keep the cores busy already."""
    return {"OMP_NUM_THREADS": "1"}


def build_etcd36() -> dict[str, str]:
    """Build an etcd 3.6, the version that a real Kubernetes has."""
    binaries.build(["etcd"])
    return {"SHOAL_TEST_ETCD": str(binaries.path("etcd"))}


FAST = Tier(
    "fast",
    "pure cores, real etcd, single processes",
    ["-m", "not slow and not cluster"],
    one_thread,
    workers=3,
)
SLOW = Tier("slow", "whole jobs as real processes, killed at random", ["-m", "slow and not cluster"], nothing)
ETCD36 = Tier("etcd36", "the store on an etcd 3.6", ["tests/store", "-m", "not cluster"], build_etcd36)
CLUSTER = Tier(
    "cluster", "a real Kubernetes with hollow nodes", ["-m", "cluster and not node"], binaries.hollow, workers=3
)
NODE = Tier("node", "a real node: jobs that train in pods", ["-m", "node"], binaries.node)
TOGETHER = [[FAST], [SLOW, NODE, ETCD36], [CLUSTER]]
"""One group after the other."""


class Run:
    """A running tier.

    Args:
        tier: The tier.
        extra: Environment variables of its tests.
        folder: Folder for its report, and for its output until that is printed.
        listened: Whether its output is printed at once.
    """

    def __init__(self, tier: Tier, extra: dict[str, str], folder: Path, *, listened: bool) -> None:
        self._tier = tier
        self._report = folder / f"{tier.name}.xml"
        self._output = None if listened else (folder / f"{tier.name}.log").open("w+b")
        if listened:
            self._announce()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *tier.arguments, "--durations=12", f"--junitxml={self._report}"],
            cwd=ROOT,
            env={**os.environ, **extra},
            stdout=self._output,
            stderr=subprocess.STDOUT if self._output is not None else None,
        )

    def result(self) -> tuple[int, list[str]]:
        """Print its output until it has ended; return its exit code and its lines of the summary."""
        if self._output is not None:
            self._announce()
            with Path(str(self._output.name)).open("rb") as message:
                through = False
                while not through:
                    through = self._process.poll() is not None
                    self._pour(message)
                    time.sleep(0.2)  # the file is polled, as its growth is not signalled
        code = self._process.wait()
        line = f"  {self._tier.name:8} {'passed' if code == 0 else 'FAILED'}{took(self._report)}"
        return code, [line, *(f"    {line}" for line in (broken(self._report) if code else []))]

    def end(self) -> None:
        """Wait until the tier has cleaned up; a signal that ends this process, as by Ctrl-C, has reached the tier too."""
        self._process.wait()
        if self._output is not None:
            self._output.close()

    def _announce(self) -> None:
        print(f"--- {self._tier.name}: {self._tier.what}", flush=True)

    @staticmethod
    def _pour(message: BinaryIO) -> None:
        sys.stdout.buffer.write(message.read())
        sys.stdout.buffer.flush()


def took(report: Path) -> str:
    """Format how long the tests of a report took; return an empty text where there is no report."""
    if not report.exists():
        return ""
    return f" in {sum(float(suite.get('time', 0)) for suite in ET.parse(report).iter('testsuite')):.0f} s"


def broken(report: Path) -> list[str]:
    """List the tests of a report that failed, each with the first line of its message."""
    if not report.exists():
        return ["there is no report"]
    lines = []
    for case in ET.parse(report).iter("testcase"):
        for kind in ("failure", "error"):
            for found in case.iter(kind):
                message = next(iter((found.get("message") or "").strip().splitlines()), "")
                lines.append(f"{kind}: {case.get('classname')}::{case.get('name')}: {message[:300]}")
    return lines


def prepared(tiers: list[Tier]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Return the environment of each tier that can run, and a line of the summary for each of the others."""
    able: dict[str, dict[str, str]] = {}
    lines = []
    for tier in tiers:
        try:
            able[tier.name] = tier.prepare()
        except Missing as error:
            lines.append(f"  {tier.name:8} not run: {error}")
    return able, lines


def run_together(tiers: list[Tier], *, strict: bool) -> tuple[bool, list[str]]:
    """Return whether all is well, and the summary's lines; ``strict``: a tier that cannot run is a failure."""
    able, lines = prepared(tiers)
    well = not lines or not strict
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for tier in tiers:
                if tier.name in able:
                    runs.append(Run(tier, able[tier.name], Path(folder), listened=not runs))
            for run in runs:
                code, message = run.result()
                well = well and code == 0
                lines += message
        finally:
            for run in runs:
                run.end()
    return well, lines


def main(names: list[str]) -> int:
    """Run the tiers of these names, or all; return the exit code."""
    known = [tier.name for group in TOGETHER for tier in group]
    strange = [name for name in names if name not in known]
    if strange:
        print(f"error: no tier is named {', '.join(strange)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    strict = bool(names) or os.environ.get("SHOAL_TIERS") == "all"
    lines: list[str] = []
    failed = False
    for group in TOGETHER:
        well, message = run_together([tier for tier in group if not names or tier.name in names], strict=strict)
        failed = failed or not well
        lines += message
    print("\n".join(["tiers:", *lines]), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
