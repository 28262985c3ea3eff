"""The AutoscalerConfig: what an operator of a cluster may choose, how it is read, and how it changes while all runs.

It comes as text (YAML or JSON, in practice a mounted ConfigMap). Whoever edits it does so on a cluster at work, so nothing
is guessed: an unknown key, a key that stands twice or a value out of bounds refuses the whole text, with every problem by
its path, and what was in force stays in force. The text is held to plain values of a modest size, without aliases: a few
lines of those can stand for more than memory holds.

One module, because fields, their rules and the words for what breaks them change together, and the file is little beside.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from shoal.api import Duration, ManifestError, Problem
from shoal.api.errors import RulesBrokenError, shown
from shoal.api.explain import path_of, problems_of
from shoal.api.job import Model
from shoal.autoscaler.model import Policy

__all__ = [
    "AutoscalerConfig",
    "Change",
    "ConfigError",
    "ConfigFile",
    "LabelWeight",
    "Priority",
    "load",
    "policy",
    "priority_of",
    "weight_of",
]

_LARGEST: Final = 1 << 18
"""Characters of a text."""
_MOST_VALUES: Final = 10_000
_LONGEST_KEY: Final = 253 + 1 + 63
"""A label's key, with its prefix."""
_LONGEST_NUMBER: Final = 20
_PATIENCE: Final = 3
"""Looks in a row after which a file that was there is believed to be gone, or empty."""
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
_DOTTED: Final = re.compile(rf"{_NAME.pattern}(?:\.{_NAME.pattern})*")
_LABEL: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_EXPONENTIAL: Final = re.compile(r"[-+]?[0-9]{1,20}(?:\.[0-9]{0,20})?[eE][-+]?[0-9]{1,3}")
_TAG: Final = "tag:yaml.org,2002:"


class ConfigError(ValueError):
    """A configuration that cannot be taken; ``problems`` has everything that is wrong with it, one a line in its text."""

    def __init__(self, problems: Sequence[Problem], *, source: str = "") -> None:
        self.problems = list(problems)
        self.source = source
        head = f"{source}: " if source else ""
        super().__init__("\n".join(f"{head}{problem}" for problem in self.problems))


def _lasts(low: str, high: str = "") -> Callable[[Duration], Duration]:
    """The check that a duration lies between two, both of which are allowed."""

    def check(value: Duration) -> Duration:
        if value < Duration(low):
            raise ValueError(f"{str(value)!r} is too short; it must be at least {low}")
        if high and value > Duration(high):
            raise ValueError(f"{str(value)!r} is too long; it must be at most {high}")
        return value

    return check


def _amounts(low: str, high: str) -> Callable[[Any], float]:
    """The check that a value is a number between two, both of which are allowed; they are texts as people write them."""

    def check(value: Any) -> float:
        # YAML takes 1e3 for text; JSON, and Helm where it writes YAML, mean a number.
        if isinstance(value, str) and _EXPONENTIAL.fullmatch(value):
            value = float(value)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or value != value:  # noqa: PLR0124 - which holds for "not a number" alone
            raise ValueError(f"{shown(value)} is not a number{_unquoted(value)}")
        if value < float(low):
            raise ValueError(f"{shown(value)} is too small; it must be at least {low}")
        if value > float(high):
            raise ValueError(f"{shown(value)} is too large; it must be at most {high}")
        return float(value)

    return check


def _unquoted(value: Any) -> str:
    """The fix, where a number was written as text."""
    plain = isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,20}(\.[0-9]{1,20})?", value)
    return f"; write {value} without quotes" if plain else ""


def _listed(value: Any) -> Any:
    """A list as it comes from a text; the field's own type would call it a tuple, which no text has."""
    if not isinstance(value, list | tuple):
        fix = "; write `- ` before each of its entries" if isinstance(value, Mapping) else ""
        raise ValueError(f"{shown(value)} is not a list{fix}")  # noqa: TRY004 - pydantic reports no other
    return value


def _named(value: str) -> str:
    if not value:
        raise ValueError("must not be empty; write a name such as batch")
    if len(value) > 63 or not _NAME.fullmatch(value):
        letters = "lower-case letters, digits and '-' only, begin and end with a letter or digit"
        raise ValueError(f"{shown(value)} must have {letters}, and be no longer than 63")
    return value


