"""The state of the cluster, kept from events so that a snapshot does not iterate over all pods. No I/O.

Sums are updated with each event and only copied for a snapshot: taken room per node, terminating room per node, trainers per
job and node. So the cost of a snapshot grows with its jobs and pending pods; nodes and bound pods cost the copy of an array.

Events may be late or duplicate. A pod may be bound to a node that is not known yet, or was deleted: it counts once a node of
that name exists. Anyone can write labels, so a trainer belongs to a job only if the job is its controller, and any other pod
of a job only by its name and namespace; all other pods are foreign.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from shoal.api.metadata import resource_version
from shoal.autoscaler.job_demand import JobDemand
from shoal.autoscaler.planner.model import Counts, Flags, Nodes, PendingPod, PlannerJob, Shapes, Snapshot
from shoal.autoscaler.snapshot.constraints import Groups, NodeInfo, PodShape, ShapeBook, limit_shapes, node_info, usable
from shoal.autoscaler.snapshot.object_metadata import JobKey, is_refused, job_of, named_for
from shoal.autoscaler.snapshot.resources import Manifest, Request, Sums, allocatable_of, part

__all__ = ["ClusterState"]

_MOST_PENDING_SHAPES: Final = 1000
"""Most shapes of pending pods in a snapshot: a new DaemonSet in a full cluster adds one per node. Other pods are left out."""
_MOST_DELETED: Final = 10_000
_MOST_PROBLEMS_OF_ONE: Final = 10


@dataclass(slots=True, kw_only=True)
class _Pod:
    """The state of a pod.

    Attributes:
        place: Namespace and name.
        job: The job that the pod's labels name; None: foreign.
        ended: Whether the pod has ended, so that it takes no room.
        request: Request of a bound pod; None: the pod takes no room on a node.
        shape: Shape of a pod that the scheduler may place now; None: it may not.
        refused: Since when the scheduler finds no node for the pod; None: it has not reported that.
        last_pending: The pod in the last snapshot; None: it was in none.
    """

    uid: str
    place: tuple[str, str]
    revision: int = field(compare=False)
    node: str
    job: JobKey | None
    role: str
    deleting: bool
    ended: bool
    request: Request | None = None
    shape: PodShape | None = None
    priority: int = 0
    preempts: bool = True
    nominated: str = ""
    refused: float | None = None
    last_pending: PendingPod | None = field(default=None, compare=False)


@dataclass(slots=True, kw_only=True, eq=False)
class _Node:
    """The state of a node that is not in the arrays; `Groups` has its labels and taints."""

    name: str
    index: int
    uid: str = ""
    revision: int = 0
    seen: tuple[Mapping[str, int], set[str], bool, NodeInfo] | None = None
    """Allocatable, unreadable resources, whether the node is usable, traits: all that plans depend on."""


@dataclass(slots=True, eq=False)
class _JobPods:
    """The pods of one job that have not ended and are not being deleted.

    Attributes:
        on: Name of a node -> trainers bound there, whether or not the node exists.
        requests: Request -> bound trainers with this request: after an edit of the job these differ.
        refused: Trainers that the scheduler refuses, by uid.
        changes: Number of changes of its pods or of their nodes' numbers.
    """

    trainers: dict[str, _Pod] = field(default_factory=dict)
    others: dict[str, _Pod] = field(default_factory=dict)
    on: dict[str, int] = field(default_factory=dict)
    requests: dict[Request, int] = field(default_factory=dict)
    refused: dict[str, _Pod] = field(default_factory=dict)
    changes: int = 0


@dataclass(slots=True, eq=False)
class _KnownDemand:
    """A job's demand with its shapes, and the job of the last snapshot with the state that it was made from."""

    demand: JobDemand
    trainer: PodShape
    fixed: list[tuple[PodShape, int, str]]
    title: str
    job: PlannerJob | None = None
    basis: tuple[_JobPods | None, int, int] | None = None


