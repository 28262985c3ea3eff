"""The requests of pods and the allocatable of nodes, in whole numbers. Pure.

The scheduler's sums are recomputed here, as there is no API for them before a pod exists. Amounts are summed in thousandths
of a unit, to which the API server rounds all of them up, and are converted to whole units only at the end: so a sum equals
the scheduler's to the last byte. Where rounding remains, a request is rounded up and an allocatable down.

Manifests may be rendered from a user's template that no API server has validated yet. No manifest makes this module fail,
and the cost of a number is bounded by its length: an amount that cannot be read counts as 0 and is reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final
from weakref import WeakValueDictionary

import numpy as np

from shoal.api.quantity import parse_quantity
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
"""Larger amounts count as this one, so that thousands of them can be summed in 64 bits."""
OTHER: Final = "other resources"
"""Stands for all further resources once pods request `_MOST_UNOFFERED` that no node has: pods can name any resource."""
_MOST_UNOFFERED: Final = 64
_THOUSANDTHS: Final = 1000
_LONGEST: Final = 100
"""Most characters of a quantity; the API server writes about twenty."""


class Request:
    """The request of pods; pods with equal requests share the object.

    Attributes:
        amounts: (resource, amount), in the order of names.
        row: [R] the amounts by the columns of the catalogue; replaced when columns are added.
    """

    __slots__ = ("__weakref__", "amounts", "row")

    def __init__(self, amounts: Amounts, row: Counts) -> None:
        self.amounts = amounts
        self.row = row


class Catalogue:
    """The resources as columns, and the requests as rows.

    Attributes:
        columns: Resource -> column; it only grows.
        relaid: Increases when amounts may have moved to another column, so that sums have to be computed again.
    """

    def __init__(self) -> None:
        self.columns = {name: at for at, name in enumerate(("cpu", "memory", "pods"))}
        self.relaid = 0
        self._offered = set(self.columns)
        self._requests: WeakValueDictionary[Amounts, Request] = WeakValueDictionary()

    def offer(self, amounts: Mapping[str, int]) -> Counts:
        """Return a node's allocatable as a row; each resource of a node gets a column of its own."""
        self._offered.update(amounts)
        self._extend([name for name in amounts if name not in self.columns])
        return self._row(amounts.items())

    def request(self, pod: Manifest, problems: list[str]) -> Request:
        """Return the request of a pod; a line for each amount that cannot be read is added to `problems`."""
        amounts = tuple(sorted(request_of(pod, problems).items()))
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
        # Amounts in `OTHER` are not kept by resource, so a new column may take some of them.
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
    """The sums of each node: allocatable, taken and terminating, as one row each.

    Attributes:
        catalogue: The catalogue of the columns.
    """

    def __init__(self) -> None:
        self.catalogue = Catalogue()
        self._rows = 0
        self._sums: Counts = np.zeros((3, 16, len(self.catalogue.columns)), np.int64)
        self._relaid = 0

    def append(self) -> None:
        """Add a node with sums of 0; it gets the next row."""
        self._fit(self._rows + 1)
        self._sums[:, self._rows] = 0
        self._rows += 1

    def remove(self, index: int) -> None:
        """Remove a node; the last node takes its row."""
        self._rows -= 1
        self._sums[:, index] = self._sums[:, self._rows]

    def offer(self, index: int, amounts: Mapping[str, int]) -> None:
        """Set the allocatable of a node."""
        row = self.catalogue.offer(amounts)
        self._fit(self._rows)
        self._sums[0, index] = row

    def take(self, index: int, request: Request, sign: int, *, leaving: bool) -> None:
        """Add the request of a pod to a node (sign 1), or subtract it (-1).

        Args:
            index: Row of the node.
            request: Request of the pod.
            sign: 1 or -1.
            leaving: Whether the pod is being deleted.
        """
        self._fit(self._rows)
        self._sums[2 if leaving else 1, index] += sign * request.row

    def cleared(self) -> bool:
        """Return whether all pods have to be added again, as columns have changed; the sums of pods are 0 then."""
        if self._relaid == self.catalogue.relaid:
            return False
        self._relaid = self.catalogue.relaid
        self._sums[1:] = 0
        return True

    def room(self, more: Iterable[tuple[int, Request]]) -> Counts:
        """Return [N, R] allocatable less taken.

        Args:
            more: (row, request) of pods that are subtracted as well.
        """
        self._fit(self._rows)
        found: Counts = self._sums[0, : self._rows] - self._sums[1, : self._rows]
        pairs = list(more)
        if pairs:
            np.subtract.at(found, [index for index, _ in pairs], np.array([each.row for _, each in pairs]))
        return found

    def total(self, nodes: Flags) -> Counts:
        """Return [R] the allocatable of some nodes, summed.

        Args:
            nodes: [N] whether the node counts.
        """
        self._fit(self._rows)
        total: Counts = self._sums[0, : self._rows][nodes].sum(axis=0)
        return total

    def leaving(self) -> Counts:
        """Return [N, R] the requests of pods that are being deleted."""
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
    """Return a value of a manifest if it is a mapping, else an empty mapping."""
    return value if isinstance(value, Mapping) else {}


def parts(value: Any) -> list[Manifest]:
    """Return the mappings in a list of a manifest; entries of other types are left out."""
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list | tuple) else []


