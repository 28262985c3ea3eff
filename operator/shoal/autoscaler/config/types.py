"""The AutoscalerConfig: the options of the autoscaler, and the priority and the weight of a job that follow from them.

The configuration is edited while the cluster is in use, so nothing is guessed: one unknown key or one value out of bounds
refuses the whole configuration. `reader` reads it from a text, `hot_reload` follows changes of its file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from shoal.api import Duration, ManifestError, Problem
from shoal.api.base import Model
from shoal.api.errors import RulesBrokenError, shown
from shoal.autoscaler.planner.model import Policy

__all__ = [
    "AutoscalerConfig",
    "LabelWeight",
    "Priority",
    "policy",
    "priority_of",
    "weight_of",
]

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
_DOTTED: Final = re.compile(rf"{_NAME.pattern}(?:\.{_NAME.pattern})*")
_LABEL: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_EXPONENTIAL: Final = re.compile(r"[-+]?[0-9]{1,20}(?:\.[0-9]{0,20})?[eE][-+]?[0-9]{1,3}")


def _duration_between(low: str, high: str = "") -> Callable[[Duration], Duration]:
    """Return the check that a duration lies between `low` and `high`, both inclusive; an empty `high` is no limit."""

    def check(value: Duration) -> Duration:
        if value < Duration(low):
            raise ValueError(f"{str(value)!r} is too short; it must be at least {low}")
        if high and value > Duration(high):
            raise ValueError(f"{str(value)!r} is too long; it must be at most {high}")
        return value

    return check


def _number_between(low: str, high: str) -> Callable[[Any], float]:
    """Return the check that a value is a number between `low` and `high`, both inclusive; messages show the two as written."""

    def check(value: Any) -> float:
        # YAML reads 1e3 as text; JSON, and Helm when it writes YAML, mean a number.
        if isinstance(value, str) and _EXPONENTIAL.fullmatch(value):
            value = float(value)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or value != value:  # noqa: PLR0124 - true for NaN only
            raise ValueError(f"{shown(value)} is not a number{_unquoted(value)}")
        if value < float(low):
            raise ValueError(f"{shown(value)} is too small; it must be at least {low}")
        if value > float(high):
            raise ValueError(f"{shown(value)} is too large; it must be at most {high}")
        return float(value)

    return check


def _unquoted(value: Any) -> str:
    """Return the fix for a number that was written as text; empty: the value is something else."""
    plain = isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,20}(\.[0-9]{1,20})?", value)
    return f"; write {value} without quotes" if plain else ""


def _listed(value: Any) -> Any:
    """Check that a value is a list; pydantic's own message would ask for a tuple, which a text cannot have."""
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
    """Check the name of a PriorityClass by Kubernetes' rule; the reserved prefix `system-` is refused."""
    if not value:
        raise ValueError("must not be empty; write the name of a PriorityClass")
    if len(value) > 253 or not _DOTTED.fullmatch(value):
        raise ValueError(f"{shown(value)} is no PriorityClass's name; it has lower-case letters, digits, '-' and '.'")
    if value.startswith("system-"):
        raise ValueError(f"{shown(value)} is for what the cluster cannot do without; write a class below 0")
    return value


