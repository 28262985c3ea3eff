"""Builds the program beside this file, which asks the API server's own code; once, into the user's cache."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent


def build() -> Path:
    """The program; it is built when the cache does not have it (two minutes on two cores)."""
    go = shutil.which("go")
    assert go is not None, "the definition is checked by a Go program; install Go 1.24 or newer"
    sources = b"".join((HERE / name).read_bytes() for name in ("go.mod", "go.sum", "main.go"))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shoal" / "bin"
    binary = cache / f"crd-{hashlib.sha256(sources).hexdigest()[:16]}"
    if not binary.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = binary.with_suffix(f".{os.getpid()}")
        built = subprocess.run(
            [go, "build", "-trimpath", "-ldflags", "-s -w", "-o", str(part), "."],
            cwd=HERE,
            env={**os.environ, "CGO_ENABLED": "0"},
            check=False,
            capture_output=True,
            text=True,
        )
        assert built.returncode == 0, built.stderr
        part.replace(binary)
    return binary
