"""From the options of `shoal submit` to the arguments of `Client.submit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from shoal.api import parse_trainers
from shoal.cli.errors import CommandError
from shoal.sdk import Resources, Trainers

__all__ = ["submit_arguments"]

_MANIFESTS: Final = frozenset({".yaml", ".yml", ".json"})


def submit_arguments(
    source: str,
    arguments: Sequence[str],
    *,
    files: Sequence[Path],
    name: str | None,
    image: str | None,
    trainers: str | None,
    servers: int | None,
    resources: tuple[str | None, str | None, int | None],
    epochs: int | None,
    seed: int | None,
    env: Sequence[str],
    labels: Sequence[str],
    output: str | None,
    output_claim: str | None,
    priority: str | None,
) -> dict[str, Any]:
    """Return the arguments of `Client.submit`.

    One function, as its arguments are the options of the command.

    Args:
        source: A manifest or a script.
        arguments: Arguments of the script.
        files: Files that are shipped with the script.
        name: Name of the job.
        image: Image of all processes.
        trainers: Number of trainers, N or MIN:MAX.
        servers: Number of parameter servers.
        resources: Cores, memory and GPUs of each trainer.
        epochs: Number of epochs.
        seed: Seed.
        env: Variables, as NAME=VALUE.
        labels: Labels, as KEY=VALUE.
        output: Path of the model file.
        output_claim: Claim for that file.
        priority: Priority of the job.

    Raises:
        CommandError: The file does not exist, or an option does not fit.
        ManifestError: --trainers has another form.
    """
    found: dict[str, Any] = {
        "name": name,
        "image": image,
        "parameter_servers": servers,
        "epochs": epochs,
        "seed": seed,
        "env": _pairs("--env", env),
        "labels": _pairs("--label", labels),
        "output": output,
        "output_claim": output_claim,
        "priority": priority,
    }
    path = Path(source)
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise CommandError(f"{source} {kind}; name a manifest (job.yaml) or a training script (train.py)")
    if path.suffix in _MANIFESTS:
        for option, value in (("arguments", arguments), ("--file", files)):
            if value:
                raise CommandError(f"{option}: a manifest has its own command and image; submit a script to ship files")
        found["manifest"] = path
    elif path.suffix == ".py":
        found |= {"script": path, "files": list(files), "arguments": list(arguments)}
    else:
        raise CommandError(f"{source}: neither a manifest (.yaml, .yml, .json) nor a Python script (.py)")
    return found | {"trainers": _trainers(trainers, *resources)}


def _trainers(number: str | None, cpu: str | None, memory: str | None, gpu: int | None) -> Trainers | str | None:
    if cpu is None and memory is None and gpu is None:
        return number
    low, high = parse_trainers(number) if number is not None else (None, None)
    return Trainers(min=low, max=high, resources=Resources(cpu=cpu, memory=memory, gpu=gpu))


def _pairs(option: str, given: Sequence[str]) -> Mapping[str, str] | None:
    pairs: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise CommandError(f"{option} {text}: write NAME=VALUE")
        pairs[key] = value
    return pairs or None