def _check_label(key: str, value: str) -> None:
    """Check a label by Kubernetes' rule.

    Raises:
        ValueError: The key or the value is not valid.
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
# Shares are divided and multiplied by weights; within these bounds the arithmetic stays exact enough.
Weight = Annotated[float, BeforeValidator(_number_between("0.000001", "1000000"))]
Name = Annotated[str, AfterValidator(_named)]
ClassName = Annotated[str, AfterValidator(_class_named)]


class _Part(Model):
    """The base of all parts of the configuration: as the base of manifests, and null means "not set"."""

    @model_validator(mode="before")
    @classmethod
    def _set(cls, value: Any) -> Any:
        # An unknown key is kept, so that it is refused whatever its value is.
        known = cls.known()
        if not isinstance(value, Mapping):
            return value
        return {key: below for key, below in value.items() if below is not None or key not in known}

    @classmethod
    def known(cls) -> list[str]:
        """Return the valid keys of this part in a text."""
        return [field.alias or name for name, field in cls.model_fields.items()]


class Priority(_Part):
    """A priority of jobs, and the PriorityClasses of their pods.

    Two priorities may name the same classes: their jobs then compete as equals, except for the weights.
    """

    name: Name = Field(
        description="Name that jobs have in spec.priority: lower-case letters, digits and '-', at most 63. Each name once."
    )
    weight: Weight = Field(
        default=1.0,
        description="Weight of each of its jobs among jobs of the same class: a job with 2 gets twice the share of a job "
        "with 1. A label's weight replaces it.",
    )
    servers: ClassName = Field(
        description="PriorityClass of masters and parameter servers. The highest of the three: a job that loses one of "
        "these makes no progress."
    )
    minimum: ClassName = Field(
        description="PriorityClass of the trainers up to a job's minReplicas. Between the other two: a job that loses one "
        "of these stops until there is room again."
    )
    surplus: ClassName = Field(
        description="PriorityClass of the trainers beyond a job's minReplicas. The lowest of the three, so that the "
        "scheduler preempts these first; not below -10, or the Cluster Autoscaler adds no nodes for them."
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
    """The weight of jobs with a label."""

    label: Annotated[str, AfterValidator(_is_label)] = Field(
        description="Label of TrainingJobs, as key=value: team=search. Each label once; of several that a job has, the "
        "first one in the list counts."
    )
    weight: Weight = Field(description="Weight of these jobs, in place of their priority's.")


class AutoscalerConfig(_Part):
    """The options of the autoscaler. Each has a default, and can change while jobs run."""

    enabled: Switch = Field(
        default=True,
        description="Whether jobs are scaled between their bounds. false gives each job its pinned number or its minimum.",
    )
    dry_run: Switch = Field(
        default=False, description="true makes and logs plans, but changes nothing: for a trial before enabling."
    )
    cycle: Annotated[Duration, AfterValidator(_duration_between("1s", "5m"))] = Field(
        default=Duration("5s"),
        description="Longest time between two plans when nothing changes, 1s to 5m. A change that a watch has missed is "
        "handled after this time.",
    )
    debounce: Annotated[Duration, AfterValidator(_duration_between("10ms", "5s"))] = Field(
        default=Duration("100ms"),
        description="Wait after a change in the cluster, so that a burst is answered by one plan, 10ms to 5s. It is part "
        "of the pending time of a pod; with less, plans are outdated when they are ready.",
    )
    cool_down: Duration = Field(
        default=Duration("60s"),
        description="Time after a rebalancing move in which a job makes no move in the other direction. 0s allows moves in "
        "every cycle; where jobs start and end often, trainers then spend much time on starting.",
    )
    moves_per_cycle: Natural = Field(
        default=8,
        description="Most rebalancing moves in one cycle, over all jobs; 0: no rebalancing. Victims of pods of higher "
        "priority and of minimums are not counted.",
    )
    head_room: Annotated[float, BeforeValidator(_number_between("0", "100"))] = Field(
        default=0.0,
        description="Room that surplus trainers leave for future pods, as a multiple of what pods other than Shoal's have "
        "needed within one grace period: with 1 such a burst binds without any eviction, 0 leaves no room. The room is "
        "idle until the burst arrives.",
    )
    scheduler_evicts: Switch = Field(
        default=True,
        description="true: the scheduler makes room for pods that may preempt, and the planner only leaves that room free. "
        "false: the planner makes that room as well: fewer victims, but where both act, room is made twice.",
    )
    node_selector: Annotated[dict[str, str], AfterValidator(_is_selector)] = Field(
        default_factory=dict,
        description="Labels that a node must have, all of them, for trainers to be planned there: {pool: training}. "
        "Empty: every node.",
    )
    stuck_after: Annotated[Duration, AfterValidator(_duration_between("100ms"))] = Field(
        default=Duration("10s"),
        description="Time for which the scheduler refuses a trainer before its job is capped at its bound trainers. If it "
        "is too short, jobs are capped while a victim still terminates.",
    )
    priorities: Annotated[tuple[Priority, ...], BeforeValidator(_listed)] = Field(
        default=(Priority(name="default", servers="shoal-servers", minimum="shoal-minimum", surplus="shoal-surplus"),),
        description="Priorities of jobs, the highest first; their PriorityClasses must exist, with values in that order.",
    )
    default: str | None = Field(
        default=None,
        description="Name of the priority of a job without spec.priority. Not set: the last of the list, so that a job "
        "ranks above others only if it names a priority.",
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
            raise ValueError(f"{shown(value)} is the name of no priority; {_suggestion(value, known)}")
        return value

    @field_validator("weights")
    @classmethod
    def _labels_differ(cls, value: tuple[LabelWeight, ...]) -> tuple[LabelWeight, ...]:
        _refuse_repeated([each.label for each in value], key="label")
        return value

    def to_mapping(self) -> dict[str, Any]:
        """Return the configuration as in a text: keys in camelCase, only fields that were set."""
        return self.model_dump(by_alias=True, exclude_unset=True, mode="json")


def _refuse_repeated(names: Sequence[str], *, key: str) -> None:
    """Refuse duplicate entries of a list.

    Args:
        names: The key's value of each entry.
        key: The key that must differ.

    Raises:
        RulesBrokenError: There are duplicates; the paths of the problems begin at the list.
    """
    broken = []
    seen: set[str] = set()
    for number, name in enumerate(names):
        if name in seen:
            broken.append(Problem(f"[{number}].{key}", f"{name!r} stands above already; keep one"))
        seen.add(name)
    if broken:
        raise RulesBrokenError(broken)


def policy(config: AutoscalerConfig) -> Policy:
    """Return the planner's options."""
    return Policy(
        cool_down_seconds=config.cool_down.seconds,
        moves=config.moves_per_cycle,
        stuck_seconds=config.stuck_after.seconds,
        scheduler_evicts=config.scheduler_evicts,
    )


def priority_of(config: AutoscalerConfig, job_priority: str | None) -> Priority:
    """Return the priority of a job.

    Args:
        config: The configuration in force.
        job_priority: The job's ``spec.priority``; None: the configuration's default.

    Raises:
        ManifestError: The configuration has no such priority; it may have been removed.
    """
    name = job_priority if job_priority is not None else config.default
    if name is None:
        return config.priorities[-1]
    found = next((each for each in config.priorities if each.name == name), None)
    if found is None:
        known = [each.name for each in config.priorities]
        text = f"{shown(name)} is no priority of this cluster; {_suggestion(name, known)}"
        raise ManifestError([Problem("spec.priority", text)])
    return found


def _suggestion(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"{meant}known: {', '.join(known)}; or leave it out"


def weight_of(config: AutoscalerConfig, priority: Priority, *, labels: Mapping[str, str]) -> float:
    """Return the weight of a job among jobs of its class.

    Args:
        config: The configuration in force.
        priority: Priority of the job.
        labels: Labels of the job; the first of the configuration's `weights` with one of these labels counts. Without any the
            priority's weight counts.
    """
    has = {f"{key}={value}" for key, value in labels.items()}
    return next((each.weight for each in config.weights if each.label in has), priority.weight)
