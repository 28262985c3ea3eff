"""Reads manifests from a file, a text or a mapping; every problem is reported with its field, line and fix."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError

from shoal.api.containers import CONTAINERS
from shoal.api.errors import ManifestError, Problem
from shoal.api.explain import problems_of
from shoal.api.job import API_VERSION, KIND, TrainingJob

__all__ = ["from_mapping", "load", "loads"]

_LARGEST: Final = 1 << 20
"""Largest manifest, in bytes; etcd accepts no larger object."""
_DEEPEST: Final = 50
_MOST_NODES: Final = 50_000
_SERVER_SET: Final = frozenset(
    ("uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "managedFields", "selfLink")
) | {"deletionGracePeriodSeconds"}
"""Metadata that the API server adds; ignored, so that the output of `kubectl get -o yaml` is a valid manifest."""


class _Loader(yaml.SafeLoader):
    """YAML loader for plain values: dates remain text, as in JSON."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load(path: str | Path) -> TrainingJob:
    """Read a manifest file, YAML or JSON.

    Raises:
        ManifestError: The file cannot be read, or the manifest is invalid.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(_LARGEST + 1)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise ManifestError([Problem("", "there is no such file")], source=str(path)) from None
    except UnicodeDecodeError:
        raise ManifestError([Problem("", "is not text in UTF-8")], source=str(path)) from None
    except OSError as error:
        raise ManifestError([Problem("", f"cannot be read: {error.strerror}")], source=str(path)) from None
    return loads(text, source=str(path))


def loads(text: str, *, source: str = "manifest") -> TrainingJob:
    """Read the text of a manifest, YAML or JSON.

    Args:
        text: The text.
        source: Name of the source in messages. Default: ``manifest``.

    Raises:
        ManifestError: The manifest is invalid.
    """
    lines: dict[str, int] = {}
    problems: list[Problem] = []
    try:
        if len(text) > _LARGEST:
            raise ManifestError([Problem("", "is larger than 1 MiB")], source=source)
        node = _document(text, source)
        _Walk(lines, problems).visit(node, "", 0)
        if problems:
            raise ManifestError(problems, source=source)
        mapping = _construct(text)
    except yaml.YAMLError as error:
        raise ManifestError([_not_yaml(error)], source=source) from None
    except (RecursionError, _TooMuchError):
        raise ManifestError(
            [Problem("", "is nested too deeply, or repeats itself without end")], source=source
        ) from None
    except ValueError as error:
        if isinstance(error, ManifestError):
            raise
        raise ManifestError([Problem("", f"has a value that cannot be read: {error}")], source=source) from None
    return from_mapping(mapping, source=source, lines=lines)


def _document(text: str, source: str) -> yaml.Node:
    """Return the only document that is not empty."""
    readable = text.replace("\t", "  ") if "\t" in text and _as_json(text) is not None else text
    nodes = [
        node
        for node in yaml.compose_all(readable, _Loader)
        if node is not None and node.tag != "tag:yaml.org,2002:null"
    ]
    if not nodes:
        raise ManifestError([Problem("", "the file is empty; it needs a TrainingJob")], source=source)
    if len(nodes) > 1:
        second = nodes[1].start_mark.line + 1
        raise ManifestError([Problem("", "a second document; one TrainingJob is wanted", second)], source=source)
    return nodes[0]


def _construct(text: str) -> Any:
    """Return the value of the only document that is not empty.

    Raises:
        ValueError: A value cannot be sent to an API server: NaN or infinity, an unpaired surrogate, bytes.
    """
    found = _as_json(text)
    if found is None:
        found = next(value for value in yaml.load_all(text, _Loader) if value is not None)
    try:
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except TypeError as error:
        raise ValueError(str(error)) from None
    return found


def _as_json(text: str) -> Any:
    """Return the value if the text is JSON; YAML differs from JSON in tabs and in escaped surrogate pairs."""
    if text.lstrip()[:1] == "{":
        with suppress(ValueError, RecursionError):
            return json.loads(text)
    return None


def _not_yaml(error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return Problem("", f"not YAML: {what}", mark.line + 1 if mark is not None else 0)


class _TooMuchError(Exception):
    """The document exceeds the limits for depth or number of nodes."""


class _Walk:
    """Records each field's line, and reports constructs that YAML allows and a manifest does not."""

    def __init__(self, lines: dict[str, int], problems: list[Problem]) -> None:
        self._lines = lines
        self._problems = problems
        self._visited = 0

    def visit(self, node: yaml.Node, path: str, depth: int) -> None:
        """Visit a node and all nodes below it; an alias is visited at each of its places."""
        self._visited += 1
        if depth > _DEEPEST or self._visited > _MOST_NODES:
            raise _TooMuchError
        self._lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            self._mapping(node, path, depth)
        elif isinstance(node, yaml.SequenceNode):
            for number, value in enumerate(node.value):
                self.visit(value, f"{path}[{number}]", depth + 1)

    def _mapping(self, node: yaml.MappingNode, path: str, depth: int) -> None:
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:merge":
                self.visit(value, path, depth + 1)
                continue
            name = str(key.value)
            below = f"{path}.{name}" if path else name
            if key.tag != "tag:yaml.org,2002:str":
                shown = f"{name!r} is" if isinstance(key, yaml.ScalarNode) else "a key is"
                self._problems.append(Problem(path, f"{shown} no field's name; put it in quotes", line))
                continue
            if name in seen:
                self._problems.append(Problem(below, "is written twice; keep one", line))
            seen.add(name)
            self._lines[below] = line
            self.visit(value, below, depth + 1)


def from_mapping(mapping: Any, *, source: str = "", lines: Mapping[str, int] | None = None) -> TrainingJob:
    """Validate a parsed manifest. Null counts as unset.

    Args:
        mapping: The manifest. Fields that only an API server sets (``status``, ``metadata.uid`` etc.) are ignored.
        source: Name of the source in messages. Default: empty.
        lines: Line of each field in the source, by path, for messages. Default: None, unknown.

    Raises:
        ManifestError: The manifest is invalid.
    """
    lines = lines or {}
    if not isinstance(mapping, Mapping):
        text = "not a mapping; a TrainingJob has apiVersion, kind, metadata and spec"
        raise ManifestError([Problem("", text)], source=source)
    head = [
        Problem(
            name,
            (f"is {mapping[name]!r}" if mapping.get(name) is not None else "is missing") + f"; write {name}: {wanted}",
            lines.get(name, 0),
        )
        for name, wanted in (("apiVersion", API_VERSION), ("kind", KIND))
        if mapping.get(name) != wanted
    ]
    if head:
        raise ManifestError(head, source=source)
    try:
        return TrainingJob.model_validate(_of_a_user(mapping), by_alias=True, by_name=False)
    except ValidationError as error:
        raise ManifestError(problems_of(error, lines), source=source) from None


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
