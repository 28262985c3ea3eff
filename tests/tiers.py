"""``make test``: runs every tier of tests that this machine allows, and lists those that it does not, with the fix.

With ``SHOAL_TIERS=all`` a tier that cannot run is a failure.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

ROOT = Path(__file__).resolve().parent.parent
ETCD36 = ROOT / "tests" / "etcd36"


class Missing(Exception):
    """A tier cannot run here; the message has the fix."""


@dataclass(frozen=True)
class Tier:
    """Some tests, and what makes them possible."""

    name: str
    what: str
    selection: list[str]
    prepare: Callable[[], dict[str, str]]


def nothing() -> dict[str, str]:
    return {}


def build_etcd36() -> dict[str, str]:
    """An etcd 3.6 from its Go module, built once and kept in the user's cache."""
    go = shutil.which("go")
    if go is None:
        raise Missing("an etcd 3.6 is built from its Go module; install Go 1.24 or newer")
    pinned = (ETCD36 / "go.mod").read_bytes() + (ETCD36 / "go.sum").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shoal" / "bin"
    binary = cache / f"etcd-{hashlib.sha256(pinned).hexdigest()[:16]}"
    if not binary.exists():
        print("building etcd 3.6 (about half a minute, once)", flush=True)
        cache.mkdir(parents=True, exist_ok=True)
        part = binary.with_suffix(f".{os.getpid()}")
        built = subprocess.run(
            [go, "build", "-o", str(part), "go.etcd.io/etcd/server/v3"],
            cwd=ETCD36,
            env={**os.environ, "CGO_ENABLED": "0"},
            check=False,
            capture_output=True,
            text=True,
        )
        if built.returncode:
            raise Missing(f"etcd 3.6 could not be built: {built.stderr.strip()[-500:]}")
        part.replace(binary)
    return {"SHOAL_TEST_ETCD": str(binary)}


TIERS = [
    Tier("fast", "pure cores, real etcd, single processes", ["-m", "not slow and not cluster"], nothing),
    Tier("slow", "whole jobs as real processes, killed at random", ["-m", "slow and not cluster"], nothing),
    Tier("etcd36", "the store on an etcd 3.6", ["tests/store", "-m", "not cluster"], build_etcd36),
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
                [sys.executable, "-m", "pytest", *tier.selection, f"--junitxml={report}"],
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