def _class_named(value: str) -> str:
    """Kubernetes' rule for a PriorityClass, less the two that Kubernetes keeps for itself: training has to give way."""
    if not value:
        raise ValueError("must not be empty; write the name of a PriorityClass")
    if len(value) > 253 or not _DOTTED.fullmatch(value):
        raise ValueError(f"{shown(value)} is no PriorityClass's name; it has lower-case letters, digits, '-' and '.'")
    if value.startswith("system-"):
        raise ValueError(f"{shown(value)} is for what the cluster cannot do without; write a class below 0")
    return value


def _check_label(key: str, value: str) -> None:
    """Kubernetes' rule for a label.

    Raises:
        ValueError: No node and no job can have it.
    """
    prefix, slash, name = key.rpartition("/")
    if not _LABEL.fullmatch(name) or (slash and (len(prefix) > 253 or not _DOTTED.fullmatch(prefix))):
        raise ValueError(f"{shown(key)} is no label's key; write one such as team or example.org/team")
    if value and not _LABEL.fullmatch(value):
        letters = "letters, digits, '-', '_' and '.', at most 63, the first and last a letter or digit"
        raise ValueError(f"{shown(value)} is no label's value; it has {letters}")


def _is_selector(value: dict[str, str]) -> dict[str, str]:
    for key, wanted in value.items():
        _check_label(key, wanted)
    return value


def _is_label(value: str) -> str:
    key, equals, wanted = value.partition("=")
    if not equals:
        raise ValueError(f"{shown(value)} is not a label; write key=value, such as team=search")
    _check_label(key, wanted)
    return value


Switch = Annotated[bool, Field(strict=True)]
Natural = Annotated[int, Field(ge=0, strict=True)]
# Shares are divided by weights and multiplied with them; so far apart and no farther every step of that stays exact enough.
Weight = Annotated[float, BeforeValidator(_amounts("0.000001", "1000000"))]
Name = Annotated[str, AfterValidator(_named)]
ClassName = Annotated[str, AfterValidator(_class_named)]


class _Part(Model):
    """What all parts have in common: those of a manifest, and that null means "not set"."""

    @model_validator(mode="before")
    @classmethod
    def _set(cls, value: Any) -> Any:
        # An unknown key stays, so that it is refused whatever its value is.
        known = cls.known()
        if not isinstance(value, Mapping):
            return value
        return {key: below for key, below in value.items() if below is not None or key not in known}

    @classmethod
    def known(cls) -> list[str]:
        """The keys that it may have in a text."""
        return [field.alias or name for name, field in cls.model_fields.items()]


class Priority(_Part):
    """A rank of jobs, and the PriorityClasses of their pods.

    Two priorities may name the same classes: their jobs then compete as equals, but for the weights.
    """

    name: Name = Field(
        description="What jobs write in spec.priority: lower-case letters, digits and '-', at most 63. Each name once."
    )
    weight: Weight = Field(
        default=1.0,
        description="Claim to room of each of its jobs, where it competes with others of the same class: with 2 it gets "
        "twice the share of one with 1. A label's weight takes its place.",
    )
    servers: ClassName = Field(
        description="PriorityClass of masters and parameter servers. The highest of the three: a job that loses one of "
        "these stands still."
    )
    minimum: ClassName = Field(
        description="PriorityClass of the trainers up to a job's minReplicas. Between the other two; losing one ends the "
        "job's work until there is room again."
    )
    surplus: ClassName = Field(
        description="PriorityClass of the trainers beyond a job's minReplicas. The lowest of the three, so that the "
        "scheduler takes these first; not below -10, or the Cluster Autoscaler makes no nodes for them."
    )

    @model_validator(mode="after")
    def _classes_differ(self) -> Priority:
        fix = "name three classes, or the scheduler cannot take the surplus first and the servers last"
        broken = []
        if self.minimum == self.servers:
            broken.append(Problem("minimum", f"{self.minimum!r} is the class of servers too; {fix}"))
        if self.surplus in {self.servers, self.minimum}:
            other = "servers" if self.surplus == self.servers else "minimum"
            broken.append(Problem("surplus", f"{self.surplus!r} is the class of {other} too; {fix}"))
        if broken:
            raise RulesBrokenError(broken)
        return self


class LabelWeight(_Part):
    """The weight of the jobs that have a label."""

    label: Annotated[str, AfterValidator(_is_label)] = Field(
        description="Label of TrainingJobs, as key=value: team=search. Each label once; of several that a job has, the "
        "first one in the list counts."
    )
    weight: Weight = Field(description="Weight of these jobs, in place of their priority's.")


