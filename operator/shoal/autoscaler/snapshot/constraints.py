"""The eligibility of nodes: taints, node selector and required node affinity, by the rules of kube-scheduler's filters. Pure.

`eligible` is the rule for one pod and one node. `Groups` evaluates it for all shapes of pods and all nodes of a large cluster
at once, without evaluating each pair: nodes that no known shape distinguishes form one group. Groups depend on the
requirements of shapes and not on the values of labels, so they stay few even if a pod requires one node out of thousands.

Of constraints only what the two filters read is kept, in canonical order, so that pods with equal constraints compare equal.
Topology spread, affinity between pods, volumes and ports are left to the scheduler.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, Final, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from shoal.autoscaler.planner.model import Counts, Flags
from shoal.autoscaler.snapshot.resources import Manifest, Request, part, parts

__all__ = [
    "Constraints",
    "Groups",
    "NodeInfo",
    "PodShape",
    "Requirement",
    "Selector",
    "ShapeBook",
    "Taint",
    "Toleration",
    "constraints_of",
    "eligible",
    "limit_shapes",
    "node_info",
    "selects",
    "tolerates",
    "usable",
]

_NAME: Final = "metadata.name"
_EFFECTS: Final = ("NoSchedule", "NoExecute")
"""Effects that keep new pods off a node; PreferNoSchedule only advises."""
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,63}", re.ASCII)
_WORD: Final = r"(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)"
_VALUE: Final = re.compile(f"{_WORD}?", re.ASCII)
_DOMAIN: Final = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_KEY: Final = re.compile(rf"(?=[^/]{{1,253}}(?:/|$))(?:{_DOMAIN}(?:\.{_DOMAIN})*/)?{_WORD}", re.ASCII)
_LONGEST_KEY: Final = 253 + 1 + 63


class Taint(NamedTuple):
    """A taint of a node with an effect that keeps new pods off it."""

    key: str
    value: str
    effect: str


class Toleration(NamedTuple):
    """A toleration of a pod; an empty effect matches every effect, an empty key with ``Exists`` every taint."""

    key: str
    operator: str
    value: str
    effect: str


class Requirement(NamedTuple):
    """A requirement of a node's label or of its name.

    Attributes:
        field: Whether the requirement is of the node's name, not of a label.
        key: Key of the label.
        operator: In, NotIn, Exists, DoesNotExist, Gt or Lt.
        values: Values, in ascending order.
    """

    field: bool
    key: str
    operator: str
    values: tuple[str, ...] = ()


Term = tuple[Requirement, ...]


class Selector(NamedTuple):
    """The requirements of a pod for a node's labels and name.

    Attributes:
        every: Requirements of the node selector; all of them must hold.
        terms: Terms of the required affinity; all requirements of at least one term must hold. None: no required affinity.
    """

    every: Term
    terms: tuple[Term, ...] | None


class Constraints(NamedTuple):
    """The constraints that decide which nodes are eligible for a pod."""

    tolerations: tuple[Toleration, ...]
    selector: Selector


class NodeInfo(NamedTuple):
    """The properties of a node that constraints are evaluated against."""

    name: str
    labels: Mapping[str, str]
    taints: tuple[Taint, ...]


def node_info(node: Manifest) -> NodeInfo:
    """Return the traits of a node."""
    metadata = part(node.get("metadata"))
    labels = {str(key): _text(value) for key, value in part(metadata.get("labels")).items()}
    taints = {
        Taint(_text(each.get("key")), _text(each.get("value")), _text(each.get("effect")))
        for each in parts(part(node.get("spec")).get("taints"))
        if each.get("effect") in _EFFECTS
    }
    return NodeInfo(_text(metadata.get("name")), labels, tuple(sorted(taints)))


def usable(node: Manifest) -> bool:
    """Return whether a node takes new pods: it is Ready, not cordoned and not being deleted."""
    conditions = parts(part(node.get("status")).get("conditions"))
    ready = any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)
    deleting = part(node.get("metadata")).get("deletionTimestamp") is not None
    return ready and not deleting and not part(node.get("spec")).get("unschedulable")


def constraints_of(pod: Manifest) -> Constraints:
    """Return the constraints of a pod or a pod template."""
    spec = part(pod.get("spec"))
    tolerations = {
        Toleration(
            *(_text(each.get("key")), _text(each.get("operator")) or "Equal"),
            *(_text(each.get("value")), _text(each.get("effect"))),
        )
        for each in parts(spec.get("tolerations"))
        if each.get("effect") in {None, "", *_EFFECTS}
    }
    node_selector = part(spec.get("nodeSelector")).items()
    every = tuple(sorted(Requirement(False, str(key), "In", (_text(value),)) for key, value in node_selector))
    affinity = part(part(spec.get("affinity")).get("nodeAffinity"))
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    terms = None
    if isinstance(required, Mapping):
        read = [_term(each) for each in parts(required.get("nodeSelectorTerms"))]
        terms = tuple(sorted({term for term in read if term is not None}))
    return Constraints(tuple(sorted(tolerations)), Selector(every, terms))


def eligible(constraints: Constraints, info: NodeInfo) -> bool:
    """Return whether a node is eligible for a pod, regardless of room and of the node's conditions."""
    return tolerates(constraints.tolerations, info.taints) and selects(constraints.selector, info)


