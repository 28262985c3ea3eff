"""What a pod asks of a node and what a node has to give, in whole numbers. Pure.

The scheduler's sums are remade here rather than asked for, as nobody can be asked before a pod exists. Amounts are summed in
thousandths of a unit, to which the API server rounds all of them up, and become whole units only at the end: so a sum is what
the scheduler makes of it, to the last byte. Where rounding is left, a request errs upwards and an allocatable downwards.

Manifests may be rendered from a user's template that no API server has seen yet. Nothing in them makes this module fail, and
no number costs more than its length: what cannot be read counts as nothing and is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final
from weakref import WeakValueDictionary

import numpy as np

from shoal.api.errors import shown
from shoal.autoscaler.planner.model import Counts, Flags

__all__ = [
    "MOST",
    "OTHER",
    "Catalogue",
    "Manifest",
    "Request",
    "Sums",
    "allocatable_of",
    "amount",
    "part",
    "parts",
    "request_of",
]

Manifest = Mapping[str, Any]
Amounts = tuple[tuple[str, int], ...]

MOST: Final = 2**50
"""Larger amounts count as this one: thousands of them can be summed in 64 bits."""
OTHER: Final = "other resources"
"""Stands for all that pods ask for beyond a number of resources that no node has: anybody's pods can name any."""
_MOST_UNOFFERED: Final = 64
_THOUSANDTHS: Final = 1000
_LONGEST: Final = 100
"""Characters of a quantity; the API server writes them with twenty or so."""
_FURTHEST: Final = 3 * _LONGEST
"""An exponent beyond this changes no result any more, however many digits stand before it."""
_GRAMMAR: Final = re.compile(
    r"([+-]?)([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE]([+-]?[0-9]+)|([KMGTPE]i|[numkMGTPE]))?", re.ASCII
)
_TENS: Final = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_TWOS: Final = {f"{letter}i": 10 * power for power, letter in enumerate("KMGTPE", 1)}


class Request:
    """Amounts that pods have in common.

    Attributes:
        amounts: Resource and amount, in the order of names.
        row: The same by the columns of the catalogue; it grows with them.
    """

    __slots__ = ("__weakref__", "amounts", "row")

    def __init__(self, amounts: Amounts, row: Counts) -> None:
        self.amounts = amounts
        self.row = row


class Catalogue:
    """Resources as columns, and requests as rows of them: pods that ask the same share one.

    Attributes:
        columns: Resource -> column; it only grows.
        relaid: Another number once an amount may stand in another column than before, so that sums are to be made anew.
    """

    def __init__(self) -> None:
        self.columns = {name: at for at, name in enumerate(("cpu", "memory", "pods"))}
        self.relaid = 0
        self._offered = set(self.columns)
        self._requests: WeakValueDictionary[Amounts, Request] = WeakValueDictionary()

    def offer(self, amounts: Mapping[str, int]) -> Counts:
        """What a node has, as a row: each resource of nodes has a column of its own."""
        self._offered.update(amounts)
        self._extend([name for name in amounts if name not in self.columns])
        return self._row(amounts.items())

    def request(self, pod: Manifest, told: list[str]) -> Request:
        """The request of a pod; `told` gets a line for each amount that cannot be read."""
        amounts = tuple(sorted(request_of(pod, told).items()))
        found = self._requests.get(amounts)
        if found is None:
            self._extend([name for name, _ in amounts if name not in self.columns])
            found = self._requests[amounts] = Request(amounts, self._row(amounts))
        return found

    def _extend(self, fresh: list[str]) -> None:
        shared, before = OTHER in self.columns, len(self.columns)
        for name in fresh:
            crowded = name not in self._offered and len(self.columns) - len(self._offered) >= _MOST_UNOFFERED
            self.columns.setdefault(OTHER if crowded else name, len(self.columns))
        if len(self.columns) == before:
            return
        # Which of the new ones was among the others until now is not kept.
        self.relaid += shared
        for request in self._requests.values():
            request.row = self._row(request.amounts)

    def _row(self, amounts: Iterable[tuple[str, int]]) -> Counts:
        row = [0] * len(self.columns)
        for name, value in amounts:
            at = self.columns[name] if name in self.columns else self.columns[OTHER]
            row[at] = min(row[at] + value, MOST)
        return np.array(row, np.int64)


