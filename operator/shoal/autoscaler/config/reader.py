"""The reader of an AutoscalerConfig: from a text in YAML or JSON to the configuration, or to all of its problems by path and line.

In practice the text is a mounted ConfigMap. Only plain values of a limited size are accepted, without aliases: a few lines of
aliases can expand to more than the memory. A duplicate key is refused, whereas YAML silently keeps the last one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import yaml
from pydantic import ValidationError

from shoal.api import Problem
from shoal.api.errors import shown
from shoal.api.explain import problems_of
from shoal.autoscaler.config.types import AutoscalerConfig

__all__ = ["LARGEST", "ConfigError", "load"]

LARGEST: Final = 1 << 18
"""Most characters of a text."""
_MOST_VALUES: Final = 10_000
_LONGEST_KEY: Final = 253 + 1 + 63
"""Characters of the longest label key, with its prefix and slash."""
_LONGEST_NUMBER: Final = 20
_TAG: Final = "tag:yaml.org,2002:"


class ConfigError(ValueError):
    """A configuration that is not valid; its text has one line for each of its problems.

    Args:
        problems: All problems of the configuration.
        source: Name of the file, as the prefix of each line. Default: no prefix.
    """

    def __init__(self, problems: Sequence[Problem], *, source: str = "") -> None:
        self.problems = list(problems)
        self.source = source
        head = f"{source}: " if source else ""
        super().__init__("\n".join(f"{head}{problem}" for problem in self.problems))


def load(text: str) -> AutoscalerConfig:
    """Read a configuration from a text in YAML or JSON.

    Keys with the value null count as not set; an empty text sets nothing.

    Raises:
        ConfigError: The text is not valid; the configuration in force should stay.
    """
    if len(text) > LARGEST:
        raise ConfigError([Problem("", "is larger than 256 KiB")])
    reader = _Reader()
    try:
        mapping = reader.read(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
        raise ConfigError([Problem("", f"not YAML: {what}", mark.line + 1 if mark is not None else 0)]) from None
    except RecursionError:
        raise ConfigError([Problem("", "is nested too deeply")]) from None
    try:
        config = AutoscalerConfig.model_validate(mapping, by_alias=True, by_name=False)
    except ValidationError as error:
        # A field that the reader has left out with a problem must not be reported as missing as well.
        found = [*reader.problems, *problems_of(error, reader.lines, root=AutoscalerConfig)]
        raise ConfigError(sorted(found, key=lambda problem: problem.line)) from None
    if reader.problems:
        raise ConfigError(reader.problems)
    return config


class _Loader(yaml.SafeLoader):
    """A YAML loader of plain values: dates, and numbers in notations that only YAML has (1:30 for 90), stay text."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            line = event.start_mark.line + 1
            raise ConfigError([Problem("", f"*{event.anchor} repeats what stands above; write it out", line)])
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, form) for tag, form in resolvers if tag not in {f"{_TAG}{kind}" for kind in ("timestamp", "int", "float")}
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# Not more notations than PyYAML reads as numbers: PyYAML writes without quotes whatever it would read as text.
for _kind, _form in (
    ("int", r"[-+]?(?:0[0-7]*|[1-9][0-9]*)$"),
    ("float", r"(?:[-+]?[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?$"),
):
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(_form), list("-+.0123456789"))


class _Odd:
    """A value that is not plain: no field accepts it, and messages show it as it was written.

    Args:
        text: The value as it was written.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


class _Reader:
    """The conversion of a text to plain values, with the line of each field.

    Keys that YAML allows and a configuration does not are left out and added to ``problems``, so that the rest is still
    checked.
    """

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self.problems: list[Problem] = []
        self._values = 0

    def read(self, text: str) -> dict[str, Any]:
        """Return the mapping that the text contains.

        Raises:
            yaml.YAMLError: The text is not YAML.
            RecursionError: The text is nested too deeply.
            ConfigError: The text is not exactly one mapping, or has too many values.
        """
        self._loader = _Loader(_untabbed(text))
        try:
            nodes = []
            while self._loader.check_node():
                node = self._loader.get_node()
                if node is not None and node.tag != f"{_TAG}null":
                    nodes.append(node)
            if len(nodes) > 1:
                line = nodes[1].start_mark.line + 1
                raise ConfigError([Problem("", "a second document; one AutoscalerConfig is wanted", line)])
            value = self._value(nodes[0], "") if nodes else {}
        finally:
            self._loader.dispose()
        if not isinstance(value, dict):
            raise ConfigError([Problem("", "not a mapping; write keys and values such as `cycle: 5s`")])
        return value

    def _value(self, node: yaml.Node, path: str) -> Any:
        self._values += 1
        if self._values > _MOST_VALUES:
            raise ConfigError([Problem("", f"has more than {_MOST_VALUES} values")])
        self.lines.setdefault(path, node.start_mark.line + 1)
        if node.tag == f"{_TAG}map" and isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if node.tag == f"{_TAG}seq" and isinstance(node, yaml.SequenceNode):
            return [self._value(each, f"{path}[{number}]") for number, each in enumerate(node.value)]
        return self._scalar(node) if isinstance(node, yaml.ScalarNode) else _Odd(_shorthand(node.tag))

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        if node.tag == f"{_TAG}int" and len(node.value) > _LONGEST_NUMBER:
            return _Odd(f"{node.value[:_LONGEST_NUMBER]}...")
        try:
            value = self._loader.construct_object(node)
        except (yaml.YAMLError, ValueError, OverflowError):
            value = node
        if isinstance(value, str):
            return _whole(value)
        return (
            value if value is None or isinstance(value, int | float) else _Odd(f"{_shorthand(node.tag)} {node.value!r}")
        )

    def _mapping(self, node: yaml.MappingNode, path: str) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            name = _whole(key.value) if isinstance(key, yaml.ScalarNode) else ""
            if key.tag != f"{_TAG}str" or not 0 < len(name) <= _LONGEST_KEY or not name.isprintable():
                text = f"{shown(name)} is" if isinstance(key, yaml.ScalarNode) else "a key is"
                self.problems.append(Problem(path, f"{text} no field's name; put it in quotes, or remove it", line))
                continue
            below = f"{path}.{name}" if path else name
            if name in made:
                self.problems.append(Problem(below, "is written twice; keep one", line))
                continue
            self.lines[below] = line
            made[name] = self._value(value, below)
        return made


def _shorthand(tag: str) -> str:
    return tag.replace(_TAG, "!!", 1)


def _whole(text: str) -> str:
    """Return a text with surrogate pairs joined: JSON may escape one character as two surrogates."""
    with suppress(UnicodeDecodeError):
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    return text


def _untabbed(text: str) -> str:
    """Return JSON without tabs: JSON allows tabs between values, where YAML often does not."""
    if "\t" in text and text.lstrip()[:1] == "{":
        with suppress(ValueError, RecursionError):
            json.loads(text)
            return text.replace("\t", "  ")
    return text
