"""Manifests in: from a file, from text, from a mapping, or made for a script; every problem named with its field."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from shoal.api.errors import ManifestError, Problem
from shoal.api.job import API_VERSION, KIND, LONGEST_NAME, TrainingJob

__all__ = ["for_script", "from_mapping", "load", "loads", "parse_trainers"]

_KINDS = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def load(path: str | Path) -> TrainingJob:
    """Read a manifest file.

    Raises:
        ManifestError: It cannot be read, or something is wrong with it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ManifestError([Problem("", "there is no such file")], source=str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError([Problem("", f"cannot be read: {error}")], source=str(path)) from None
    return loads(text, source=str(path))


def loads(text: str, *, source: str = "manifest") -> TrainingJob:
    """Read a manifest's text.

    Raises:
        ManifestError: Something is wrong with it.
    """
    try:
        nodes = [node for node in yaml.compose_all(text, yaml.SafeLoader) if node is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else 0
        raise ManifestError(
            [Problem("", f"not YAML: {getattr(error, 'problem', error)}", line)], source=source
        ) from None
    if not nodes:
        raise ManifestError([Problem("", "the file is empty; it needs a TrainingJob")], source=source)
    if len(nodes) > 1:
        raise ManifestError([Problem("", f"{len(nodes)} documents; one TrainingJob is wanted")], source=source)
    lines: dict[str, int] = {}
    problems: list[Problem] = []
    _walk(nodes[0], "", lines, problems)
    if problems:
        raise ManifestError(problems, source=source)
    return from_mapping(yaml.safe_load(text), source=source, lines=lines)


def _walk(node: yaml.Node, path: str, lines: dict[str, int], problems: list[Problem]) -> None:
    """Note each field's line, and refuse a field written twice."""
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            below = f"{path}.{name}" if path else name
            if name in seen:
                problems.append(Problem(below, "is written twice; keep one", key.start_mark.line + 1))
            seen.add(name)
            _walk(value, below, lines, problems)
            lines[below] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            _walk(value, f"{path}.{number}", lines, problems)


def from_mapping(mapping: Any, *, source: str = "", lines: Mapping[str, int] | None = None) -> TrainingJob:
    """Check a manifest that was parsed already.

    Raises:
        ManifestError: Something is wrong with it.
    """
    if not isinstance(mapping, Mapping):
        raise ManifestError(
            [Problem("", "not a mapping; a TrainingJob has apiVersion, kind, metadata, spec")], source=source
        )
    head = [
        Problem(name, f"is {mapping.get(name)!r}; write {name}: {wanted}", (lines or {}).get(name, 0))
        for name, wanted in (("apiVersion", API_VERSION), ("kind", KIND))
        if mapping.get(name) != wanted
    ]
    if head:
        raise ManifestError(head, source=source)
    try:
        return TrainingJob.model_validate(mapping)
    except ValidationError as error:
        problems = [_problem(details, lines or {}) for details in error.errors()]
        problems.sort(key=lambda problem: problem.line)
        raise ManifestError(problems, source=source) from None


def _problem(details: Any, lines: Mapping[str, int]) -> Problem:
    path = ".".join(str(part) for part in details["loc"])
    kind, value = details["type"], details.get("input")
    if kind == "extra_forbidden":
        text = _unknown(details["loc"])
    elif kind == "missing":
        text = "is missing; add it"
    elif kind == "value_error":
        text = str(details["ctx"]["error"])
        if text.startswith("@"):
            field, _, text = text[1:].partition(": ")
            path = f"{path}.{field}" if path else field
    elif kind == "literal_error":
        text = f"{value!r} is not known; write {details['ctx']['expected']}"
    elif kind in {"greater_than_equal", "greater_than"}:
        text = f"{value!r} is too small; it must be at least {details['ctx'].get('ge', details['ctx'].get('gt'))}"
    elif kind in {"too_short", "string_too_short"}:
        text = "must not be empty"
    elif kind in _KINDS:
        text = f"{value!r} is not {_KINDS[kind]}"
    else:
        text = str(details["msg"]).lower()
    return Problem(path, text, _line(path, lines))


def _line(path: str, lines: Mapping[str, int]) -> int:
    while path and path not in lines:
        path = path.rpartition(".")[0]
    return lines.get(path, 0) if path else 0


def _unknown(location: tuple[Any, ...]) -> str:
    model: Any = TrainingJob
    for part in location[:-1]:
        model = _model_below(model, str(part))
    known = [field.alias or name for name, field in model.model_fields.items()] if model is not None else []
    near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.6)
    if near:
        return f"unknown field; did you mean {near[0]}?"
    return "unknown field; known here: " + ", ".join(known) if known else "unknown field"


def _model_below(model: Any, alias: str) -> Any:
    """The model of a field, by the name it has in a manifest."""
    for name, field in model.model_fields.items() if model is not None else ():
        if alias in {field.alias, name}:
            for choice in (field.annotation, *get_args(field.annotation)):
                if isinstance(choice, type) and issubclass(choice, BaseModel):
                    return choice
    return None


def parse_trainers(text: str) -> tuple[int, int]:
    """``N`` or ``MIN:MAX`` as bounds.

    Raises:
        ManifestError: It is neither, or MIN is above MAX.
    """
    found = re.fullmatch(r"(\d+)(?::(\d+))?", text.strip())
    if found is None:
        raise ManifestError([Problem("--trainers", f"{text!r} must be N or MIN:MAX, such as 3 or 2:4")])
    low = int(found[1])
    high = int(found[2]) if found[2] else low
    if low < 1 or low > high:
        raise ManifestError([Problem("--trainers", f"{text!r}: MIN must be at least 1 and at most MAX")])
    return low, high


def for_script(
    script: str,
    arguments: list[str],
    *,
    trainers: str = "1",
    servers: int = 1,
    epochs: int | None = None,
    seed: int | None = None,
    name: str | None = None,
    python: str = "python",
) -> TrainingJob:
    """A job for a script, without any manifest; its name comes from the file's.

    Raises:
        ManifestError: Some value is out of bounds.
    """
    low, high = parse_trainers(trainers)
    stem = re.sub(r"[^a-z0-9-]+", "-", Path(script).stem.lower()).strip("-")[:LONGEST_NAME]
    spec: dict[str, Any] = {
        "command": [python, script, *arguments],
        "trainer": {"minReplicas": low, "maxReplicas": high},
        "parameterServer": {"replicas": servers},
    }
    if epochs is not None:
        spec["epochs"] = epochs
    if seed is not None:
        spec["seed"] = seed
    metadata = {"name": name or (stem if stem[:1].isalpha() else f"job-{stem}".strip("-"))}
    return from_mapping({"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec})
