"""Kubernetes objects with parts in Helm's template language, and how they are written as a template.

An object is a parsed manifest in which some values are nodes of this module: `When`, `Range`, `Text`, `Block` and `Merged`.
`write` turns it into text. `add_variant` compares two renderings of one object, without and with a kustomize component, and
makes the difference depend on a condition, so that a component's patch is not written a second time for Helm.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import yaml

__all__ = ["Block", "BuildError", "Merged", "Range", "Text", "When", "add_variant", "flow", "write"]

_FIRST: Final = ("apiVersion", "kind", "metadata", "name")
_ABSENT: Final = object()


class BuildError(Exception):
    """The manifests have something that the chart cannot express; the message names it."""


@dataclass(frozen=True)
class Text:
    """A string with template actions.

    Attributes:
        text: The string, as ``--lease={{ $.Release.Namespace }}/shoal-operator``.
        quoted: Whether it is a string of YAML; False for a number. Default: True.
    """

    text: str
    quoted: bool = True


@dataclass(frozen=True)
class Block:
    """A value that a template expression provides; its key is left out where the value is empty.

    Attributes:
        expression: The expression, as ``$.Values.nodeSelector``.
    """

    expression: str


@dataclass(frozen=True)
class Merged:
    """A mapping to which a template expression adds lines.

    Attributes:
        mapping: The known entries.
        expression: The expression for the others.
    """

    mapping: Mapping[str, Any]
    expression: str


@dataclass(frozen=True)
class When:
    """An object, an entry of a mapping or an item of a list that depends on a condition.

    Attributes:
        condition: The condition, as ``$.Values.autoscaler.enabled``.
        then: The value where it holds.
        otherwise: The value where it does not hold. Default: the entry is left out.
    """

    condition: str
    then: Any
    otherwise: Any = _ABSENT


@dataclass(frozen=True)
class Range:
    """An object or an item of a list that is repeated; the current element is ``.`` in its texts.

    Attributes:
        expression: The list, as ``$.Values.scope.namespaces``.
        item: What is repeated.
    """

    expression: str
    item: Any


def add_variant(target: Any, base: Any, variant: Any, wrap: Callable[[Any], Any]) -> Any:
    """Return an object with what a component adds to it.

    Args:
        target: The object; it may have parts from other components already.
        base: Its manifest without the component.
        variant: Its manifest with the component.
        wrap: Makes an added entry or item depend on the component's condition.

    Raises:
        BuildError: The component removes something, or two components change the same value.
    """
    if base == variant:
        return target
    if isinstance(base, dict) and isinstance(variant, dict):
        if removed := sorted(set(base) - set(variant)):
            raise BuildError(
                f"a component removes {', '.join(removed)}; only additions and replaced values are supported"
            )
        result = dict(target)
        for key, value in variant.items():
            if key in base:
                result[key] = add_variant(target[key], base[key], value, wrap)
            elif key in target:
                raise BuildError(f"two components add {key}; only one may")
            else:
                result[key] = wrap(value)
        return result
    if isinstance(base, list) and isinstance(variant, list) and len(variant) >= len(base):
        variant = _in_order(variant, base)
        kept = [add_variant(*each, wrap) for each in zip(target, base, variant, strict=False)]
        return [*kept, *target[len(base) :], *map(wrap, variant[len(base) :])]
    node = wrap(variant)
    if target != base or not isinstance(node, When):
        raise BuildError(f"{base!r} becomes {variant!r} in a way that the chart cannot express")
    return When(node.condition, node.then, target)


def _in_order(variant: list[Any], base: list[Any]) -> list[Any]:
    """Return named items in the order that they have in the base, as a patch of kustomize moves what it changes."""
    if not all(isinstance(each, dict) and "name" in each for each in variant):
        return variant
    names = [each.get("name") for each in base]
    return sorted(variant, key=lambda each: names.index(each["name"]) if each["name"] in names else len(names))


def flow(value: Any) -> str:
    """Return a value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_inside(key)}: {_inside(below)}" for key, below in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inside, value)) + "]"
    if not isinstance(value, str) or "\n" in value:
        return json.dumps(value, ensure_ascii=False)
    return str(yaml.safe_dump(value, width=float("inf"), allow_unicode=True)).removesuffix("...\n").strip()


