"""Traces: a cluster and the arrivals of jobs and pods, as typed models read from YAML or JSON.

A trace is written by hand or converted from a log, so all problems are reported at once, each with the field's path and the
fix. An unknown key is a problem too, as a misspelt option would otherwise silently have its default. The format is described
in ``examples/traces/README.md``.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from shoal.api import ManifestError, Problem, Quantity
from shoal.api.errors import RulesBrokenError, shown
from shoal.api.reading.explain import problems_of
from shoal.api.reading.strict_yaml import YamlError, YamlLimits, read_file, read_yaml

__all__ = [
    "DeploymentSpec",
    "JobSpec",
    "NodeGroup",
    "Others",
    "PodSpec",
    "Speed",
    "Trace",
    "TraceError",
    "load",
    "loads",
]

_LIMITS: Final = YamlLimits(kind="trace", characters=64 << 20, values=5_000_000, any_keys=True)
"""Bounds of a trace, enough for 100,000 jobs. Sizes are keys of a speed, so keys may be numbers."""
_MOST: Final = 100_000
"""Most nodes, pods or trainers of one entry."""
_MOST_AMOUNT: Final = 2**62
"""Largest amount of one resource over all nodes, in whole units, so that sums stay within 64 bits."""
_PRIORITIES: Final = 2_000_000_000
"""Largest priority; Kubernetes reserves larger ones for itself."""


class TraceError(ManifestError):
    """A trace that is not valid; ``problems`` has all of its problems."""


@dataclass(frozen=True)
class Speed:
    """The samples per second of a job by the number of running trainers.

    Attributes:
        points: (trainers, rate), ascending; the rate is interpolated between two points and constant outside.
        linear: Rate per trainer, if there are no points. Default: 1.
    """

    points: tuple[tuple[int, float], ...] = ()
    linear: float = 1.0

    def __call__(self, trainers: int) -> float:
        """Return the rate of a number of trainers; 0 without trainers."""
        if trainers <= 0:
            return 0.0
        if not self.points:
            return self.linear * trainers
        after = bisect_right(self.points, trainers, key=lambda point: point[0])
        if after in (0, len(self.points)):
            return self.points[min(after, len(self.points) - 1)][1]
        (low, slow), (high, fast) = self.points[after - 1 : after + 1]
        return slow + (fast - slow) * (trainers - low) / (high - low)


def _number(value: Any) -> float:
    if isinstance(value, str):
        # YAML 1.1 reads 1e6 as text.
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"{shown(value)} is not a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{shown(value)} is not a number")  # noqa: TRY004 - pydantic reports ValueErrors only
    if not math.isfinite(value):
        raise ValueError(f"{shown(value)} is not a finite number")
    return float(value)


def _positive(value: Any, name: str) -> float:
    number = _number(value)
    if number <= 0:
        raise ValueError(f"{name} is {shown(value)}; a rate must be above 0")
    return number


def _speed(value: Any) -> Speed:
    if isinstance(value, Speed):
        return value
    if not isinstance(value, Mapping) or not value or ("linear" in value and len(value) > 1):
        raise ValueError(f"{shown(value)} is no speed; write {{linear: 90}}, or rates by size: {{1: 90, 8: 500}}")
    if "linear" in value:
        return Speed(linear=_positive(value["linear"], "linear"))
    points: dict[int, float] = {}
    for key, rate in value.items():
        # JSON has only text as keys.
        size = int(key) if isinstance(key, str) and key.isascii() and key.isdigit() else key
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{shown(key)} is no size; write numbers of trainers from 1 on, or linear")
        if size in points:
            raise ValueError(f"size {size} is written twice; keep one")
        points[size] = _positive(rate, f"the rate of {size}")
    return Speed(points=tuple(sorted(points.items())))


def _in_one_word(value: str) -> str:
    if any(map(str.isspace, value)):
        raise ValueError("must have no spaces")
    return value


Number = Annotated[float, BeforeValidator(_number), Field(ge=0)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0)]
Count = Annotated[int, Field(strict=True, ge=0, le=_MOST)]
Some = Annotated[int, Field(strict=True, ge=1, le=_MOST)]
Name = Annotated[str, Field(min_length=1, max_length=253), AfterValidator(_in_one_word)]
Amounts = dict[str, Quantity]
Priority = Annotated[int, Field(strict=True, ge=-_PRIORITIES, le=_PRIORITIES)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NodeGroup(_Part):
    """Equal nodes. ``pool`` is a label that pods may require; ``resources`` is the allocatable of each node."""

    count: Some = 1
    resources: Amounts
    pool: str = ""


class Others(_Part):
    """A job's parameter servers or its master: pods that exist from the job's start to its end."""

    count: Some = 1
    request: Amounts


class JobSpec(_Part):
    """A training job; ``work`` is in samples, or in trainer-seconds if no ``speed`` is given."""

    name: Name
    arrival: Number = 0.0
    work: Positive
    min: Some = 1
    max: Some
    request: Amounts
    priority: Priority = -5
    weight: Positive = 1.0
    speed: Annotated[Speed, BeforeValidator(_speed)] = Speed()
    servers: Others | None = None
    master: Others | None = None
    pool: str = ""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min > self.max:
            raise RulesBrokenError([Problem("min", f"{self.min} is above max {self.max}; lower it, or raise max")])
        if self.master is not None and self.master.count != 1:
            raise RulesBrokenError([Problem("master.count", "a job has one master; leave it out")])
        return self


class PodSpec(_Part):
    """Foreign pods that arrive together; ``lifetime`` is the time in seconds after which a running pod ends."""

    name: Name
    arrival: Number = 0.0
    request: Amounts
    priority: Priority = 0
    preempts: bool = True
    lifetime: Positive | None = None
    count: Some = 1
    pool: str = ""


class DeploymentSpec(_Part):
    """A Deployment of foreign pods; ``steps`` are [seconds, replicas]."""

    name: Name
    request: Amounts
    priority: Priority = 0
    preempts: bool = True
    steps: tuple[tuple[Number, Count], ...] = Field(min_length=1)
    pool: str = ""

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        for number, (earlier, later) in enumerate(pairwise(self.steps), 1):
            if later[0] <= earlier[0]:
                text = f"at {later[0]:g} s is not after the step before it, at {earlier[0]:g} s; sort them by time"
                raise RulesBrokenError([Problem(f"steps[{number}]", text)])
        return self


class Trace(_Part):
    """A cluster and the arrivals of jobs and pods."""

    nodes: tuple[NodeGroup, ...] = Field(min_length=1)
    jobs: tuple[JobSpec, ...] = ()
    pods: tuple[PodSpec, ...] = ()
    deployments: tuple[DeploymentSpec, ...] = ()
    start_seconds: Number = 1.0
    stop_seconds: Number = 2.0
    cycle_seconds: Annotated[float, BeforeValidator(_number), Field(ge=0.1)] = 5.0
    # With 0, a policy that is triggered by its own changes would run for ever at one point in time.
    debounce_seconds: Annotated[float, BeforeValidator(_number), Field(ge=0.01)] = 0.1

    @model_validator(mode="after")
    def _whole(self) -> Self:
        problems = [*self._doubles(), *self._pools(), *self._totals()]
        if not (self.jobs or self.pods or self.deployments):
            problems.append(Problem("", "nothing arrives in it; add jobs, pods or deployments"))
        if problems:
            raise RulesBrokenError(problems)
        return self

    def _entries(self) -> Mapping[str, Sequence[JobSpec | PodSpec | DeploymentSpec]]:
        return {"jobs": self.jobs, "pods": self.pods, "deployments": self.deployments}

    def _doubles(self) -> Iterable[Problem]:
        # Pods and Deployments share one set of names, as both create pods with these names.
        for kinds in (("jobs",), ("pods", "deployments")):
            seen: dict[str, str] = {}
            for kind in kinds:
                for number, part in enumerate(self._entries()[kind]):
                    here = f"{kind}[{number}].name"
                    if part.name in seen:
                        yield Problem(here, f"{part.name!r} is the name of {seen[part.name]} too; choose another")
                    seen.setdefault(part.name, here.removesuffix(".name"))

    def _pools(self) -> Iterable[Problem]:
        known = sorted({group.pool for group in self.nodes} - {""})
        for kind, parts in self._entries().items():
            for number, part in enumerate(parts):
                if part.pool and part.pool not in known:
                    text = f"no nodes are of pool {part.pool!r}; known: {', '.join(known) or 'none'}"
                    yield Problem(f"{kind}[{number}].pool", text)

    def _totals(self) -> Iterable[Problem]:
        totals: dict[str, int] = {}
        for number, group in enumerate(self.nodes):
            for name, quantity in group.resources.items():
                whole = math.ceil(quantity.amount * (1000 if name == "cpu" else 1))
                totals[name] = totals.get(name, 0) + group.count * whole
                if totals[name] > _MOST_AMOUNT:
                    yield Problem(f"nodes[{number}].resources.{name}", "all nodes together have above 2^62; lower it")
                    return


def load(path: str | Path) -> Trace:
    """Read a trace file.

    Raises:
        TraceError: The file cannot be read, or the trace is not valid.
    """
    try:
        text = read_file(path, _LIMITS)
    except YamlError as error:
        raise TraceError([error.problem], source=str(path)) from None
    return loads(text, source=str(path))


def loads(text: str, *, source: str = "trace") -> Trace:
    """Read a trace from a text.

    Args:
        text: YAML or JSON.
        source: Name of the source, for messages. Default: trace.

    Raises:
        TraceError: The trace is not valid.
    """
    try:
        document = read_yaml(text, _LIMITS)
    except YamlError as error:
        raise TraceError([error.problem], source=source) from None
    if document.value is None:
        raise TraceError([Problem("", "the file is empty; it needs nodes and jobs")], source=source)
    if not isinstance(document.value, dict):
        raise TraceError([Problem("", "not a mapping; a trace has nodes, jobs, pods, deployments")], source=source)
    try:
        trace = Trace.model_validate(document.value)
    except ValidationError as error:
        raise TraceError(document.located(problems_of(error, root=Trace)), source=source) from None
    if document.problems:
        raise TraceError(document.problems, source=source)
    return trace
