"""Jobs without a manifest, and manifests with command-line options; problems are reported by option."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from shoal.api.errors import ManifestError, Problem
from shoal.api.job import API_VERSION, KIND, TrainingJob
from shoal.api.metadata import LONGEST_NAME
from shoal.api.reading.load import from_mapping

__all__ = ["for_script", "job_name", "parse_trainers", "with_options"]

_OPTIONS: Final = {
    "metadata.name": "--name",
    "spec.epochs": "--epochs",
    "spec.seed": "--seed",
    "spec.parameterServer.replicas": "--servers",
    "spec.trainer.minReplicas": "--trainers",
    "spec.trainer.maxReplicas": "--trainers",
}


def parse_trainers(text: str) -> tuple[int, int]:
    """Parse ``N`` or ``MIN:MAX`` as bounds.

    Raises:
        ManifestError: The text has another form, or MIN is above MAX.
    """
    found = re.fullmatch(r"([0-9]{1,9})(?::([0-9]{1,9}))?", text.strip())
    if found is None:
        raise ManifestError([Problem("--trainers", f"{text!r} must be N or MIN:MAX, such as 3 or 2:4")])
    low = int(found[1])
    high = int(found[2]) if found[2] else low
    if low < 1 or low > high:
        raise ManifestError([Problem("--trainers", f"{text!r}: MIN must be at least 1 and at most MAX")])
    return low, high


def for_script(
    script: str,
    arguments: Sequence[str] = (),
    *,
    trainers: str = "1",
    servers: int = 1,
    epochs: int | None = None,
    seed: int | None = None,
    name: str | None = None,
    python: str = "python",
) -> TrainingJob:
    """Return a job for a script without a manifest; the default of its name is derived from the file's name.

    Raises:
        ManifestError: A value is out of bounds.
    """
    mapping = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": job_name(Path(script).stem)},
        "spec": {"command": [python, script, *arguments]},
    }
    return _with(mapping, trainers=trainers, servers=servers, epochs=epochs, seed=seed, name=name)


def with_options(
    job: TrainingJob,
    *,
    trainers: str | None = None,
    servers: int | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    name: str | None = None,
) -> TrainingJob:
    """Return the job, changed by the options that are set.

    Raises:
        ManifestError: A value is out of bounds.
    """
    return _with(job.to_mapping(), trainers=trainers, servers=servers, epochs=epochs, seed=seed, name=name)


def _with(
    mapping: dict[str, Any],
    *,
    trainers: str | None,
    servers: int | None,
    epochs: int | None,
    seed: int | None,
    name: str | None,
) -> TrainingJob:
    spec = dict(mapping["spec"])
    if trainers is not None:
        low, high = parse_trainers(trainers)
        spec["trainer"] = {**spec.get("trainer", {}), "minReplicas": low, "maxReplicas": high}
        spec["trainer"].pop("replicas", None)
    if servers is not None:
        spec["parameterServer"] = {**spec.get("parameterServer", {}), "replicas": servers}
    spec |= {key: value for key, value in (("epochs", epochs), ("seed", seed)) if value is not None}
    metadata = {**mapping["metadata"], **({"name": name} if name is not None else {})}
    try:
        return from_mapping({**mapping, "metadata": metadata, "spec": spec})
    except ManifestError as error:
        renamed = [Problem(_OPTIONS.get(each.path, each.path), each.text) for each in error.problems]
        raise ManifestError(list(dict.fromkeys(renamed))) from None


def job_name(text: str) -> str:
    """Derive a valid job name from a text such as the name of a script, a function or a folder."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not name[:1].isalpha():
        name = f"job-{name}"
    return name[:LONGEST_NAME].strip("-")
