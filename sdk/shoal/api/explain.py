"""The findings of pydantic in words for people: the field's path as Kubernetes writes it, what is wrong, the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError

from shoal.api.errors import Problem, RulesBrokenError, shown
from shoal.api.job import TrainingJob

__all__ = ["problems_of"]

_KINDS: Final = {
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
_BOUNDS: Final = {
    "greater_than_equal": ("small; it must be at least", "ge"),
    "less_than_equal": ("large; it must be at most", "le"),
}
_FIXED: Final = {
    "missing": "is missing; add it",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
}


def problems_of(error: ValidationError, lines: Mapping[str, int]) -> list[Problem]:
    """Everything that pydantic found, in the manifest's order."""
    problems = []
    for details in error.errors(include_url=False):
        path = path_of(details["loc"])
        broken = details.get("ctx", {}).get("error")
        if isinstance(broken, RulesBrokenError):
            found = [(f"{path}.{each.path}" if path else each.path, each.text) for each in broken.problems]
        else:
            found = [(path, _text(details))]
        problems += [Problem(where, text, _line(where, lines)) for where, text in found]
    return sorted(problems, key=lambda problem: problem.line)


def path_of(location: Sequence[int | str]) -> str:
    """``spec.env[0].value`` for ``("spec", "env", 0, "value")``."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return path


def _text(details: Any) -> str:
    kind, value, context = details["type"], details.get("input"), details.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown(details["loc"])
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return f"{shown(value)} is not known; write {context['expected']}"
    if kind in _BOUNDS:
        said, bound = _BOUNDS[kind]
        return f"{shown(value)} is too {said} {context[bound]}"
    if kind in _KINDS:
        return f"{shown(value)} is not {_KINDS[kind]}{_hint(kind, value)}"
    return _FIXED.get(kind, str(details["msg"]))


def _hint(kind: str, value: Any) -> str:
    """The fix, where a value looks right and has the wrong type."""
    if kind == "string_type" and isinstance(value, bool | int | float):
        text = str(value).lower() if isinstance(value, bool) else str(value)
        return f'; write "{text}" in quotes'
    if kind.startswith("int") and isinstance(value, str) and value.isascii() and value.isdigit():
        return f"; write {value} without quotes"
    if kind == "list_type" and isinstance(value, str):
        return f"; write [{', '.join(value.split())}]" if value.split() else ""
    return ""


def _line(path: str, lines: Mapping[str, int]) -> int:
    """The line of a field, or of the nearest part around it that is there."""
    while path and path not in lines:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return lines.get(path, 0) if path else 0


def _unknown(location: Sequence[int | str]) -> str:
    """The nearest known name here, or where a field of this name belongs."""
    name = str(location[-1])
    model: type[BaseModel] | None = TrainingJob
    for part in location[:-1]:
        if isinstance(part, str) and model is not None:
            model = dict(_fields(model)).get(part)
    known = [alias for alias, _ in _fields(model)] if model is not None else []
    near = difflib.get_close_matches(_camel(name), known, n=1, cutoff=0.7)
    if near:
        return f"unknown field; did you mean {near[0]}?"
    elsewhere = _places().get(name)
    if elsewhere:
        return f"unknown field here; it belongs to {' or '.join(elsewhere)}"
    return f"unknown field; known here: {', '.join(known)}"


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _fields(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel] | None]]:
    """Each field by its name in a manifest, with the model below it."""
    for name, field in model.model_fields.items():
        choices = [field.annotation, *get_args(field.annotation)]
        below = (each for each in choices if isinstance(each, type) and issubclass(each, BaseModel))
        yield field.alias or name, next(below, None)


@cache
def _places() -> dict[str, list[str]]:
    """Where each field's name is known, by the paths of the parts that have it."""
    found: dict[str, list[str]] = {}
    waiting: list[tuple[str, type[BaseModel]]] = [("", TrainingJob)]
    while waiting:
        path, model = waiting.pop(0)
        for alias, below in _fields(model):
            if path:
                found.setdefault(alias, []).append(path)
            if below is not None:
                waiting.append((f"{path}.{alias}" if path else alias, below))
    return found