class ClusterState:
    """The state of nodes and pods."""

    def __init__(self) -> None:
        self.problems: dict[str, tuple[str, ...]] = {}
        """Kind and name of an object -> its unreadable values."""
        self._pods: dict[str, _Pod] = {}
        self._placed: dict[tuple[str, str], str] = {}
        """Namespace and name -> uid of the pod."""
        self._bound: dict[str, dict[str, _Pod]] = {}
        """Name of a node -> unfinished pods there, by uid."""
        self._unowned: dict[str, _Pod] = {}
        """Pending pods whose labels name no job, by uid."""
        self._job_pods: dict[JobKey, _JobPods] = {}
        self._demands: dict[JobKey, _KnownDemand] = {}
        self._deleted: dict[str, None] = {}
        """Uids of the last deleted objects, oldest first: a late event must not add them again."""
        self._nodes: dict[str, _Node] = {}
        self._unread: dict[str, set[str]] = {}
        """Name of a node -> resources whose allocatable is unreadable."""
        self._order: list[_Node] = []
        self._groups = Groups()
        self._sums, self._book = Sums(), ShapeBook()
        self._usable: Flags = np.zeros(16, np.bool_)
        self._names: tuple[str, ...] | None = ()

    # --- Events ---

    def node_changed(self, manifest: Manifest, *, deleted: bool = False) -> bool:
        """Handle the event of a node; return whether a plan depends on it, as kubelets update their nodes every few seconds."""
        metadata = part(manifest.get("metadata"))
        name, uid, revision = str(metadata.get("name", "")), str(metadata.get("uid") or ""), resource_version(metadata)
        known = self._nodes.get(name)
        if deleted:
            self._mark_deleted(uid)
            if known is None or (uid and known.uid and uid != known.uid):
                return False
            self._drop_node(known)
            return True
        if uid in self._deleted or (known is not None and 0 < revision < known.revision):
            return False
        known = known or self._new_node(name)
        known.uid, known.revision = uid, revision
        problems: list[str] = []
        unread: set[str] = set()
        has = allocatable_of(manifest, problems, unread)
        self._sums.offer(known.index, has)
        self._recount()
        self._unread.pop(name, None)
        if unread:
            self._unread[name] = unread
        self._note(f"Node {name}", problems)
        before, known.seen = known.seen, (has, unread, usable(manifest), node_info(manifest))
        if known.seen == before:
            return False
        *_, self._usable[known.index], info = known.seen
        self._groups.set(known.index, info)
        return True

    def pod_changed(self, manifest: Manifest, *, now: float, deleted: bool = False) -> bool:
        """Handle the event of a pod.

        Args:
            manifest: Manifest of the pod.
            now: Time by the monotonic clock of the snapshots, in seconds.
            deleted: Whether the pod was deleted.

        Returns:
            Whether a plan depends on the change; it does not on the start of a bound pod.
        """
        metadata = part(manifest.get("metadata"))
        place = str(metadata.get("namespace", "")), str(metadata.get("name", ""))
        uid, revision = str(metadata.get("uid") or "/".join(place)), resource_version(metadata)
        known = self._pods.get(uid)
        if deleted:
            self._mark_deleted(str(metadata.get("uid") or ""))
            self._drop_pod(known)
            return known is not None
        if uid in self._deleted or (known is not None and 0 < revision < known.revision):
            return False
        namesake = self._pods.get(self._placed.get(place, uid))
        if namesake is not None and namesake.uid != uid:
            if 0 < revision < namesake.revision:
                return False
            self._mark_deleted(namesake.uid)
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
        """Remove objects that are not in a complete list.

        Args:
            kind: ``Node`` or ``Pod``.
            present: Names of the nodes, or uids of the pods, in the list.
            revision: Resource version of the list: objects that changed later are kept. 0: unknown, none is kept.
        """
        present = set(present)
        if kind == "Node":
            for node in [each for each in self._order if each.name not in present]:
                if not 0 < revision < node.revision:
                    self._drop_node(node)
            return
        for pod in [each for each in self._pods.values() if each.uid not in present]:
            if not 0 < revision < pod.revision:
                self._drop_pod(pod)

    # --- Snapshot ---

    def snapshot(
        self, jobs: Iterable[JobDemand], *, now: float, spare: Iterable[tuple[Manifest, int]] = ()
    ) -> Snapshot:
        """Return an immutable snapshot of the present state.

        Args:
            jobs: Demands of the jobs that need trainers. Trainers of other jobs count as foreign pods.
            now: Time by the monotonic clock, in seconds.
            spare: Head-room: (pod, count) for which room is left.
        """
        demands = {(demand.uid, demand.namespace): demand for demand in jobs}
        for key in self._demands.keys() - demands.keys():
            self._note(self._demands[key].title, [])
        entries = self._demands = {key: self._known_demand(demand) for key, demand in demands.items()}
        left = [(self._shape_of(pod, []), count) for pod, count in spare]
        foreign = [pod for key, each in self._job_pods.items() for pod in self._foreign(key, each)]
        waiting = [(pod, pod.shape) for pod in (*self._unowned.values(), *foreign) if pod.shape is not None]
        kept = limit_shapes(((shape, pod.priority) for pod, shape in waiting), _MOST_PENDING_SHAPES)
        columns = self._sums.catalogue.columns
        used = _shapes_of(entries.values(), (*kept, *(each for each, _ in left)))
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
            jobs=tuple(self._job(key, each, now) for key, each in entries.items()),
            pending=tuple(self._pending(pod, shape) for pod, shape in waiting if shape in kept),
            spare=tuple((shape.index, count) for shape, count in left),
        )

    def _foreign(self, key: JobKey, pods: _JobPods) -> Iterator[_Pod]:
        """Yield the pods of a job that are foreign: its demand is not in the snapshot, or their names are not the job's."""
        found = self._demands.get(key)
        if found is None:
            yield from pods.trainers.values()
            yield from pods.others.values()
        elif pods.others:
            yield from (pod for pod in pods.others.values() if not named_for(pod.place[1], pod.role, found.demand.name))

    def _more(self, foreign: Iterable[_Pod]) -> Iterator[tuple[int, Request]]:
        """Yield (node, request) of foreign trainers: they are in no sum, as the demands decide which are foreign."""
        for pod in foreign:
            node = self._nodes.get(pod.node)
            if node is not None and pod.request is not None and pod.role == "trainer":
                yield node.index, pod.request

    def _correct(self, room: Counts) -> None:
        """Correct the room for the planner's assumption that each trainer has the request of the present template.

        Trainers created before an edit of the job have another request. Of a resource that cannot be read, a node gets just
        the room of its trainers: no new pod fits, and no trainer is preempted because of a typing error.
        """
        for key, entry in self._demands.items():
            pods, request = self._job_pods.get(key), entry.trainer.request
            if pods is None or pods.requests.keys() <= {request}:
                continue
            for pod in pods.trainers.values():
                node = self._nodes.get(pod.node)
                if node is not None and pod.request is not None:
                    room[node.index] += request.row - pod.request.row
        for name, resources in self._unread.items():
            keys = [pod.job for pod in self._bound.get(name, {}).values() if pod.role == "trainer" and not pod.deleting]
            jobs = [self._demands.get(key) for key in keys if key is not None]
            for at in (self._sums.catalogue.columns[resource] for resource in resources):
                rows = (each.trainer.request.row for each in jobs if each is not None)
                room[self._nodes[name].index, at] = sum(int(row[at]) for row in rows)

    def _job(self, key: JobKey, entry: _KnownDemand, now: float) -> PlannerJob:
        pods = self._job_pods.get(key)
        basis = (pods, pods.changes if pods is not None else 0, self._book.numbering)
        if entry.job is None or entry.basis != basis or (pods is not None and pods.refused):
            entry.job, entry.basis = self._planner_job(entry, pods or _JobPods(), now), basis
        return entry.job

    def _planner_job(self, entry: _KnownDemand, pods: _JobPods, now: float) -> PlannerJob:
        demand, nodes = entry.demand, self._nodes
        lowest = demand.priority if demand.surplus is None else demand.surplus
        firm = Counter(
            nodes[pod.node].index for pod in pods.trainers.values() if pod.priority > lowest and pod.node in nodes
        )
        return PlannerJob(
            uid=demand.uid, name=f"{demand.namespace}/{demand.name}", priority=demand.priority, min=demand.min, max=demand.max,
            weight=demand.weight, since=demand.since, surplus=demand.surplus, pinned=demand.pinned, shape=entry.trainer.index,
            held={nodes[name].index: count for name, count in pods.on.items() if name in nodes}, firm=firm,
            fixed=tuple(self._missing(pods, entry)) if entry.fixed else (),
            unschedulable=max((now - (pod.refused or 0.0) for pod in pods.refused.values()), default=0.0),
        )  # fmt: skip

    def _missing(self, pods: _JobPods, entry: _KnownDemand) -> Iterator[tuple[int, int]]:
        bound: dict[str, int] = {}
        for pod in pods.others.values():
            if pod.node in self._nodes and named_for(pod.place[1], pod.role, entry.demand.name):
                bound[pod.role] = bound.get(pod.role, 0) + 1
        for shape, count, role in entry.fixed:
            found = min(count, bound.get(role, 0))
            bound[role] = bound.get(role, 0) - found
            if count > found:
                yield shape.index, count - found

    def _pending(self, pod: _Pod, shape: PodShape) -> PendingPod:
        nominated = self._nodes.get(pod.nominated)
        node = nominated.index if nominated is not None else -1
        if pod.last_pending is None or (pod.last_pending.shape, pod.last_pending.node) != (shape.index, node):
            name, preempts = "/".join(pod.place), pod.preempts
            pod.last_pending = PendingPod(
                uid=pod.uid, name=name, shape=shape.index, priority=pod.priority, node=node, preempts=preempts
            )
        return pod.last_pending

    # --- Reading of manifests ---

    def _known_demand(self, demand: JobDemand) -> _KnownDemand:
        known = self._demands.get((demand.uid, demand.namespace))
        if known is not None and known.demand == demand:
            known.demand = demand
            return known
        problems: list[str] = []
        fixed = [(self._shape_of(pod, problems), count, role) for pod, count, role in demand.fixed]
        made = _KnownDemand(
            demand, self._shape_of(demand.trainer, problems), fixed, f"TrainingJob {demand.namespace}/{demand.name}"
        )
        self._note(made.title, problems)
        return made

    def _read(self, manifest: Manifest, *, uid: str, place: tuple[str, str], revision: int) -> _Pod:
        spec, phase = part(manifest.get("spec")), part(manifest.get("status")).get("phase")
        node, ended = str(spec.get("nodeName") or ""), phase in {"Succeeded", "Failed"}
        deleting = part(manifest.get("metadata")).get("deletionTimestamp") is not None
        job, role = job_of(manifest, place[0])
        pod = _Pod(
            uid=uid, place=place, revision=revision, node=node, job=job, role=role, deleting=deleting, ended=ended
        )
        pod.priority = int(spec.get("priority") or 0)
        problems: list[str] = []
        if not node and phase == "Pending" and not deleting and not spec.get("schedulingGates"):
            pod.shape = self._shape_of(manifest, problems)
            pod.preempts = spec.get("preemptionPolicy") != "Never"
            pod.nominated = str(part(manifest.get("status")).get("nominatedNodeName") or "")
        elif node and not ended:
            pod.request = self._request_of(manifest, problems)
        self._note(f"Pod {'/'.join(place)}", problems)
        return pod

    def _shape_of(self, pod: Manifest, problems: list[str]) -> PodShape:
        return self._book.shape(self._request_of(pod, problems), pod)

    def _request_of(self, pod: Manifest, problems: list[str]) -> Request:
        found = self._sums.catalogue.request(pod, problems)
        self._recount()
        return found

    def _note(self, title: str, problems: list[str]) -> None:
        self.problems.pop(title, None)
        if problems:
            self.problems[title] = tuple(problems[:_MOST_PROBLEMS_OF_ONE])

    # --- Sums ---

    def _recount(self) -> None:
        if self._sums.cleared():
            for pod in [pod for here in self._bound.values() for pod in here.values()]:
                self._count_on_node(pod, 1)

    def _new_node(self, name: str) -> _Node:
        index = len(self._order)
        if index == len(self._usable):
            self._usable = np.concatenate([self._usable, np.zeros(index, np.bool_)])
        self._sums.append()
        node = self._nodes[name] = _Node(name=name, index=index)
        self._order.append(node)
        self._count_changes(name)
        for pod in self._bound.get(name, {}).values():
            self._count_on_node(pod, 1)
        return node

    def _count_changes(self, *names: str) -> None:
        """Mark the jobs with pods on nodes that were added or deleted, or have another index."""
        self._names = None
        for pod in [pod for name in names for pod in self._bound.get(name, {}).values()]:
            if pod.job in self._job_pods:
                self._job_pods[pod.job].changes += 1

    def _drop_node(self, node: _Node) -> None:
        last = self._order.pop()
        if last is not node:
            self._order[node.index] = last  # it takes the deleted node's rows
        self._usable[node.index] = self._usable[last.index]
        self._sums.remove(node.index)
        self._groups.remove(node.index)
        last.index = node.index
        del self._nodes[node.name]
        self._unread.pop(node.name, None)
        self._count_changes(node.name, last.name)
        self._note(f"Node {node.name}", [])

    def _drop_pod(self, pod: _Pod | None) -> None:
        if pod is None:
            return
        self._count(pod, -1)
        del self._pods[pod.uid]
        if self._placed.get(pod.place) == pod.uid:
            del self._placed[pod.place]
        self._note(f"Pod {'/'.join(pod.place)}", [])

    def _mark_deleted(self, uid: str) -> None:
        if uid:
            self._deleted[uid] = None
        if len(self._deleted) > _MOST_DELETED:
            del self._deleted[next(iter(self._deleted))]

    def _count(self, pod: _Pod, sign: int) -> None:
        """Add a pod to all sums (sign 1), or remove it from them (-1)."""
        if pod.ended:
            return
        if pod.node:
            here = self._bound.setdefault(pod.node, {})
            _keep(here, pod, sign)
            if not here:
                del self._bound[pod.node]
            self._count_on_node(pod, sign)
        if pod.deleting:
            return
        if pod.job is not None:
            self._count_of_job(pod.job, pod, sign)
        elif pod.shape is not None:
            _keep(self._unowned, pod, sign)

    def _count_on_node(self, pod: _Pod, sign: int) -> None:
        node = self._nodes.get(pod.node)
        if node is not None and pod.request is not None and (pod.deleting or pod.role != "trainer"):
            self._sums.take(node.index, pod.request, sign, leaving=pod.deleting)

    def _count_of_job(self, key: JobKey, pod: _Pod, sign: int) -> None:
        pods = self._job_pods.get(key) or self._job_pods.setdefault(key, _JobPods())
        pods.changes += 1
        _keep(pods.trainers if pod.role == "trainer" else pods.others, pod, sign)
        if pod.role == "trainer" and pod.node:
            pods.on[pod.node] = pods.on.get(pod.node, 0) + sign
            if not pods.on[pod.node]:
                del pods.on[pod.node]
            assert pod.request is not None, "a bound pod has a request"
            pods.requests[pod.request] = pods.requests.get(pod.request, 0) + sign
            if not pods.requests[pod.request]:
                del pods.requests[pod.request]
        elif pod.role == "trainer" and pod.refused is not None:
            _keep(pods.refused, pod, sign)
        if not pods.trainers and not pods.others:
            del self._job_pods[key]


def _keep(pods: dict[str, _Pod], pod: _Pod, sign: int) -> None:
    if sign > 0:
        pods[pod.uid] = pod
    else:
        del pods[pod.uid]


def _shapes_of(entries: Iterable[_KnownDemand], more: Iterable[PodShape]) -> dict[PodShape, None]:
    """Return all shapes of a snapshot, each once, in a stable order."""
    ours = (shape for each in entries for shape in (each.trainer, *(fixed for fixed, _, _ in each.fixed)))
    return dict.fromkeys((*ours, *more))
