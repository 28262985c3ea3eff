"""From the arguments of `submit` to a TrainingJob. Pure, but for reading a named manifest file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from shoal.api import (
    API_VERSION,
    KIND,
    ManifestError,
    Problem,
    TrainingJob,
    from_mapping,
    load,
    parse_trainers,
    with_options,
)
from shoal.api.reading.script import job_name
from shoal.sdk.errors import InvalidJobError
from shoal.sdk.sources import Sources, sources_of_function, sources_of_script
from shoal.sdk.types import ParameterServers, Resources, Trainers

__all__ = ["Submission", "base_image", "submission"]

_IMAGE: Final = "example.org/shoal/trainer"
_PYTHON: Final = "python"


@dataclass(frozen=True)
class Submission:
    """A job, and the sources that are shipped with it.

    Attributes:
        job: The job. Its trainers do not mount the sources yet, as that differs between a cluster and one machine.
        sources: The sources; None for a job whose image contains its script.
        folder: Folder that a local job runs in. Default: the current one.
    """

    job: TrainingJob
    sources: Sources | None
    folder: Path = field(default_factory=Path.cwd)


def base_image() -> str:
    """Return the default image: ``$SHOAL_IMAGE``, else the trainer image of the installed version."""
    if named := os.environ.get("SHOAL_IMAGE"):
        return named
    try:
        return f"{_IMAGE}:{version('shoal')}"
    except PackageNotFoundError:
        return f"{_IMAGE}:latest"


def submission(
    job: TrainingJob | None = None,
    *,
    manifest: str | Path | Mapping[str, Any] | None = None,
    script: str | Path | None = None,
    function: Any = None,
    command: Sequence[str] | None = None,
    files: Sequence[str | Path] = (),
    arguments: Sequence[str] | Mapping[str, Any] | None = None,
    name: str | None = None,
    image: str | None = None,
    trainers: Trainers | int | str | None = None,
    parameter_servers: ParameterServers | int | None = None,
    epochs: int | None = None,
    seed: int | None = None,
    env: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    output: str | None = None,
    output_claim: str | None = None,
    priority: str | None = None,
) -> Submission:
    """Return what `submit` creates, from its arguments; they are described at `AsyncClient.submit`.

    One function, as its arguments are those of `submit`.

    Raises:
        InvalidJobError: Arguments contradict each other or are invalid, or the sources cannot be shipped.
    """
    origins = {"job": job, "manifest": manifest, "script": script, "function": function, "command": command}
    given = [key for key, value in origins.items() if value is not None]
    if len(given) != 1:
        what = f"both {' and '.join(given)}" if given else "nothing to run"
        raise InvalidJobError(f"submit has {what}; give one of a job, manifest=, script=, function= or command=")
    options = {
        "trainers": trainers,
        "parameter_servers": parameter_servers,
        "epochs": epochs,
        "seed": seed,
        "env": env,
        "labels": labels,
        "annotations": annotations,
        "output": output,
        "output_claim": output_claim,
        "priority": priority,
        "image": image,
    }
    try:
        if job is not None or manifest is not None:
            _only_without_origin(given[0], files=files, arguments=arguments)
            found, folder = _of_manifest(job, manifest)
            return Submission(_changed(found, name, options), None, folder)
        sources = _sources(script, function, files, arguments)
        words = list(command or (_PYTHON, sources.main if sources is not None else ""))
        if not isinstance(arguments, Mapping):
            words += [str(each) for each in arguments or ()]
        if sources is not None:
            options["image"] = image or base_image()
        base = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": name or _name_of(script, function)},
            "spec": {"command": words, "parameterServer": {"replicas": 1}},
        }
        return Submission(_with(base, options), sources)
    except ManifestError as error:
        raise InvalidJobError.of(error) from None


def _only_without_origin(origin: str, **others: Any) -> None:
    for key, value in others.items():
        if value:
            raise InvalidJobError(f"{key}= belongs to script=, function= or command=; a {origin} has its own")


def _of_manifest(job: TrainingJob | None, manifest: str | Path | Mapping[str, Any] | None) -> tuple[TrainingJob, Path]:
    if job is not None:
        given: object = job  # a caller without a type checker may pass anything
        if not isinstance(given, TrainingJob):
            text = f"{type(job).__name__} is not a TrainingJob; a script or a manifest is given as script= or manifest="
            raise InvalidJobError(text)
        return job, Path.cwd()
    if isinstance(manifest, Mapping):
        return from_mapping(manifest), Path.cwd()
    path = Path(str(manifest))
    return load(path), path.resolve().parent


def _changed(job: TrainingJob, name: str | None, options: Mapping[str, Any]) -> TrainingJob:
    if name is None and all(value is None for value in options.values()):
        return job
    return _with(with_options(job, name=name).to_mapping(), options)


def _sources(script: str | Path | None, function: Any, files: Sequence[str | Path], arguments: Any) -> Sources | None:
    if function is not None:
        if arguments is not None and not isinstance(arguments, Mapping):
            raise InvalidJobError("arguments= of a function is a mapping: {'lr': 0.1}")
        return sources_of_function(function, dict(arguments or {}), files)
    if script is not None:
        if isinstance(arguments, Mapping):
            raise InvalidJobError("arguments= of a script is a list: ['--lr', '0.1']")
        return sources_of_script(script, files)
    if files:
        raise InvalidJobError("files= are shipped with script= or function=; a command runs what its image contains")
    if isinstance(arguments, Mapping):
        raise InvalidJobError("arguments= of a command is a list: ['--lr', '0.1']")
    return None


def _name_of(script: str | Path | None, function: Any) -> str:
    if script is None and function is None:
        raise InvalidJobError("name= is missing; a command has no name of its own")
    stem = Path(str(script)).stem if script is not None else str(getattr(function, "__name__", "job"))
    return job_name(stem)


def _with(mapping: Mapping[str, Any], options: Mapping[str, Any]) -> TrainingJob:
    """Return the job of a manifest, with the options that are set."""
    metadata, spec = dict(mapping["metadata"]), dict(mapping["spec"])
    for key in ("labels", "annotations"):
        if options[key] is not None:
            metadata[key] = {**metadata.get(key, {}), **options[key]}
    for key, field_name in (("image", "image"), ("epochs", "epochs"), ("seed", "seed"), ("priority", "priority")):
        if options[key] is not None:
            spec[field_name] = options[key]
    if options["trainers"] is not None:
        spec["trainer"] = _trainers(options["trainers"], spec.get("trainer", {}))
    if options["parameter_servers"] is not None:
        spec["parameterServer"] = _servers(options["parameter_servers"], spec.get("parameterServer", {}))
    if options["env"] is not None:
        kept = [each for each in spec.get("env", []) if each["name"] not in options["env"]]
        spec["env"] = kept + [{"name": key, "value": str(value)} for key, value in options["env"].items()]
    if options["output_claim"] is not None and options["output"] is None and "output" not in spec:
        raise ManifestError([Problem("output_claim", "output= is missing; name the file, such as model.safetensors")])
    if options["output"] is not None or options["output_claim"] is not None:
        named = {"path": options["output"], "volumeClaimName": options["output_claim"]}
        spec["output"] = {**spec.get("output", {}), **{k: v for k, v in named.items() if v is not None}}
    return from_mapping({**mapping, "metadata": metadata, "spec": spec})


def _trainers(given: Trainers | int | str, before: Mapping[str, Any]) -> dict[str, Any]:
    part = dict(before)
    if isinstance(given, int | str):
        low, high = parse_trainers(str(given))
        given = Trainers(min=low, max=high)
    if given.min is not None:
        part |= {"minReplicas": given.min, "maxReplicas": given.max if given.max is not None else given.min}
    elif given.max is not None:
        part["maxReplicas"] = given.max
    if given.min is not None or given.max is not None:
        part.pop("replicas", None)
    if given.replicas is not None:
        part["replicas"] = given.replicas
    return _with_resources(part, given.resources)


def _servers(given: ParameterServers | int, before: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(given, int):
        return {**before, "replicas": given}
    part = {**before, "replicas": given.replicas}
    claim: dict[str, Any] = {}
    if given.storage is not None:
        claim["resources"] = {"requests": {"storage": given.storage}}
    if given.storage_class is not None:
        claim["storageClassName"] = given.storage_class
    if claim:
        part["volumeClaimSpec"] = claim
    if given.empty_dir:
        part["emptyDir"] = {}
    return _with_resources(part, given.resources)


def _with_resources(part: dict[str, Any], resources: Resources | None) -> dict[str, Any]:
    return part if resources is None else {**part, "resources": resources.to_mapping()}
