"""The cluster as events tell it, kept so that the planner's snapshot costs no look at every pod. No I/O.

Sums change with each event and are only copied for a snapshot: what is taken on a node, what is leaving it, which trainers a
job holds where. So a snapshot is as dear as the jobs and the pending pods in it; nodes and bound pods cost an array's copy.

Events may come late or twice. A pod may be bound to a node that is not known yet, or no more: it weighs nothing until there
is a node of that name, and then with all that it has. Labels are anybody's to write: a trainer is a job's only if the job is
its controller, any other pod of a job only by its name and namespace; what fails that is foreign.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from shoal.autoscaler.job_demand import JobDemand
from shoal.autoscaler.planner.model import Counts, Flags, Nodes, PendingPod, PlannerJob, Shapes, Snapshot
from shoal.autoscaler.snapshot.constraints import Groups, PodShape, ShapeBook, Traits, few, traits_of, usable
from shoal.autoscaler.snapshot.object_metadata import CrewKey, crew_of, is_refused, named_for, revision_of
from shoal.autoscaler.snapshot.resources import Manifest, Request, Sums, allocatable_of, part

__all__ = ["ClusterState"]

_MOST_PENDING_SHAPES: Final = 1000
"""Of pending pods in one snapshot: a new DaemonSet on a full cluster brings one for each node. The others wait."""
_MOST_BURIED: Final = 10_000
_MOST_PROBLEMS_OF_ONE: Final = 10


@dataclass(slots=True, kw_only=True)
class _Pod:
    """What is kept of a pod.

    Attributes:
        crew: Whose it says it is.
        ended: It takes no room any more.
        request: Of one that takes room of a node; None: of any other.
        shape: Of one that the scheduler may place now; None: of any other.
        refused: Since when the scheduler has found no node for it; None: it has not said so.
        given: What the last snapshot said of it.
    """

    uid: str
    place: tuple[str, str]
    revision: int = field(compare=False)
    node: str
    crew: CrewKey | None
    role: str
    deleting: bool
    ended: bool
    request: Request | None = None
    shape: PodShape | None = None
    priority: int = 0
    preempts: bool = True
    nominated: str = ""
    refused: float | None = None
    given: PendingPod | None = field(default=None, compare=False)


@dataclass(slots=True, kw_only=True, eq=False)
class _Node:
    """What is kept of a node beside the arrays; its labels and taints are with the groups."""

    name: str
    index: int
    uid: str = ""
    revision: int = 0
    seen: tuple[Mapping[str, int], set[str], bool, Traits] | None = None
    """What it has, and of what nobody knows that; whether it takes pods, and which: all that plans know of it."""


@dataclass(slots=True, eq=False)
class _Crew:
    """The pods of one job that neither ended nor are on their way out.

    Attributes:
        on: Name of a node -> trainers that are bound there, whether or not it exists.
        asks: What these ask for -> how many of them: after an edit not all ask the same.
        changes: How many there were, of its pods or their nodes' numbers.
    """

    trainers: dict[str, _Pod] = field(default_factory=dict)
    others: dict[str, _Pod] = field(default_factory=dict)
    on: dict[str, int] = field(default_factory=dict)
    asks: dict[Request, int] = field(default_factory=dict)
    refused: dict[str, _Pod] = field(default_factory=dict)
    changes: int = 0


@dataclass(slots=True, eq=False)
class _Wanted:
    """What was made of a wish: its shapes, and what the last snapshot said of it on which basis."""

    wish: JobDemand
    trainer: PodShape
    fixed: list[tuple[PodShape, int, str]]
    title: str
    job: PlannerJob | None = None
    basis: tuple[_Crew | None, int, int] | None = None


class ClusterState:
    """What is known of nodes and pods."""

    def __init__(self) -> None:
        self.problems: dict[str, tuple[str, ...]] = {}
        """What could not be read, by kind and name of the object."""
        self._pods: dict[str, _Pod] = {}
        self._placed: dict[tuple[str, str], str] = {}
        """Namespace and name -> uid of the pod that has them."""
        self._bound: dict[str, dict[str, _Pod]] = {}
        """Name of a node -> unfinished pods there, by uid."""
        self._strangers: dict[str, _Pod] = {}
        """Pods that wait for a node, and of which no job is said to be the owner."""
        self._crews: dict[CrewKey, _Crew] = {}
        self._wanted: dict[CrewKey, _Wanted] = {}
        self._buried: dict[str, None] = {}
        """Uids of what went lately, oldest first: late news do not bring it back."""
        self._nodes: dict[str, _Node] = {}
        self._unread: dict[str, set[str]] = {}
        """Name of a node -> resources of which nobody knows how much it has."""
        self._order: list[_Node] = []
        self._groups = Groups()
        self._sums, self._book = Sums(), ShapeBook()
        self._usable: Flags = np.zeros(16, np.bool_)
        self._names: tuple[str, ...] | None = ()

    # --- Events ---

    def node_changed(self, manifest: Manifest, *, gone: bool = False) -> bool:
        """A node is there, changed, or gone.

        Returns:
            Whether that is anything to a plan: kubelets write into their nodes all the time.
        """
        metadata = part(manifest.get("metadata"))
        name, uid, revision = str(metadata.get("name", "")), str(metadata.get("uid") or ""), revision_of(metadata)
        known = self._nodes.get(name)
        if gone:
            self._bury(uid)
            if known is None or (uid and known.uid and uid != known.uid):
                return False
            self._drop_node(known)
            return True
        if uid in self._buried or (known is not None and 0 < revision < known.revision):
            return False
        known = known or self._new_node(name)
        known.uid, known.revision = uid, revision
        told: list[str] = []
        unread: set[str] = set()
        has = allocatable_of(manifest, told, unread)
        self._sums.offer(known.index, has)
        self._recount()
        self._unread.pop(name, None)
        if unread:
            self._unread[name] = unread
        self._note(f"Node {name}", told)
        before, known.seen = known.seen, (has, unread, usable(manifest), traits_of(manifest))
        if known.seen == before:
            return False
        *_, self._usable[known.index], traits = known.seen
        self._groups.set(known.index, traits)
        return True

    def pod_changed(self, manifest: Manifest, *, now: float, gone: bool = False) -> bool:
        """A pod is there, changed, or gone.

        Args:
            manifest: Its.
            now: Seconds that only go forward, of the clock of the snapshots.
            gone: Whether it was deleted.

        Returns:
            Whether that is anything to a plan: that a pod runs which had its node before is nothing.
        """
        metadata = part(manifest.get("metadata"))
        place = str(metadata.get("namespace", "")), str(metadata.get("name", ""))
        uid, revision = str(metadata.get("uid") or "/".join(place)), revision_of(metadata)
        known = self._pods.get(uid)
        if gone:
            self._bury(str(metadata.get("uid") or ""))
            self._drop_pod(known)
            return known is not None
        if uid in self._buried or (known is not None and 0 < revision < known.revision):
            return False
        namesake = self._pods.get(self._placed.get(place, uid))
        if namesake is not None and namesake.uid != uid:
            if 0 < revision < namesake.revision:
                return False
            self._bury(namesake.uid)
            self._drop_pod(namesake)
        made = self._read(manifest, uid=uid, place=place, revision=revision)
        if is_refused(manifest) and not made.node:
            made.refused = known.refused if known is not None and known.refused is not None else now
        if known == made:
            known.revision = revision
            return False
        if known is not None:
            self._count(known, -1)
        self._pods[uid], self._placed[place] = made, uid
        self._count(made, 1)
        return True

    def forget_missing(self, kind: str, present: Collection[str], *, revision: int = 0) -> None:
        """What is not in a whole listing is gone.

        Args:
            kind: ``Node`` or ``Pod``, of which all were listed.
            present: Names of the nodes, or uids of the pods, that there are.
            revision: Resource version of the listing: what changed after it may have come after it. 0: nothing has.
        """
        there = set(present)
        if kind == "Node":
            for node in [each for each in self._order if each.name not in there]:
                if not 0 < revision < node.revision:
                    self._drop_node(node)
            return
        for pod in [each for each in self._pods.values() if each.uid not in there]:
            if not 0 < revision < pod.revision:
                self._drop_pod(pod)

    # --- The question ---

    def snapshot(
        self, jobs: Iterable[JobDemand], *, now: float, spare: Iterable[tuple[Manifest, int]] = ()
    ) -> Snapshot:
        """The cluster as it is known now; nothing in it changes afterwards.

        Args:
            jobs: Those that want trainers. Trainers of others are as foreign as any pod.
            now: Seconds that only go forward.
            spare: (pod, how many) for which room is to be left.
        """
        wishes = {(wish.uid, wish.namespace): wish for wish in jobs}
        for crew in self._wanted.keys() - wishes.keys():
            self._note(self._wanted[crew].title, [])
        wanted = self._wanted = {crew: self._understood(wish) for crew, wish in wishes.items()}
        left = [(self._shape_of(pod, []), count) for pod, count in spare]
        foreign = [pod for crew, each in self._crews.items() for pod in self._foreign(crew, each)]
        waiting = [(pod, pod.shape) for pod in (*self._strangers.values(), *foreign) if pod.shape is not None]
        kept = few(((shape, pod.priority) for pod, shape in waiting), _MOST_PENDING_SHAPES)
        columns = self._sums.catalogue.columns
        used = _shapes_of(wanted.values(), (*kept, *(each for each, _ in left)))
        request = self._book.number(used, columns=len(columns))
        group, fits = self._groups.arrange(self._book.constraints)
        room, usable_now = self._sums.room(self._more(foreign)), self._usable[: len(self._order)].copy()
        self._correct(room)
        if self._names is None:
            self._names = tuple([node.name for node in self._order])
        return Snapshot(
            now=now,
            resources=tuple(columns),
            nodes=Nodes(
                names=self._names,
                room=room,
                leaving=self._sums.leaving(),
                usable=usable_now,
                group=group,
                total=self._sums.total(usable_now),
            ),
            shapes=Shapes(request=request, fits=fits),
            jobs=tuple(self._job(crew, each, now) for crew, each in wanted.items()),
            pending=tuple(self._pending(pod, shape) for pod, shape in waiting if shape in kept),
            spare=tuple((shape.index, count) for shape, count in left),
        )

    def _foreign(self, key: CrewKey, crew: _Crew) -> Iterator[_Pod]:
        """Those pods of a crew that are no pods of a job that was asked about."""
        found = self._wanted.get(key)
        if found is None:
            yield from crew.trainers.values()
            yield from crew.others.values()
        elif crew.others:
            yield from (pod for pod in crew.others.values() if not named_for(pod.place[1], pod.role, found.wish.name))

    def _more(self, foreign: Iterable[_Pod]) -> Iterator[tuple[int, Request]]:
        """What foreign trainers take, where: it is in no sum, as who is foreign is known only now."""
        for pod in foreign:
            node = self._nodes.get(pod.node)
            if node is not None and pod.request is not None and pod.role == "trainer":
                yield node.index, pod.request

    def _correct(self, room: Counts) -> None:
        """For what is not as the planner reckons: it takes each trainer for one that would be made now.

        Those that were made before an edit take what they asked for then. Of a resource that cannot be read a node has
        just what its trainers take: nobody new finds room, and nobody leaves for a typing error.
        """
        for key, wanted in self._wanted.items():
            crew, asked = self._crews.get(key), wanted.trainer.request
            if crew is None or crew.asks.keys() <= {asked}:
                continue
            for pod in crew.trainers.values():
                node = self._nodes.get(pod.node)
                if node is not None and pod.request is not None:
                    room[node.index] += asked.row - pod.request.row
        for name, resources in self._unread.items():
            crews = [
                pod.crew for pod in self._bound.get(name, {}).values() if pod.role == "trainer" and not pod.deleting
            ]
            there = [self._wanted.get(crew) for crew in crews if crew is not None]
            for at in (self._sums.catalogue.columns[resource] for resource in resources):
                rows = (each.trainer.request.row for each in there if each is not None)
                room[self._nodes[name].index, at] = sum(int(row[at]) for row in rows)

    def _job(self, key: CrewKey, wanted: _Wanted, now: float) -> PlannerJob:
        crew = self._crews.get(key)
        basis = (crew, crew.changes if crew is not None else 0, self._book.edition)
        if wanted.job is None or wanted.basis != basis or (crew is not None and crew.refused):
            wanted.job, wanted.basis = self._made(wanted, crew or _Crew(), now), basis
        return wanted.job

    def _made(self, wanted: _Wanted, crew: _Crew, now: float) -> PlannerJob:
        wish, nodes = wanted.wish, self._nodes
        lowest = wish.priority if wish.surplus is None else wish.surplus
        firm = Counter(
            nodes[pod.node].index for pod in crew.trainers.values() if pod.priority > lowest and pod.node in nodes
        )
        return PlannerJob(
            uid=wish.uid, name=f"{wish.namespace}/{wish.name}", priority=wish.priority, min=wish.min, max=wish.max,
            weight=wish.weight, since=wish.since, surplus=wish.surplus, pinned=wish.pinned, shape=wanted.trainer.index,
            held={nodes[name].index: count for name, count in crew.on.items() if name in nodes}, firm=firm,
            fixed=tuple(self._missing(crew, wanted)) if wanted.fixed else (),
            unschedulable=max((now - (pod.refused or 0.0) for pod in crew.refused.values()), default=0.0),
        )  # fmt: skip

    def _missing(self, crew: _Crew, wanted: _Wanted) -> Iterator[tuple[int, int]]:
        bound: dict[str, int] = {}
        for pod in crew.others.values():
            if pod.node in self._nodes and named_for(pod.place[1], pod.role, wanted.wish.name):
                bound[pod.role] = bound.get(pod.role, 0) + 1
        for shape, count, role in wanted.fixed:
            there = min(count, bound.get(role, 0))
            bound[role] = bound.get(role, 0) - there
            if count > there:
                yield shape.index, count - there

    def _pending(self, pod: _Pod, shape: PodShape) -> PendingPod:
        nominated = self._nodes.get(pod.nominated)
        node = nominated.index if nominated is not None else -1
        if pod.given is None or (pod.given.shape, pod.given.node) != (shape.index, node):
            name, preempts = "/".join(pod.place), pod.preempts
            pod.given = PendingPod(
                uid=pod.uid, name=name, shape=shape.index, priority=pod.priority, node=node, preempts=preempts
            )
        return pod.given

    # --- What manifests mean ---

    def _understood(self, wish: JobDemand) -> _Wanted:
        known = self._wanted.get((wish.uid, wish.namespace))
        if known is not None and known.wish == wish:
            known.wish = wish
            return known
        told: list[str] = []
        fixed = [(self._shape_of(pod, told), count, role) for pod, count, role in wish.fixed]
        made = _Wanted(wish, self._shape_of(wish.trainer, told), fixed, f"TrainingJob {wish.namespace}/{wish.name}")
        self._note(made.title, told)
        return made

    def _read(self, manifest: Manifest, *, uid: str, place: tuple[str, str], revision: int) -> _Pod:
        spec, phase = part(manifest.get("spec")), part(manifest.get("status")).get("phase")
        node, ended = str(spec.get("nodeName") or ""), phase in {"Succeeded", "Failed"}
        deleting = part(manifest.get("metadata")).get("deletionTimestamp") is not None
        crew, role = crew_of(manifest, place[0])
        pod = _Pod(
            uid=uid, place=place, revision=revision, node=node, crew=crew, role=role, deleting=deleting, ended=ended
        )
        pod.priority = int(spec.get("priority") or 0)
        told: list[str] = []
        if not node and phase == "Pending" and not deleting and not spec.get("schedulingGates"):
            pod.shape = self._shape_of(manifest, told)
            pod.preempts = spec.get("preemptionPolicy") != "Never"
            pod.nominated = str(part(manifest.get("status")).get("nominatedNodeName") or "")
        elif node and not ended:
            pod.request = self._request_of(manifest, told)
        self._note(f"Pod {'/'.join(place)}", told)
        return pod

    def _shape_of(self, pod: Manifest, told: list[str]) -> PodShape:
        return self._book.shape(self._request_of(pod, told), pod)

    def _request_of(self, pod: Manifest, told: list[str]) -> Request:
        found = self._sums.catalogue.request(pod, told)
        self._recount()
        return found

    def _note(self, title: str, told: list[str]) -> None:
        self.problems.pop(title, None)
        if told:
            self.problems[title] = tuple(told[:_MOST_PROBLEMS_OF_ONE])

    # --- Sums ---

    def _recount(self) -> None:
        if self._sums.cleared():
            for pod in [pod for there in self._bound.values() for pod in there.values()]:
                self._weigh(pod, 1)

    def _new_node(self, name: str) -> _Node:
        index = len(self._order)
        if index == len(self._usable):
            self._usable = np.concatenate([self._usable, np.zeros(index, np.bool_)])
        self._sums.append()
        node = self._nodes[name] = _Node(name=name, index=index)
        self._order.append(node)
        self._touch(name)
        for pod in self._bound.get(name, {}).values():
            self._weigh(pod, 1)
        return node

    def _touch(self, *names: str) -> None:
        """Nodes come, go, or have another index: that concerns the jobs that have pods there."""
        self._names = None
        for pod in [pod for name in names for pod in self._bound.get(name, {}).values()]:
            if pod.crew in self._crews:
                self._crews[pod.crew].changes += 1

    def _drop_node(self, node: _Node) -> None:
        last = self._order.pop()
        if last is not node:
            self._order[node.index] = last  # which takes its rows
        self._usable[node.index] = self._usable[last.index]
        self._sums.remove(node.index)
        self._groups.remove(node.index)
        last.index = node.index
        del self._nodes[node.name]
        self._unread.pop(node.name, None)
        self._touch(node.name, last.name)
        self._note(f"Node {node.name}", [])

    def _drop_pod(self, pod: _Pod | None) -> None:
        if pod is None:
            return
        self._count(pod, -1)
        del self._pods[pod.uid]
        if self._placed.get(pod.place) == pod.uid:
            del self._placed[pod.place]
        self._note(f"Pod {'/'.join(pod.place)}", [])

    def _bury(self, uid: str) -> None:
        if uid:
            self._buried[uid] = None
        if len(self._buried) > _MOST_BURIED:
            del self._buried[next(iter(self._buried))]

    def _count(self, pod: _Pod, sign: int) -> None:
        """Add a pod to all sums that it is part of, or take it off them."""
        if pod.ended:
            return
        if pod.node:
            there = self._bound.setdefault(pod.node, {})
            _keep(there, pod, sign)
            if not there:
                del self._bound[pod.node]
            self._weigh(pod, sign)
        if pod.deleting:
            return
        if pod.crew is not None:
            self._muster(pod.crew, pod, sign)
        elif pod.shape is not None:
            _keep(self._strangers, pod, sign)

    def _weigh(self, pod: _Pod, sign: int) -> None:
        node = self._nodes.get(pod.node)
        if node is not None and pod.request is not None and (pod.deleting or pod.role != "trainer"):
            self._sums.take(node.index, pod.request, sign, leaving=pod.deleting)

    def _muster(self, key: CrewKey, pod: _Pod, sign: int) -> None:
        crew = self._crews.get(key) or self._crews.setdefault(key, _Crew())
        crew.changes += 1
        _keep(crew.trainers if pod.role == "trainer" else crew.others, pod, sign)
        if pod.role == "trainer" and pod.node:
            crew.on[pod.node] = crew.on.get(pod.node, 0) + sign
            if not crew.on[pod.node]:
                del crew.on[pod.node]
            assert pod.request is not None, "it is bound"
            crew.asks[pod.request] = crew.asks.get(pod.request, 0) + sign
            if not crew.asks[pod.request]:
                del crew.asks[pod.request]
        elif pod.role == "trainer" and pod.refused is not None:
            _keep(crew.refused, pod, sign)
        if not crew.trainers and not crew.others:
            del self._crews[key]


def _keep(pods: dict[str, _Pod], pod: _Pod, sign: int) -> None:
    if sign > 0:
        pods[pod.uid] = pod
    else:
        del pods[pod.uid]


def _shapes_of(wanted: Iterable[_Wanted], more: Iterable[PodShape]) -> dict[PodShape, None]:
    """All that a snapshot speaks of, each once, and always in the same order."""
    ours = (shape for each in wanted for shape in (each.trainer, *(fixed for fixed, _, _ in each.fixed)))
    return dict.fromkeys((*ours, *more))
