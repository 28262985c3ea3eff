"""``make test``: runs every tier of tests that this machine allows, and lists those that it does not, with the fix.

With ``SHOAL_TIERS=all`` a tier that cannot run is a failure.
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
from xml.etree import ElementTree as ET

from tests.cluster import binaries
from tests.cluster.binaries import Missing

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Tier:
    """Some tests, and what makes them possible.

    Attributes:
        name: In one word.
        what: In a few.
        selection: Arguments of pytest.
        prepare: Builds what is missing and gives the tests' environment; raises `Missing` where that cannot be.
        workers: How many processes run its files side by side: tests that mostly wait do not wait for each other.
    """

    name: str
    what: str
    selection: list[str]
    prepare: Callable[[], dict[str, str]]
    workers: int = 1

    @property
    def arguments(self) -> list[str]:
        """Of pytest."""
        side_by_side = ["-n", str(self.workers), "--dist", "loadfile"] if self.workers > 1 else []
        return [*self.selection, *side_by_side]


def nothing() -> dict[str, str]:
    return {}


def build_etcd36() -> dict[str, str]:
    """An etcd 3.6, as a real Kubernetes has one."""
    binaries.build(["etcd"])
    return {"SHOAL_TEST_ETCD": str(binaries.path("etcd"))}


TIERS = [
    Tier("fast", "pure cores, real etcd, single processes", ["-m", "not slow and not cluster"], nothing, workers=2),
    Tier("slow", "whole jobs as real processes, killed at random", ["-m", "slow and not cluster"], nothing),
    Tier("etcd36", "the store on an etcd 3.6", ["tests/store", "-m", "not cluster"], build_etcd36),
    Tier("cluster", "a real Kubernetes with hollow nodes", ["-m", "cluster and not node"], binaries.hollow, workers=3),
    Tier("node", "a real node: jobs that train in pods", ["-m", "node"], binaries.node),
]


def broken(report: Path) -> list[str]:
    """The tests of a report that failed, each with its last words."""
    if not report.exists():
        return ["there is no report"]
    lines = []
    for case in ET.parse(report).iter("testcase"):
        for kind in ("failure", "error"):
            for found in case.iter(kind):
                said = next(iter((found.get("message") or "").strip().splitlines()), "")
                lines.append(f"{kind}: {case.get('classname')}::{case.get('name')}: {said[:300]}")
    return lines


def main() -> int:
    """Run the tiers; the exit code."""
    lines: list[str] = []
    failed = False
    for tier in TIERS:
        begun = time.monotonic()
        try:
            extra = tier.prepare()
        except Missing as error:
            lines.append(f"  {tier.name:8} not run: {error}")
            failed = failed or os.environ.get("SHOAL_TIERS") == "all"
            continue
        print(f"--- {tier.name}: {tier.what}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            code = subprocess.run(
                [sys.executable, "-m", "pytest", *tier.arguments, "--durations=12", f"--junitxml={report}"],
                cwd=ROOT,
                env={**os.environ, **extra},
                check=False,
            ).returncode
            lines.append(f"  {tier.name:8} {'passed' if code == 0 else 'FAILED'} in {time.monotonic() - begun:.0f} s")
            lines += [f"    {line}" for line in broken(report)] if code else []
        failed = failed or code != 0
    print("\n".join(["tiers:", *lines]), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