def _inside(value: Any) -> str:
    """Return a value inside braces or brackets, where commas and brackets end a plain string."""
    return (
        json.dumps(value, ensure_ascii=False) if isinstance(value, str) and set(value) & set(",[]{}") else flow(value)
    )


def write(objects: Sequence[Any]) -> str:
    """Return objects, or nodes around objects, as the text of a template.

    Raises:
        BuildError: A string without template actions has the delimiter ``{{``.
    """
    return "".join(f"{line}\n" for line in _documents(objects))


def _documents(objects: Sequence[Any]) -> Iterator[str]:
    """Write objects; neighbours with the same condition are written below one."""
    for action, group in itertools.groupby(objects, key=_action):
        if action:
            yield action
            yield from _documents([_inner(each) for each in group])
            yield "{{- end }}"
        else:
            for each in group:
                yield "---"
                yield from _mapping(each, "")


def _action(node: Any) -> str:
    """Return the action that begins a node; empty: it is no node."""
    if isinstance(node, When):
        return f"{{{{- if {node.condition} }}}}"
    return f"{{{{- range {node.expression} }}}}" if isinstance(node, Range) else ""


def _inner(node: When | Range) -> Any:
    return node.then if isinstance(node, When) else node.item


def _mapping(entries: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key in sorted(entries, key=lambda key: (_FIRST.index(key) if key in _FIRST else len(_FIRST), key)):
        yield from _entry(key, entries[key], indent)


def _entry(key: str, value: Any, indent: str) -> Iterator[str]:
    head = f"{indent}{flow(key)}:"
    if isinstance(value, When):
        yield _action(value)
        yield from _entry(key, value.then, indent)
        if value.otherwise is not _ABSENT:
            yield "{{- else }}"
            yield from _entry(key, value.otherwise, indent)
        yield "{{- end }}"
    elif isinstance(value, Block):
        yield f"{{{{- with {value.expression} }}}}"
        yield head
        yield f"{indent}  {{{{- toYaml . | nindent {len(indent) + 2} }}}}"
        yield "{{- end }}"
    elif isinstance(value, Merged):
        yield head
        yield from _mapping(value.mapping, f"{indent}  ")
        yield f"{indent}  {{{{- {value.expression} | nindent {len(indent) + 2} }}}}"
    elif isinstance(value, dict) and value:
        yield head
        yield from _mapping(value, f"{indent}  ")
    elif isinstance(value, list) and value:
        yield head
        yield from _items(value, indent)
    else:
        yield f"{head} {_scalar(value)}"


def _items(items: list[Any], indent: str) -> Iterator[str]:
    for item in items:
        if isinstance(item, When | Range):
            yield _action(item)
            yield from _items([_inner(item)], indent)
            yield "{{- end }}"
        elif isinstance(item, dict) and item:
            yield from _dashed(item, indent)
        else:
            yield f"{indent}- {_scalar(item)}"


def _dashed(item: Mapping[str, Any], indent: str) -> Iterator[str]:
    """Write a mapping as an item: its first line has the dash, which a template action must not have."""
    lines = list(_mapping(item, f"{indent}  "))
    if lines[0].startswith("{{"):
        raise BuildError(f"the first entry of {sorted(item)} in a list depends on a value; give the item a name")
    yield f"{indent}- {lines[0].lstrip()}"
    yield from lines[1:]


def _scalar(value: Any) -> str:
    if isinstance(value, Text):
        return f'"{value.text}"' if value.quoted else value.text
    if isinstance(value, When):
        raise BuildError(f"{value.condition} would be inside a line")
    text = flow(value)
    if "{{" in text:
        raise BuildError(f"{text} has the delimiter of Helm's templates")
    return text