def tolerates(tolerations: Sequence[Toleration], taints: Sequence[Taint]) -> bool:
    """Return whether there is a toleration for each of the taints."""
    return all(any(_tolerates(each, taint) for each in tolerations) for taint in taints)


def selects(selector: Selector, info: NodeInfo) -> bool:
    """Return whether a node has the required labels and name."""

    def matches_term(term: Term) -> bool:
        return all(_meets(each, _value_of(each, info)) for each in term)

    return matches_term(selector.every) and (
        selector.terms is None or any(matches_term(term) for term in selector.terms)
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _tolerates(toleration: Toleration, taint: Taint) -> bool:
    if toleration.effect not in {"", taint.effect} or toleration.key not in {"", taint.key}:
        return False
    return toleration.operator == "Exists" or (toleration.operator == "Equal" and toleration.value == taint.value)


def _term(manifest: Manifest) -> Term | None:
    """Return a term of an affinity; None: no node matches, as the scheduler treats empty or invalid terms."""
    labels, fields = parts(manifest.get("matchExpressions")), parts(manifest.get("matchFields"))
    if not labels and not fields:
        return None
    made = set()
    for each in labels:
        requirement = _requirement(each, field=False)
        if not _is_valid(requirement):
            return None
        made.add(requirement)
    for each in fields:
        requirement = _requirement(each, field=True)
        if requirement.operator not in {"In", "NotIn"} or len(requirement.values) != 1:
            return None
        if requirement.key == _NAME:
            made.add(requirement)
        elif (requirement.values == ("",)) != (requirement.operator == "In"):
            return None  # for the scheduler, every other field of a node is an empty text
    return tuple(sorted(made))


def _requirement(manifest: Manifest, *, field: bool) -> Requirement:
    found = manifest.get("values")
    values = [_text(each) for each in found] if isinstance(found, list | tuple) else []
    operator = _text(manifest.get("operator"))
    # Duplicates are removed for set operators, but count as two values where exactly one is allowed.
    ordered = tuple(sorted(set(values) if operator in {"In", "NotIn"} and not field else values))
    return Requirement(field, _text(manifest.get("key")), operator, ordered)


def _is_valid(requirement: Requirement) -> bool:
    _, key, operator, values = requirement
    if len(key) > _LONGEST_KEY or not _KEY.fullmatch(key) or not all(_VALUE.fullmatch(each) for each in values):
        return False
    if operator in {"In", "NotIn"}:
        return bool(values)
    if operator in {"Exists", "DoesNotExist"}:
        return not values
    return operator in {"Gt", "Lt"} and len(values) == 1 and _number(values[0]) is not None


def _number(text: str) -> int | None:
    """Return a text as an integer of 64 bits by Go's rules; None: it is none."""
    found = int(text) if _NUMBER.fullmatch(text) else None
    return found if found is not None and -(2**63) <= found < 2**63 else None


def _value_of(requirement: Requirement, info: NodeInfo) -> str | None:
    return info.name if requirement.field else info.labels.get(requirement.key)


def _meets(requirement: Requirement, value: str | None) -> bool:
    """Return whether a label's value (None: there is no such label) meets a requirement."""
    operator, values = requirement.operator, requirement.values
    if operator == "In":
        return value is not None and value in values
    if operator == "NotIn":
        return value is None or value not in values
    if operator in {"Exists", "DoesNotExist"}:
        return (value is not None) == (operator == "Exists")
    here, there = _number(value) if value is not None else None, _number(values[0])
    return here is not None and there is not None and (here > there if operator == "Gt" else here < there)


class _Column:
    """One trait of all nodes, encoded as small numbers, so that a requirement is evaluated for all nodes at once.

    Args:
        of: Returns the trait of a node.
        nodes: The nodes.
    """

    def __init__(self, of: Callable[[NodeInfo], Hashable], nodes: Sequence[NodeInfo]) -> None:
        self._of = of
        self.known: dict[Any, int] = {None: 0}
        """Value -> its number; 0: the node lacks the trait."""
        self.numbers: npt.NDArray[np.int32] = np.zeros(max(64, len(nodes)), np.int32)
        for index, info in enumerate(nodes):
            self.set(index, info)

    def set(self, index: int, info: NodeInfo) -> bool:
        """Set the trait of a node; return whether it has changed."""
        if index >= len(self.numbers):
            self.numbers = np.concatenate([self.numbers, np.zeros_like(self.numbers)])
        number = self.known.setdefault(self._of(info), len(self.known))
        changed = bool(self.numbers[index] != number)
        self.numbers[index] = number
        return changed

    def matches_term(self, requirement: Requirement, count: int) -> Flags:
        """Return [count] whether each of the first nodes meets a requirement."""
        table = np.zeros(len(self.known), np.bool_)
        if requirement.operator in {"In", "NotIn"}:
            # A requirement names few of possibly thousands of values: the others are not evaluated.
            table[[self.known[value] for value in requirement.values if value in self.known]] = True
            table ^= requirement.operator == "NotIn"
        else:
            table[:] = [_meets(requirement, value) for value in self.known]
        return table[self.numbers[:count]]


class Groups:
    """The groups of nodes that no shape distinguishes, and the shapes for which each group is eligible.

    An update of a node reads only the labels that shapes require. `arrange` computes the groups, and caches them until a
    node or the shapes change.
    """

    def __init__(self) -> None:
        self._nodes: list[NodeInfo] = []
        self._taints = _Column(_taints, ())
        self._columns: dict[tuple[bool, str], _Column] = {}
        self._matches: dict[Selector, Flags] = {}
        """Selector of the last shapes -> [N] whether it matches each node."""
        self._group: Counts = np.zeros(0, np.int64)
        self._first: Counts = np.zeros(0, np.int64)
        """The first node of each group."""
        self._fits: Flags = np.zeros((0, 0), np.bool_)
        self._shapes: list[Constraints] = []
        self._stale = True

    def set(self, index: int, info: NodeInfo) -> None:
        """Set the traits of a node; a new node has the next index."""
        if index == len(self._nodes):
            self._nodes.append(info)
            self._stale = True
        self._nodes[index] = info
        for column in (self._taints, *self._columns.values()):
            self._stale |= column.set(index, info)

    def remove(self, index: int) -> None:
        """Remove a node; the last node takes its index."""
        last = self._nodes.pop()
        if index < len(self._nodes):
            self.set(index, last)
        self._stale = True

    def arrange(self, shapes: Sequence[Constraints]) -> tuple[Counts, Flags]:
        """Return [N] the group of each node, and [S, G] whether each group is eligible for each shape.

        The arrays are read-only; they are the identical objects if nothing has changed.
        """
        if not self._stale and shapes == self._shapes:
            return self._group, self._fits
        self._drop_unused_values()
        selectors = list(dict.fromkeys(each.selector for each in shapes))
        before = list(self._matches)
        self._matches = {
            each: self._matches[each] if each in self._matches else self._selected(each) for each in selectors
        }
        required_keys = {(each.field, each.key) for selector in selectors for each in _requirements(selector)}
        self._columns = {key: each for key, each in self._columns.items() if key in required_keys}
        matches = np.array(list(self._matches.values()), np.bool_).reshape(len(selectors), len(self._nodes))
        if self._stale or selectors != before:
            self._regroup(matches)
        self._fits = self._fitting(shapes, matches)
        self._group.flags.writeable = self._fits.flags.writeable = False
        self._shapes, self._stale = list(shapes), False
        return self._group, self._fits

    def _drop_unused_values(self) -> None:
        """Drop values that nodes had earlier, so that the tables do not grow with changing node names."""
        if not self._stale:
            return
        self._matches = {}
        most = 2 * len(self._nodes) + 64
        self._columns = {key: each for key, each in self._columns.items() if len(each.known) <= most}
        if len(self._taints.known) > most:
            self._taints = _Column(_taints, self._nodes)

    def _selected(self, selector: Selector) -> Flags:
        found = self._all_hold(selector.every)
        if selector.terms is None:
            return found
        any_holds = np.zeros(len(self._nodes), np.bool_)
        for term in selector.terms:
            any_holds |= self._all_hold(term)
        return found & any_holds

    def _all_hold(self, term: Term) -> Flags:
        found = np.ones(len(self._nodes), np.bool_)
        for each in term:
            key = (each.field, each.key)
            if key not in self._columns:
                self._columns[key] = _Column(partial(_value_of, each), self._nodes)
            found &= self._columns[key].matches_term(each, len(self._nodes))
        return found

    def _regroup(self, matches: Flags) -> None:
        """Group the nodes with equal taints and equal results; exact, as bits are compared and not hashes."""
        count = len(self._nodes)
        group: Counts = self._taints.numbers[:count].astype(np.int64)
        for at in range(0, max(1, len(matches)), 32):
            bits = np.zeros((count, 4), np.uint8)
            packed = np.packbits(matches[at : at + 32], axis=0).T
            bits[:, : packed.shape[1]] = packed
            combined = (group << 32) | bits.view(np.uint32)[:, 0]
            _, first, numbers = np.unique(combined, return_index=True, return_inverse=True)
            group, self._first = numbers.astype(np.int64), first.astype(np.int64)
        self._group = group

    def _fitting(self, shapes: Sequence[Constraints], matches: Flags) -> Flags:
        taints = list(self._taints.known)
        tolerations = {each: at for at, each in enumerate(dict.fromkeys(each.tolerations for each in shapes))}
        selectors = {each: at for at, each in enumerate(self._matches)}
        tolerates_taint = [[each is not None and tolerates(own, each) for each in taints] for own in tolerations]
        tolerated = np.array(tolerates_taint, np.bool_).reshape(len(tolerations), len(taints))[
            :, self._taints.numbers[self._first]
        ]
        selected = matches[:, self._first]
        toleration_index = [tolerations[each.tolerations] for each in shapes]
        fits: Flags = tolerated[toleration_index] & selected[[selectors[each.selector] for each in shapes]]
        return fits


class PodShape:
    """The shape of pods: pods of one shape have equal requests and constraints.

    Attributes:
        request: Request of these pods.
        constraints: Constraints of these pods.
        index: Number of the shape in snapshots; -1: it is in none.
    """

    __slots__ = ("__weakref__", "constraints", "index", "request")

    def __init__(self, request: Request, constraints: Constraints) -> None:
        self.request = request
        self.constraints = constraints
        self.index = -1


class ShapeBook:
    """The shapes of pods, and the numbers of shapes that are in snapshots."""

    def __init__(self) -> None:
        self._shapes: WeakValueDictionary[tuple[Request, Constraints], PodShape] = WeakValueDictionary()
        self.numbering = 0
        """Increases when shapes get other numbers than before."""
        self._numbered: list[PodShape] = []
        self._matrix: Counts = np.zeros((0, 0), np.int64)
        self.constraints: list[Constraints] = []
        """Constraints of each numbered shape, by its number."""

    def shape(self, request: Request, pod: Manifest) -> PodShape:
        """Return the shape of a pod; pods of one shape share the object."""
        constraints = constraints_of(pod)
        found = self._shapes.get((request, constraints))
        if found is None:
            found = self._shapes[request, constraints] = PodShape(request, constraints)
        return found

    def number(self, used: Collection[PodShape], *, columns: int) -> Counts:
        """Number the used shapes, and drop all other numbers once these are more than the used ones.

        Args:
            used: Shapes of the snapshot.
            columns: Number of resources.

        Returns:
            [S, R] requests by number; read-only.
        """
        if len(self._numbered) > 2 * len(used):
            for shape in self._numbered:
                shape.index = -1
            self._numbered, self.constraints, self.numbering = [], [], self.numbering + 1
        before = len(self._numbered) if self._numbered else -1
        for shape in used:
            if shape.index < 0:
                shape.index = len(self._numbered)
                self._numbered.append(shape)
                self.constraints.append(shape.constraints)
        if len(self._numbered) != before or self._matrix.shape[1] != columns:
            rows = [each.request.row for each in self._numbered]
            self._matrix = np.array(rows, np.int64).reshape(len(rows), columns)
            self._matrix.flags.writeable = False
        return self._matrix


def limit_shapes(shapes: Iterable[tuple[PodShape, int]], most: int) -> Collection[PodShape]:
    """Return at most `most` shapes: those of the highest priority, and of equal priorities the first ones.

    Args:
        shapes: (shape, priority) of pods.
        most: Most shapes.
    """
    best: dict[PodShape, int] = {}
    for shape, priority in shapes:
        best[shape] = max(priority, best.get(shape, priority))
    if len(best) <= most:
        return best
    return dict.fromkeys(sorted(best, key=lambda shape: -best[shape])[:most])


def _taints(info: NodeInfo) -> Hashable:
    return info.taints


def _requirements(selector: Selector) -> Iterator[Requirement]:
    return chain(selector.every, *(selector.terms or ()))