def amount(value: Any, resource: str, *, up: bool = True) -> int:
    """Return a quantity of a resource as a whole number.

    Args:
        value: The quantity as in a manifest.
        resource: Name of the resource; ``cpu`` is counted in thousandths, every other resource in units.
        up: Whether the number is rounded up; else down. Default: True.

    Raises:
        ValueError: The value is not a quantity, or is negative.
    """
    return _whole(_thousandths(value, up=up), resource, up=up)


def request_of(pod: Manifest, problems: list[str] | None = None) -> dict[str, int]:
    """Return the effective request of a pod: the amounts that the scheduler subtracts from a node's room.

    That is the maximum over time: while init containers run one after the other together with the sidecars that have started
    by then, and while all containers run; plus the overhead of the runtime.

    Args:
        pod: Manifest of a pod or a pod template.
        problems: List to which a line is added for each amount that cannot be read; such an amount counts as 0.

    Returns:
        Resource -> amount, without amounts of 0; always 1 of ``pods``.
    """
    problems = [] if problems is None else problems
    spec = part(pod.get("spec"))
    total = _of_containers(spec, problems)
    whole = part(spec.get("resources"))
    asked = _read(whole.get("requests"), "spec.resources.requests", problems)
    limits = _read(whole.get("limits"), "spec.resources.limits", problems)
    # A limit of the whole pod becomes its request only if no container has a request of that resource.
    asked = {name: value for name, value in limits.items() if name not in total} | asked
    total |= {name: value for name, value in asked.items() if _of_whole_pods(name)}
    _add(total, _read(spec.get("overhead"), "spec.overhead", problems))
    needed = {name: _whole(value, name, up=True) for name, value in total.items() if value}
    return needed | {"pods": 1}


def allocatable_of(node: Manifest, problems: list[str] | None = None, unread: set[str] | None = None) -> dict[str, int]:
    """Return the allocatable of a node, by resource.

    Args:
        node: Manifest of the node.
        problems: List to which a line is added for each amount that cannot be read; such an amount counts as 0.
        unread: Set to which the names of these resources are added.
    """
    problems = [] if problems is None else problems
    allocatable = part(part(node.get("status")).get("allocatable"))
    found = _read(allocatable, "status.allocatable", problems, up=False, unread=unread)
    return {name: _whole(value, name, up=False) for name, value in found.items()}


def _of_containers(spec: Manifest, problems: list[str]) -> dict[str, int]:
    total: dict[str, int] = {}
    for position, container in enumerate(parts(spec.get("containers"))):
        _add(total, _of_container(container, f"spec.containers[{position}]", problems))
    sidecars: dict[str, int] = {}
    peak: dict[str, int] = {}
    for position, container in enumerate(parts(spec.get("initContainers"))):
        need = _of_container(container, f"spec.initContainers[{position}]", problems)
        if container.get("restartPolicy") == "Always":
            _add(total, need)
            _add(sidecars, need)
            need = sidecars
        else:
            _add(need, sidecars)
        _raise(peak, need)
    _raise(total, peak)
    return total


def _of_container(container: Manifest, path: str, problems: list[str]) -> dict[str, int]:
    """Return the requests of one container; a limit without a request counts as request, as in the API server."""
    resources = part(container.get("resources"))
    limits = _read(resources.get("limits"), f"{path}.resources.limits", problems)
    return limits | _read(resources.get("requests"), f"{path}.resources.requests", problems)


def _of_whole_pods(resource: str) -> bool:
    """Return whether a resource can be requested for a whole pod."""
    return resource in {"cpu", "memory"} or resource.startswith("hugepages-")


def _add(total: dict[str, int], more: Mapping[str, int]) -> None:
    for name, value in more.items():
        total[name] = total.get(name, 0) + value


def _raise(peak: dict[str, int], need: Mapping[str, int]) -> None:
    for name, value in need.items():
        peak[name] = max(peak.get(name, 0), value)


def _read(
    amounts: Any, path: str, problems: list[str], *, up: bool = True, unread: set[str] | None = None
) -> dict[str, int]:
    """Return thousandths by resource; arguments as in `allocatable_of` and `amount`."""
    read = {}
    for name, value in part(amounts).items():
        try:
            read[str(name)] = _thousandths(value, up=up)
        except ValueError as error:
            problems.append(f"{path}.{name}: {error}")
            read[str(name)] = 0
            if unread is not None:
                unread.add(str(name))
    return read


def _thousandths(value: Any, *, up: bool) -> int:
    if isinstance(value, str):
        return _parsed(value, up)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return min(value, MOST) * _THOUSANDTHS
    # An int that reaches this line is negative, and may be too long to be converted to text.
    if isinstance(value, float):
        return _parsed(repr(value), up)
    raise ValueError("is negative or no quantity")


@lru_cache(maxsize=10_000)
def _parsed(text: str, up: bool) -> int:  # noqa: FBT001 - a cache tells calls with keywords apart by their order
    """Return a quantity in thousandths of a unit, at most 1,000 times `MOST`, so that a larger sum still differs from it."""
    return min(parse_quantity(text, longest=_LONGEST).thousandths(up=up), MOST * _THOUSANDTHS)


def _whole(thousandths: int, resource: str, *, up: bool) -> int:
    if resource == "cpu":
        return min(thousandths, MOST)
    return min(-(-thousandths // _THOUSANDTHS) if up else thousandths // _THOUSANDTHS, MOST)
