"""`shoal validate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import typer

from shoal.api import ManifestError, load
from shoal.cli.errors import USAGE

__all__ = ["validate_manifest"]


def validate_manifest(path: Path, *, output: str) -> int:
    """Validate a manifest and return the exit code."""
    try:
        job = load(path)
    except ManifestError as error:
        if output != "json":
            raise
        problems = [{"path": p.path, "line": p.line, "text": p.text} for p in error.problems]
        typer.echo(json.dumps({"valid": False, "source": error.source, "problems": problems}))
        return USAGE
    trainer = job.spec.trainer
    if output == "json":
        typer.echo(json.dumps({"valid": True, "source": str(path), "problems": []}))
        return 0
    epochs = "the script's number of epochs" if job.spec.epochs is None else f"epochs: {job.spec.epochs}"
    sys.stdout.write(
        f"{path}: good (TrainingJob {job.metadata.name}, {epochs}, "
        f"trainers: {trainer.min_replicas} to {trainer.most}, parameter servers: {job.servers})\n"
    )
    return 0
