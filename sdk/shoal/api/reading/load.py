"""Reads manifests from a file, a text or a mapping; every problem is reported with its field, line and fix."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from shoal.api.containers import CONTAINERS
from shoal.api.errors import ManifestError, Problem
from shoal.api.job import API_VERSION, KIND, TrainingJob
from shoal.api.reading.explain import problems_of
from shoal.api.reading.strict_yaml import YamlError, YamlLimits, read_file, read_yaml

__all__ = ["from_mapping", "load", "loads"]

_LIMITS: Final = YamlLimits(kind="TrainingJob", characters=1 << 20, values=50_000)
"""Bounds of a manifest; etcd accepts no larger object."""
_SERVER_SET: Final = frozenset(
    ("uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "managedFields", "selfLink")
) | {"deletionGracePeriodSeconds"}
"""Metadata that the API server adds; ignored, so that the output of `kubectl get -o yaml` is a valid manifest."""


def load(path: str | Path) -> TrainingJob:
    """Read a manifest file, YAML or JSON.

    Raises:
        ManifestError: The file cannot be read, or the manifest is invalid.
    """
    try:
        text = read_file(path, _LIMITS)
    except YamlError as error:
        raise ManifestError([error.problem], source=str(path)) from None
    return loads(text, source=str(path))


def loads(text: str, *, source: str = "manifest") -> TrainingJob:
    """Read the text of a manifest, YAML or JSON.

    Args:
        text: The text.
        source: Name of the source in messages. Default: ``manifest``.

    Raises:
        ManifestError: The manifest is invalid.
    """
    try:
        document = read_yaml(text, _LIMITS)
    except YamlError as error:
        raise ManifestError([error.problem], source=source) from None
    if document.value is None:
        raise ManifestError([Problem("", "the file is empty; it needs a TrainingJob")], source=source)
    try:
        job = from_mapping(document.value)
    except ManifestError as error:
        raise ManifestError(document.located(error.problems), source=source) from None
    if document.problems:
        raise ManifestError(document.problems, source=source)
    return job


def from_mapping(mapping: Any, *, source: str = "") -> TrainingJob:
    """Validate a parsed manifest. Null counts as unset.

    Args:
        mapping: The manifest. Fields that only an API server sets (``status``, ``metadata.uid`` etc.) are ignored.
        source: Name of the source in messages. Default: empty.

    Raises:
        ManifestError: The manifest is invalid.
    """
    if not isinstance(mapping, Mapping):
        text = "not a mapping; a TrainingJob has apiVersion, kind, metadata and spec"
        raise ManifestError([Problem("", text)], source=source)
    head = [
        Problem(
            name,
            (f"is {mapping[name]!r}" if mapping.get(name) is not None else "is missing") + f"; write {name}: {wanted}",
        )
        for name, wanted in (("apiVersion", API_VERSION), ("kind", KIND))
        if mapping.get(name) != wanted
    ]
    if head:
        raise ManifestError(head, source=source)
    try:
        return TrainingJob.model_validate(_of_a_user(mapping), by_alias=True, by_name=False)
    except ValidationError as error:
        raise ManifestError(problems_of(error), source=source) from None


def _of_a_user(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest without nulls and without the fields that an API server adds.

    Nulls in a pod template remain: there they remove a value that Shoal sets.
    """
    plain = {key: _set(value) for key, value in mapping.items() if value is not None and key != "status"}
    if isinstance(plain.get("metadata"), dict):
        plain["metadata"] = {k: v for k, v in plain["metadata"].items() if k not in _SERVER_SET}
    given = mapping.get("spec")
    for role in CONTAINERS:
        part = given.get(role) if isinstance(given, Mapping) else None
        template = part.get("template") if isinstance(part, Mapping) else None
        if isinstance(template, Mapping):
            plain["spec"][role]["template"] = copy.deepcopy(dict(template))
    return plain


def _set(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _set(below) for key, below in value.items() if below is not None}
    if isinstance(value, list | tuple):
        return [_set(below) for below in value]
    return value