class AutoscalerConfig(_Part):
    """What an operator of a cluster may choose. Everything has a default, and may change while jobs run."""

    enabled: Switch = Field(
        default=True,
        description="Whether jobs move between their bounds. false leaves each with its pinned number or its minimum.",
    )
    dry_run: Switch = Field(
        default=False, description="true says what would be done and changes nothing: to look before leaping."
    )
    cycle: Annotated[Duration, AfterValidator(_lasts("1s", "5m"))] = Field(
        default=Duration("5s"),
        description="Longest time between two looks at the cluster when nothing happens, 1s to 5m. What is missed by a "
        "watch is seen this much later.",
    )
    debounce: Annotated[Duration, AfterValidator(_lasts("10ms", "5s"))] = Field(
        default=Duration("100ms"),
        description="Wait after a change in the cluster, so that a burst is answered once, 10ms to 5s. It is part of the "
        "time that a waiting pod waits; less costs plans that are old at once.",
    )
    cool_down: Duration = Field(
        default=Duration("60s"),
        description="For so long after a move for fairness alone a job gives no trainer for fairness. 0s allows moves in "
        "every cycle, and with jobs that come and go trainers are busy starting.",
    )
    moves_per_cycle: Natural = Field(
        default=8,
        description="Moves for fairness alone in one cycle, over all jobs; 0: none ever. Room for pods of higher priority "
        "and for minimums is not counted.",
    )
    head_room: Annotated[float, BeforeValidator(_amounts("0", "100"))] = Field(
        default=0.0,
        description="Room that surplus trainers leave for pods to come, as a multiple of what pods other than ours have "
        "needed within one grace period: 1 lets such a burst bind without any eviction, 0 leaves nothing. It is idle "
        "until the burst comes.",
    )
    scheduler_evicts: Switch = Field(
        default=True,
        description="Pods that preempt by themselves get their room from the scheduler, and it is only left free for "
        "them. false makes that room ourselves: fewer victims, but where both act a pod is served twice.",
    )
    node_selector: Annotated[dict[str, str], AfterValidator(_is_selector)] = Field(
        default_factory=dict,
        description="Labels that a node must have, all of them, for trainers to be planned there: {pool: training}. "
        "Empty: every node.",
    )
    stuck_after: Annotated[Duration, AfterValidator(_lasts("100ms"))] = Field(
        default=Duration("10s"),
        description="For so long a trainer may be refused by the scheduler before its job is capped at what runs. Too "
        "short, and jobs are capped while a victim still ends.",
    )
    priorities: Annotated[tuple[Priority, ...], BeforeValidator(_listed)] = Field(
        default=(Priority(name="default", servers="shoal-servers", minimum="shoal-minimum", surplus="shoal-surplus"),),
        description="Ranks of jobs, the highest first; PriorityClasses are made beforehand, with values in that order.",
    )
    default: str | None = Field(
        default=None,
        description="Name of the priority of a job without spec.priority; unset, the last of the list, so that nobody "
        "ranks above others by saying nothing.",
    )
    weights: Annotated[tuple[LabelWeight, ...], BeforeValidator(_listed)] = Field(
        default=(),
        description="Weights of jobs by their labels: [{label: team=search, weight: 2}]. A job that has none of them has "
        "its priority's weight.",
    )

    @field_validator("priorities")
    @classmethod
    def _ranks(cls, value: tuple[Priority, ...]) -> tuple[Priority, ...]:
        if not value:
            raise ValueError("must not be empty; leave it out for one priority named default")
        _refuse_repeated([each.name for each in value], key="name")
        return value

    @field_validator("default")
    @classmethod
    def _is_known(cls, value: str | None, info: ValidationInfo) -> str | None:
        known = [each.name for each in info.data.get("priorities", ())]
        if value is not None and known and value not in known:
            raise ValueError(f"{shown(value)} is the name of no priority; {_instead(value, known)}")
        return value

    @field_validator("weights")
    @classmethod
    def _labels_differ(cls, value: tuple[LabelWeight, ...]) -> tuple[LabelWeight, ...]:
        _refuse_repeated([each.label for each in value], key="label")
        return value

    def to_mapping(self) -> dict[str, Any]:
        """As in a text: camelCase, only what was set."""
        return self.model_dump(by_alias=True, exclude_unset=True, mode="json")


_PARTS: Final[Mapping[str, type[_Part]]] = {"": AutoscalerConfig, "priorities": Priority, "weights": LabelWeight}
"""What can stand in a text, by the key that it stands below."""