class Sums:
    """Of each node what it has, what of that is taken and what is on its way out: a row each.

    Attributes:
        catalogue: Of the columns.
    """

    def __init__(self) -> None:
        self.catalogue = Catalogue()
        self._rows = 0
        self._sums: Counts = np.zeros((3, 16, len(self.catalogue.columns)), np.int64)
        self._relaid = 0

    def append(self) -> None:
        """A node is there, and nothing known of it; it gets the next row."""
        self._fit(self._rows + 1)
        self._sums[:, self._rows] = 0
        self._rows += 1

    def remove(self, index: int) -> None:
        """A node is gone; the last one takes its row."""
        self._rows -= 1
        self._sums[:, index] = self._sums[:, self._rows]

    def offer(self, index: int, amounts: Mapping[str, int]) -> None:
        """A node has so much."""
        row = self.catalogue.offer(amounts)
        self._fit(self._rows)
        self._sums[0, index] = row

    def take(self, index: int, request: Request, sign: int, *, leaving: bool) -> None:
        """A pod takes room of a node, or (-1) takes it no more."""
        self._fit(self._rows)
        self._sums[2 if leaving else 1, index] += sign * request.row

    def cleared(self) -> bool:
        """Whether all must be taken anew, as amounts may stand in other columns now; nothing is taken then."""
        if self._relaid == self.catalogue.relaid:
            return False
        self._relaid = self.catalogue.relaid
        self._sums[1:] = 0
        return True

    def room(self, more: Iterable[tuple[int, Request]]) -> Counts:
        """What is not taken, less `more`: (row, what is taken there, too)."""
        self._fit(self._rows)
        found: Counts = self._sums[0, : self._rows] - self._sums[1, : self._rows]
        pairs = list(more)
        if pairs:
            np.subtract.at(found, [index for index, _ in pairs], np.array([each.row for _, each in pairs]))
        return found

    def total(self, nodes: Flags) -> Counts:
        """[R] what these nodes have together."""
        self._fit(self._rows)
        total: Counts = self._sums[0, : self._rows][nodes].sum(axis=0)
        return total

    def leaving(self) -> Counts:
        """What is on its way out."""
        self._fit(self._rows)
        return self._sums[2, : self._rows].copy()

    def _fit(self, rows: int) -> None:
        _, high, wide = self._sums.shape
        columns = len(self.catalogue.columns)
        if rows > high or columns > wide:
            grown = np.zeros((3, 2 * high if rows > high else high, columns), np.int64)
            grown[:, :high, :wide] = self._sums
            self._sums = grown


def part(value: Any) -> Manifest:
    """A mapping in a manifest; empty where something else stands, or nothing."""
    return value if isinstance(value, Mapping) else {}


def parts(value: Any) -> list[Manifest]:
    """The mappings in a list of a manifest; what else stands in it is left out."""
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list | tuple) else []


def amount(value: Any, resource: str, *, up: bool = True) -> int:
    """A quantity of a resource as a whole number.

    Args:
        value: As it stands in a manifest.
        resource: ``cpu`` is counted in thousandths, all else in units.
        up: Whether the rest is rounded up or down.

    Raises:
        ValueError: It is no quantity, or negative.
    """
    return _whole(_thousandths(value, up=up), resource, up=up)


def request_of(pod: Manifest, problems: list[str] | None = None) -> dict[str, int]:
    """The effective request of a pod: what the scheduler takes off a node's room for it.

    That is the most that it needs at any time, when its init containers run one after the other beside the sidecars that
    have started by then, or when all its containers run; and the overhead of its runtime.

    Args:
        pod: Its manifest, or that of a pod template.
        problems: Gets a line for each amount that cannot be read; it counts as 0.

    Returns:
        Resource -> amount, without those of which it needs none; always 1 of ``pods``.
    """
    told = [] if problems is None else problems
    spec = part(pod.get("spec"))
    total = _of_containers(spec, told)
    whole = part(spec.get("resources"))
    asked = _read(whole.get("requests"), "spec.resources.requests", told)
    limits = _read(whole.get("limits"), "spec.resources.limits", told)
    # A limit of the whole pod becomes its request only where no container has one.
    asked = {name: value for name, value in limits.items() if name not in total} | asked
    total |= {name: value for name, value in asked.items() if _of_whole_pods(name)}
    _add(total, _read(spec.get("overhead"), "spec.overhead", told))
    needed = {name: _whole(value, name, up=True) for name, value in total.items() if value}
    return needed | {"pods": 1}


