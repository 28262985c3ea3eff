"""The reader of all YAML and JSON that users write: one document of plain values, with the line of each field.

YAML allows more than a manifest may say, and PyYAML resolves some of it silently: of a key that is written twice it keeps the
last value, ``12:30`` is 750, and a few lines of aliases expand to more than the memory. This reader reports such texts as
problems with their line. Notations of numbers and dates that only YAML 1.1 has remain text. Anchors, aliases and merge keys
are expanded; the number of values is bounded.

The text is parsed as a stream of events, as libyaml's composer calls itself for each level of nesting without a bound.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import yaml

from shoal.api.errors import Problem, shown

__all__ = ["Document", "YamlError", "YamlLimits", "read_file", "read_yaml"]

_DEEPEST: Final = 50
_LONGEST_KEY: Final = 253 + 1 + 63
"""Characters of the longest label key, with its prefix and slash."""
_LONGEST_NUMBER: Final = 20
_TAG: Final = "tag:yaml.org,2002:"
_TRUE: Final = frozenset(("yes", "true", "on"))


class YamlError(ValueError):
    """A text that is not one document of plain values.

    Attributes:
        problem: What is wrong, with its line.
    """

    def __init__(self, text: str, mark: Any = None) -> None:
        self.problem = Problem("", text, mark.line + 1 if mark is not None else 0)
        super().__init__(str(self.problem))


@dataclass(frozen=True)
class YamlLimits:
    """The bounds of a text.

    Attributes:
        kind: What the document is, for messages.
        characters: Maximum length of the text.
        values: Maximum number of values, with those of aliases counted at each of their places.
        any_keys: Whether numbers and booleans are accepted as keys, as their text. Default: False.
    """

    kind: str
    characters: int
    values: int
    any_keys: bool = False


@dataclass(frozen=True)
class Document:
    """The content of a text.

    Attributes:
        value: The value; None for an empty text.
        problems: Problems of the text, in the order of their lines.
        unread: Paths of the fields whose values could not be read; they are null in `value`.
    """

    value: Any
    problems: tuple[Problem, ...]
    unread: frozenset[str]
    _text: str
    _limits: YamlLimits

    def located(self, more: Iterable[Problem]) -> list[Problem]:
        """Return the problems of the text and further ones, with their lines and in their order.

        A further problem of a field whose value could not be read is left out: it is a consequence.

        Args:
            more: Further problems, without lines.
        """
        found = [replace(each, line=self._line(each.path)) for each in more if each.path not in self.unread]
        return sorted([*self.problems, *found], key=lambda problem: problem.line)

    def _line(self, path: str) -> int:
        """Return the line of a field, or of the nearest part around it that has a line."""
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.lines.get(path, 0) if path else 0

    @cached_property
    def lines(self) -> Mapping[str, int]:
        """Line of each field, by path. The text is parsed again for them, as only messages need them."""
        reader = _Reader(self._text, self._limits, lines={})
        reader.document()
        return reader.lines or {}


def read_file(path: str | Path, limits: YamlLimits) -> str:
    """Read a file as text in UTF-8, with or without a byte order mark.

    Args:
        path: The file.
        limits: Its bounds; of a longer file, only one byte more than a text may have is read.

    Raises:
        YamlError: There is no such file, or it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(limits.characters + 1)
        if len(content) > limits.characters:
            raise YamlError(_too_large(limits))
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise YamlError("there is no such file") from None
    except UnicodeDecodeError:
        raise YamlError("is not text in UTF-8") from None
    except OSError as error:
        raise YamlError(f"cannot be read: {error.strerror}") from None


def read_yaml(text: str, limits: YamlLimits) -> Document:
    """Read the only document of a text that is not empty.

    Args:
        text: The text, in YAML or JSON.
        limits: Its bounds.

    Raises:
        YamlError: The text is not YAML, has several documents, or exceeds the limits.
    """
    if len(text) > limits.characters:
        raise YamlError(_too_large(limits))
    text = _json_as_yaml(text)
    reader = _Reader(text, limits)
    value = reader.document()
    problems = sorted(reader.problems, key=lambda problem: problem.line)
    return Document(value, tuple(problems), frozenset(reader.unread), text, limits)