def _refuse_repeated(names: Sequence[str], *, key: str) -> None:
    """Refuse entries of a list that have what an earlier one has.

    Raises:
        RulesBrokenError: There are some; the problems' paths begin at the list.
    """
    broken = []
    seen: set[str] = set()
    for number, name in enumerate(names):
        if name in seen:
            broken.append(Problem(f"[{number}].{key}", f"{name!r} stands above already; keep one"))
        seen.add(name)
    if broken:
        raise RulesBrokenError(broken)


def load(text: str) -> AutoscalerConfig:
    """Read a configuration's text, YAML or JSON. Keys that are null count as not set; an empty text sets nothing.

    Raises:
        ConfigError: Something is wrong with it; what was in force should stay so.
    """
    if len(text) > _LARGEST:
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
        # What was left out for a reason must not be called missing as well.
        found = [*reader.problems, *_problems(error, reader.lines)]
        raise ConfigError(sorted(found, key=lambda problem: problem.line)) from None
    if reader.problems:
        raise ConfigError(reader.problems)
    return config


def _problems(error: ValidationError, lines: Mapping[str, int]) -> list[Problem]:
    """Everything that pydantic found; what a manifest's words for it lack is our own names, for unknown keys."""
    unknown = {
        path_of(each["loc"]): each["loc"]
        for each in error.errors(include_url=False)
        if each["type"] == "extra_forbidden"
    }
    found = []
    for problem in problems_of(error, lines):
        # Rules on a whole list name its entries by number.
        path = problem.path if problem.path in unknown else problem.path.replace(".[", "[")
        text = _unknown(unknown[path]) if path in unknown else problem.text
        found.append(Problem(path, text, lines.get(path, problem.line)))
    return found


def _unknown(location: Sequence[int | str]) -> str:
    """What to write in place of an unknown key: the nearest known one here, or else where it belongs."""
    name = str(location[-1])
    known = _PARTS[str(location[0]) if len(location) > 1 else ""].known()
    first, *rest = re.split("[_-]", name)
    near = difflib.get_close_matches(first + "".join(map(str.capitalize, rest)), known, n=1, cutoff=0.7)
    if near:
        return f"unknown field; did you mean {near[0]}?"
    elsewhere = [f"each of {path}" if path else "the top" for path, part in _PARTS.items() if name in part.known()]
    if elsewhere:
        return f"unknown field here; it belongs to {' or '.join(elsewhere)}"
    return f"unknown field; known here: {', '.join(known)}"


class _Loader(yaml.SafeLoader):
    """YAML of plain values: dates, and numbers as no other format writes them (1:30 for 90), stay text."""

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
# No more than PyYAML takes for numbers: it leaves without quotes, when it writes, whatever it would read as text.
for _kind, _form in (
    ("int", r"[-+]?(?:0[0-7]*|[1-9][0-9]*)$"),
    ("float", r"(?:[-+]?[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?$"),
):
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", re.compile(_form), list("-+.0123456789"))


class _Odd:
    """A value that is not plain: it fits no field, and is shown as it was written."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


class _Reader:
    """Makes plain values of a text, and notes each field's line and what YAML allows and a configuration does not.

    Keys that are wrong are left out and told in ``problems``, so that the rest is still checked.
    """

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self.problems: list[Problem] = []
        self._values = 0

    def read(self, text: str) -> dict[str, Any]:
        """The mapping that the text holds.

        Raises:
            yaml.YAMLError: It is not YAML.
            RecursionError: It is nested too deeply.
            ConfigError: It is something else than one mapping, or far too much.
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
    """A text whose characters are whole ones: JSON may escape one as two halves."""
    with suppress(UnicodeDecodeError):
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    return text


def _untabbed(text: str) -> str:
    """JSON without its tabs, which YAML takes in few places and JSON between values only."""
    if "\t" in text and text.lstrip()[:1] == "{":
        with suppress(ValueError, RecursionError):
            json.loads(text)
            return text.replace("\t", "  ")
    return text


def policy(config: AutoscalerConfig) -> Policy:
    """What of it the planner goes by."""
    return Policy(
        cool_down_seconds=config.cool_down.seconds,
        moves=config.moves_per_cycle,
        stuck_seconds=config.stuck_after.seconds,
        scheduler_evicts=config.scheduler_evicts,
    )


