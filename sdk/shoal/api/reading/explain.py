"""Converts pydantic's errors into messages: the field's path as Kubernetes writes it, what is wrong, and the fix.

The model may be a manifest or any other model that is read from a text, passed as ``root``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import takewhile
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError

from shoal.api.errors import Problem, RulesBrokenError, shown
from shoal.api.job import TrainingJob

__all__ = ["path_of", "problems_of"]

_KINDS: Final = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
_BOUNDS: Final = {
    "greater_than_equal": ("small; it must be at least", "ge"),
    "greater_than": ("small; it must be above", "gt"),
    "less_than_equal": ("large; it must be at most", "le"),
}
_FIXED: Final = {
    "missing": "is missing; add it",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "string_too_long": "is too long; it must have at most {max_length} characters",
}


def problems_of(error: ValidationError, *, root: type[BaseModel] = TrainingJob) -> list[Problem]:
    """Return all problems that pydantic found.

    Args:
        error: Pydantic's error.
        root: Model of the whole text. Default: `TrainingJob`.
    """
    problems = []
    found = error.errors(include_url=False)
    for details in found:
        if details["type"] == "too_short" and _has_below(details["loc"], found):
            continue  # if all entries of a list are invalid, pydantic also reports that the list is too short
        path = path_of(details["loc"])
        broken = details.get("ctx", {}).get("error")
        if isinstance(broken, RulesBrokenError):
            texts = [(_joined(path, each.path), each.text) for each in broken.problems]
        else:
            texts = [(path, _text(details, root))]
        problems += [Problem(where, text) for where, text in texts]
    return problems


def _has_below(location: Sequence[int | str], found: Sequence[Any]) -> bool:
    """Return whether another error is located below this one."""

    def alike(other: Sequence[int | str]) -> int:
        return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(location, other, strict=False))))

    return any(len(each["loc"]) > len(location) == alike(each["loc"]) for each in found)


def _joined(path: str, below: str) -> str:
    """Join a path and a relative path: a field, or an index such as `[0]`."""
    return f"{path}.{below}" if path and below and not below.startswith("[") else f"{path}{below}"


def path_of(location: Sequence[int | str]) -> str:
    """Format a location as a path: ``spec.env[0].value`` for ``("spec", "env", 0, "value")``."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return path


def _text(details: Any, root: type[BaseModel]) -> str:
    kind, value, context = details["type"], details.get("input"), details.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown(details["loc"], root)
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return f"{shown(value)} is not known; write {context['expected']}"
    if kind in _BOUNDS:
        phrase, name = _BOUNDS[kind]
        bound = context[name]
        return f"{shown(value)} is too {phrase} {f'{bound:g}' if isinstance(bound, float) else bound}"
    if kind in _KINDS:
        return f"{shown(value)} is not {_KINDS[kind]}{_hint(kind, value)}"
    return _FIXED[kind].format_map(context) if kind in _FIXED else str(details["msg"])


def _hint(kind: str, value: Any) -> str:
    """Return the fix for a value that only has the wrong type."""
    if kind == "string_type" and isinstance(value, bool | int | float):
        text = str(value).lower() if isinstance(value, bool) else str(value)
        return f'; write "{text}" in quotes'
    if kind.startswith("int") and isinstance(value, str) and value.isascii() and value.isdigit():
        return f"; write {value} without quotes"
    if kind == "list_type" and isinstance(value, str):
        return f"; write [{', '.join(value.split())}]" if value.split() else ""
    return ""


def _unknown(location: Sequence[int | str], root: type[BaseModel]) -> str:
    """Return the message for an unknown field: a similar known name, or the place where the field belongs."""
    name = str(location[-1])
    model: type[BaseModel] | None = root
    for part in location[:-1]:
        if isinstance(part, str) and model is not None:
            model = {alias: below for alias, below, _ in _fields(model)}.get(part)
    known = [alias for alias, _, _ in _fields(model)] if model is not None else []
    near = difflib.get_close_matches(_like(name, known), known, n=1, cutoff=0.7)
    if near:
        return f"unknown field; did you mean {near[0]}?"
    elsewhere = _places(root).get(name)
    if elsewhere:
        return f"unknown field here; it belongs to {' or '.join(elsewhere)}"
    return f"unknown field; known here: {', '.join(known)}"


def _like(name: str, known: Sequence[str]) -> str:
    """Write a name in the style of the known names: camelCase, or with underscores if some of them have underscores."""
    first, *rest = re.split("[_-]", name)
    if any("_" in each for each in known):
        return "_".join([first, *rest])
    return first + "".join(part[:1].upper() + part[1:] for part in rest)


def _fields(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel] | None, bool]]:
    """Yield each field's name in a text, the model below it, and whether it is a list of that model."""
    for name, field in model.model_fields.items():
        choices = [field.annotation, *get_args(field.annotation)]
        below = (each for each in choices if isinstance(each, type) and issubclass(each, BaseModel))
        several = getattr(field.annotation, "__origin__", None) in {list, tuple}
        yield field.alias or name, next(below, None), several


@cache
def _places(root: type[BaseModel]) -> dict[str, list[str]]:
    """Return, for each field's name, the paths of the parts that have the field."""
    found: dict[str, list[str]] = {}
    waiting: list[tuple[str, bool, type[BaseModel]]] = [("", False, root)]
    while waiting:
        path, several, model = waiting.pop(0)
        for alias, below, many in _fields(model):
            where = f"each of {path}" if several else path or "the top"
            found.setdefault(alias, []).append(where)
            if below is not None:
                waiting.append((f"{path}.{alias}" if path else alias, many, below))
    return found