def _too_large(limits: YamlLimits) -> str:
    mebibytes = limits.characters >> 20
    return f"is larger than {f'{mebibytes} MiB' if mebibytes else f'{limits.characters >> 10} KiB'}"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """A parser whose implicit types are those of JSON, and YAML 1.1's names of booleans and null."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, form) for tag, form in resolvers if tag.removeprefix(_TAG) not in {"timestamp", "int", "float", "value"}
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# Not more notations than PyYAML reads as numbers: PyYAML writes without quotes whatever it would read as text.
for _kind, _form in (
    ("int", r"[-+]?(?:0[0-7]*|[1-9][0-9]*)$"),
    ("float", r"(?:[-+]?[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?$"),
):
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(_form), list("-+.0123456789"))


class _Reader:
    """The conversion of a stream of events to plain values.

    Args:
        text: The text.
        limits: Its bounds.
        lines: Mapping that receives the line of each field. Default: None, lines are not recorded.
    """

    def __init__(self, text: str, limits: YamlLimits, *, lines: dict[str, int] | None = None) -> None:
        self.lines = lines
        self.problems: list[Problem] = []
        self.unread: set[str] = set()
        self._text = text
        self._limits = limits
        self._values = 0
        self._merging = 0
        self._replayed: list[Iterator[Any]] = []
        self._anchors: dict[str, list[Any]] = {}
        self._captures: list[list[Any]] = []

    def document(self) -> Any:
        """Return the value of the only document that is not empty; None without one."""
        found: list[Any] = []
        try:
            self._loader = _Loader(self._text)
            while True:
                event = self._event()
                if isinstance(event, yaml.StreamEndEvent):
                    return found[0] if found else None
                if not isinstance(event, yaml.DocumentStartEvent):
                    continue
                self._anchors.clear()
                first = self._event()
                value = self._value(first, "", 0)
                if value is not None and found:
                    raise YamlError(f"a second document; one {self._limits.kind} is wanted", first.start_mark)
                found += [value] if value is not None else []
        except yaml.YAMLError as error:
            what = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
            raise YamlError(f"not YAML: {what}", getattr(error, "problem_mark", None)) from None
        except UnicodeEncodeError:
            raise YamlError("has a character that is not Unicode text") from None

    def _event(self) -> Any:
        if self._replayed:
            return next(self._replayed[-1])
        event: Any = self._loader.get_event()
        for captured in self._captures:
            captured.append(event)
        return event

    def _value(self, event: Any, path: str, depth: int) -> Any:
        self._values += 1
        if depth > _DEEPEST:
            raise YamlError(f"is nested more than {_DEEPEST} levels deep", event.start_mark)
        if self._values > self._limits.values:
            raise YamlError(f"has more than {self._limits.values} values")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, path, depth)
        if self.lines is not None:
            self.lines.setdefault(path, _line_of(event))
        if event.anchor is None or self._replayed:
            return self._content(event, path, depth)
        if event.anchor in self._anchors:
            raise YamlError(f"&{event.anchor} is written twice; choose another name", event.start_mark)
        captured = [event]
        self._captures.append(captured)
        value = self._content(event, path, depth)
        self._captures.pop()
        self._anchors[event.anchor] = captured
        return value

    def _alias(self, event: Any, path: str, depth: int) -> Any:
        if event.anchor not in self._anchors:
            raise YamlError(f"*{event.anchor} stands for nothing that is written above it", event.start_mark)
        events = iter(self._anchors[event.anchor])
        self._replayed.append(events)
        value = self._value(next(events), path, depth)
        self._replayed.pop()
        return value

    def _content(self, event: Any, path: str, depth: int) -> Any:
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, path)
        tag = event.tag if event.tag not in {None, "!"} else ""
        if isinstance(event, yaml.MappingStartEvent):
            mapping = self._mapping(path, depth)
            return mapping if tag in {"", f"{_TAG}map"} else self._refuse(tag, event, path)
        values: list[Any] = []
        while not isinstance(event := self._event(), yaml.SequenceEndEvent):
            values.append(self._value(event, f"{path}[{len(values)}]", depth + 1))
        return values if tag in {"", f"{_TAG}seq"} else self._refuse(tag, event, path)

    def _mapping(self, path: str, depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        merged: list[tuple[int, Any]] = []
        while not isinstance(key := self._event(), yaml.MappingEndEvent):
            name, is_merge = self._key(key, path, depth)
            line = _line_of(key)
            if is_merge:
                self._merging += 1
                value = self._value(self._event(), path, depth + 1)
                self._merging -= 1
                merged += [(line, each) for each in (value if isinstance(value, list) else [value])]
                continue
            below = f"{path}.{name}" if path else name or ""
            if self.lines is not None and name is not None and name not in made:
                # A field that is written where it counts has the line of that place, and not that of a merged mapping.
                self.lines[below] = self.lines.get(below, line) if self._merging else line
            value = self._value(self._event(), below, depth + 1)
            if name is not None and name in made:
                self.problems.append(Problem(below, "is written twice; keep one", line))
            elif name is not None:
                made[name] = value
        for line, other in merged:
            if isinstance(other, dict):
                made = other | made
            else:
                self.problems.append(Problem(path, "<< merges mappings only", line))
        return made

    def _key(self, event: Any, path: str, depth: int) -> tuple[str | None, bool]:
        """Return a key's text and whether it is a merge key; None for a key that is refused."""
        if isinstance(event, yaml.AliasEvent) and isinstance(
            anchored := self._anchors.get(str(event.anchor), [event])[0], yaml.ScalarEvent
        ):
            event = anchored
        if not isinstance(event, yaml.ScalarEvent):
            self._value(event, path, depth + 1)
            self.problems.append(
                Problem(path, "a key is no field's name; put it in quotes, or remove it", _line_of(event))
            )
            return None, False
        if event.anchor is not None:
            self._anchors.setdefault(event.anchor, [event])
        tag = self._tag(event)
        if tag == f"{_TAG}merge":
            return None, True
        name = event.value
        is_name = tag == f"{_TAG}str" or (self._limits.any_keys and tag.startswith(_TAG))
        if is_name and 0 < len(name) <= _LONGEST_KEY and name.isprintable():
            return name, False
        text = f"{shown(name)} is no field's name; put it in quotes, or remove it"
        self.problems.append(Problem(path, text, _line_of(event)))
        return None, False

    def _tag(self, event: Any) -> str:
        if event.tag is None or event.tag == "!":
            return str(self._loader.resolve(yaml.ScalarNode, event.value, event.implicit))
        return str(event.tag)

    def _scalar(self, event: Any, path: str) -> Any:
        tag, text = self._tag(event).removeprefix(_TAG), event.value
        if tag in {"str", "merge"}:
            return text
        if tag == "null":
            return None
        if tag == "bool":
            return text.lower() in _TRUE
        if tag in {"int", "float"} and len(text) <= _LONGEST_NUMBER + 10 * (tag == "float"):
            with suppress(ValueError):
                number = float(text) if tag == "float" else int(text, 8 if text.lstrip("+-").startswith("0") else 10)
                json.dumps(number, allow_nan=False)
                return number
        return self._refuse(tag, event, path)

    def _refuse(self, tag: str, event: Any, path: str) -> None:
        value = getattr(event, "value", "")
        cut = f"{value[:_LONGEST_NUMBER]}..." if len(value) > _LONGEST_NUMBER else value
        if tag in {"int", "float"}:
            text = f"{cut} is not a finite number of at most {_LONGEST_NUMBER} digits"
        else:
            kind = f"!!{tag.removeprefix(_TAG)}" if tag.startswith(_TAG) or not tag.startswith("!") else tag
            fix = "is not a plain value; write a text, a number, true, false, null, a list or a mapping"
            text = f"{f'{kind} {cut}'.rstrip()} {fix}"
        self.problems.append(Problem(path, text, _line_of(event)))
        self.unread.add(path)


def _line_of(event: Any) -> int:
    return int(event.start_mark.line) + 1


_ESCAPE: Final = re.compile(r"\\(?:u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|.)", re.DOTALL)


def _json_as_yaml(text: str) -> str:
    """Return a text with what JSON allows and YAML does not replaced: tabs, and characters escaped as two surrogates."""
    if text.lstrip()[:1] != "{" or ("\t" not in text and "\\u" not in text):
        return text
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return text
    return _ESCAPE.sub(_joined, text.replace("\t", "  "))


def _joined(escape: re.Match[str]) -> str:
    high, low = escape.groups()
    if high is None:
        return escape.group()
    return bytes.fromhex(high + low).decode("utf-16-be")