def priority_of(config: AutoscalerConfig, job_priority: str | None) -> Priority:
    """The priority of a job.

    Args:
        config: In force.
        job_priority: The job's ``spec.priority``; None: it has the configuration's default.

    Raises:
        ManifestError: The job names one that there is not, possibly no more.
    """
    name = job_priority if job_priority is not None else config.default
    if name is None:
        return config.priorities[-1]
    found = next((each for each in config.priorities if each.name == name), None)
    if found is None:
        known = [each.name for each in config.priorities]
        text = f"{shown(name)} is no priority of this cluster; {_instead(name, known)}"
        raise ManifestError([Problem("spec.priority", text)])
    return found


def _instead(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"{meant}known: {', '.join(known)}; or leave it out"


def weight_of(config: AutoscalerConfig, priority: Priority, *, labels: Mapping[str, str]) -> float:
    """A job's claim to room among jobs of its class.

    Args:
        config: In force.
        priority: The job's.
        labels: The job's own; the first of the configuration's that is among them counts, and without any the priority's
            weight does.
    """
    has = {f"{key}={value}" for key, value in labels.items()}
    return next((each.weight for each in config.weights if each.label in has), priority.weight)


@dataclass(frozen=True, kw_only=True)
class Change:
    """What one look at a file found to be new: one of the two.

    Attributes:
        config: The configuration that is in force from now on; None: the one before stays.
        problem: Why the file cannot be taken, for people; empty: it can.
    """

    config: AutoscalerConfig | None = None
    problem: str = ""


class _Mark(NamedTuple):
    """By which a file is known to be the one that was read."""

    device: int
    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, found: os.stat_result) -> _Mark:
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


class ConfigFile:
    """A configuration in a file that may change at any time; until it is read, the defaults are in force.

    It is polled, not watched: the kubelet changes a mounted ConfigMap by swapping a link two folders up, which no watch of
    the file itself tells. A poll is one look at the file's attributes as long as these stay the same.

    A file that was read and then is gone or empty is what a writer in between leaves. Nothing is said of it for two polls:
    to take the defaults for that moment would let an autoscaler act that was told not to.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._config = AutoscalerConfig()
        self._problem = ""
        self._mark: _Mark | None = None
        self._taken = False
        self._absent = 0

    @property
    def config(self) -> AutoscalerConfig:
        """What is in force."""
        return self._config

    @property
    def problem(self) -> str:
        """What is wrong with the file now; empty: nothing."""
        return self._problem

    def poll(self) -> Change | None:
        """Look at the file once; what is new, or None. The first poll always tells something."""
        try:
            text = self._news()
            config = load(text) if text is not None else None
        except ConfigError as error:
            return self._refuse(str(ConfigError(error.problems, source=str(self._path))))
        return self._take(config) if config is not None else None

    def _news(self) -> str | None:
        """What the file holds, if that may be new.

        Raises:
            ConfigError: It cannot be read.
        """
        try:
            found = self._path.stat()
            if _Mark.of(found) == self._mark:
                self._absent = 0
                return None
            # Anything else might keep its reader waiting for ever.
            if not stat.S_ISREG(found.st_mode):
                raise self._unreadable("is not a file; name the file itself, not the folder that it is in")
            with self._path.open("rb") as file:
                mark = _Mark.of(os.fstat(file.fileno()))
                content = file.read(_LARGEST + 1)
        except FileNotFoundError:
            if self._in_between():
                return None
            raise self._unreadable("there is no such file; what was in force stays") from None
        except OSError as error:
            raise self._unreadable(f"cannot be read: {error.strerror}") from None
        if not content.strip() and self._in_between():
            return None
        self._mark, self._absent = mark, 0
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ConfigError([Problem("", "is not text in UTF-8")]) from None

    def _in_between(self) -> bool:
        """Whether the file may be on its way; at the start there is nothing to protect, and somebody who waits."""
        self._absent += 1
        return self._taken and self._absent < _PATIENCE

    def _unreadable(self, text: str) -> ConfigError:
        """An error after which the file is read again whatever its attributes are."""
        self._mark = None
        return ConfigError([Problem("", text)])

    def _refuse(self, problem: str) -> Change | None:
        if problem == self._problem:
            return None
        self._problem = problem
        return Change(problem=problem)

    def _take(self, config: AutoscalerConfig) -> Change | None:
        if self._taken and not self._problem and config == self._config:
            return None
        self._config, self._problem, self._taken = config, "", True
        return Change(config=config)