def allocatable_of(node: Manifest, problems: list[str] | None = None, unread: set[str] | None = None) -> dict[str, int]:
    """What a node has for pods, by resource.

    Args:
        node: Its manifest.
        problems: Gets a line for each amount that cannot be read; it counts as 0.
        unread: Gets the names of these resources.
    """
    told = [] if problems is None else problems
    allocatable = part(part(node.get("status")).get("allocatable"))
    found = _read(allocatable, "status.allocatable", told, up=False, unread=unread)
    return {name: _whole(value, name, up=False) for name, value in found.items()}


def _of_containers(spec: Manifest, told: list[str]) -> dict[str, int]:
    total: dict[str, int] = {}
    for position, container in enumerate(parts(spec.get("containers"))):
        _add(total, _of_container(container, f"spec.containers[{position}]", told))
    sidecars: dict[str, int] = {}
    peak: dict[str, int] = {}
    for position, container in enumerate(parts(spec.get("initContainers"))):
        need = _of_container(container, f"spec.initContainers[{position}]", told)
        if container.get("restartPolicy") == "Always":
            _add(total, need)
            _add(sidecars, need)
            need = sidecars
        else:
            _add(need, sidecars)
        _raise(peak, need)
    _raise(total, peak)
    return total


def _of_container(container: Manifest, path: str, told: list[str]) -> dict[str, int]:
    """The requests of one container; a limit counts as request where there is none, as the API server has it."""
    resources = part(container.get("resources"))
    limits = _read(resources.get("limits"), f"{path}.resources.limits", told)
    return limits | _read(resources.get("requests"), f"{path}.resources.requests", told)


def _of_whole_pods(resource: str) -> bool:
    """Whether a pod can ask for it as a whole."""
    return resource in {"cpu", "memory"} or resource.startswith("hugepages-")


def _add(total: dict[str, int], more: Mapping[str, int]) -> None:
    for name, value in more.items():
        total[name] = total.get(name, 0) + value


def _raise(peak: dict[str, int], need: Mapping[str, int]) -> None:
    for name, value in need.items():
        peak[name] = max(peak.get(name, 0), value)


def _read(
    amounts: Any, path: str, told: list[str], *, up: bool = True, unread: set[str] | None = None
) -> dict[str, int]:
    """Thousandths by resource."""
    read = {}
    for name, value in part(amounts).items():
        try:
            read[str(name)] = _thousandths(value, up=up)
        except ValueError as error:
            told.append(f"{path}.{name}: {error}")
            read[str(name)] = 0
            if unread is not None:
                unread.add(str(name))
    return read


def _thousandths(value: Any, *, up: bool) -> int:
    if isinstance(value, str):
        return _parsed(value, up)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return min(value, MOST) * _THOUSANDTHS
    # An int that is left is negative, and may be too long to be written.
    if isinstance(value, float):
        return _parsed(repr(value), up)
    raise ValueError("is negative or no quantity")


@lru_cache(maxsize=10_000)
def _parsed(text: str, up: bool) -> int:  # noqa: FBT001 - a cache tells calls with keywords apart by their order
    """Thousandths of a unit; at most 1,000 times the largest amount, so that a later sum is still told apart from it."""
    found = _GRAMMAR.fullmatch(text) if len(text) <= _LONGEST else None
    if found is None:
        raise ValueError(f'{shown(text)} is not a quantity such as "1", "500m" or "1Gi"')
    sign, number, exponent, suffix = found.groups()
    before, _, behind = number.partition(".")
    digits = int(before + behind)
    if digits and sign == "-":
        raise ValueError(f"{shown(text)} is negative")
    tens = min(max(int(exponent), -_FURTHEST), _FURTHEST) if exponent else _TENS.get(suffix, 0)
    tens += 3 - len(behind)
    above: int = digits * 10 ** max(tens, 0) << _TWOS.get(suffix, 0)
    below: int = 10 ** max(-tens, 0)
    return min(-(-above // below) if up else above // below, MOST * _THOUSANDTHS)


def _whole(thousandths: int, resource: str, *, up: bool) -> int:
    if resource == "cpu":
        return min(thousandths, MOST)
    return min(-(-thousandths // _THOUSANDTHS) if up else thousandths // _THOUSANDTHS, MOST)
