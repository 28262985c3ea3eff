"""The cache of the cluster and of etcd, by job: filled by informers and the watch of etcd, read by the job controller. No I/O.

Every event method returns the jobs that the event concerns; the caller enqueues them. Events may be late or repeated. A watch
that is restarted lists what exists, but not what was deleted in the gap: ``forget_missing`` takes a listing for that.

Anybody can write labels. So an object belongs to a job only if it is in the job's namespace, and if the API server's garbage
collector would agree: its owner is the job itself, or a controller that the job owns.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

from shoal.api.status import AccountStatus
from shoal.operator.cache.pod_summary import PodSummary
from shoal.operator.core.reconcile import Ended, Observed, ServerPod
from shoal.operator.core.run_policy import ContainerEnd
from shoal.operator.core.size_request import SizeRequest, size_request
from shoal.operator.etcd.records import READERS, RecordError, Usage, only_progress, read
from shoal.operator.resources.node_affinity import NODES
from shoal.operator.resources.object_fields import (
    Manifest,
    Place,
    controlled,
    is_pod_of,
    newer,
    place_of,
    revision_of,
    same,
    unreachable,
    without,
    without_unread_fields,
)
from shoal.operator.resources.pods import GROUP, TOKEN_VERSION, label
from shoal.operator.status.conditions import PodProblem
from shoal.operator.status.facts import Facts
from shoal.operator.status.reasons import NO_CLASS
from shoal.store import DesiredState, JobKeys, MasterRecord, ReportedState

__all__ = ["APPLIED", "APPLIED_KINDS", "NEWS_SECONDS", "Cache"]

APPLIED: Final = f"{GROUP}/applied"
"""The annotation with the hash of the manifest that an object was last applied from."""
NEWS_SECONDS: Final = 15.0
"""Delay of a sync for progress that changes nothing else."""
APPLIED_KINDS: Final = ("Deployment", "StatefulSet", "Service", "ServiceAccount", "ConfigMap", "PodDisruptionBudget")
"""Kinds with that annotation: created when a job first runs, and deleted with it."""
_NO_CLASS_MESSAGE: Final = (
    "the cluster has no default StorageClass; name one in spec.parameterServer.volumeClaimSpec.storageClassName, or keep "
    "the snapshots in the pods (spec.parameterServer.emptyDir: {}), where they are lost with them"
)
_MOST_DELETED: Final = 10_000
"""More objects than can be deleted between a write and its response."""

Uid = str


def _ignore(*_: object) -> None:
    pass


@dataclass
class _Known:
    """The cache's entry of one job, without its manifest."""

    objects: dict[tuple[str, str, str], Manifest] = field(default_factory=dict)
    """By kind, namespace and name; slimmed."""
    ahead: dict[tuple[str, str, str], Manifest] = field(default_factory=dict)
    """Objects from responses to own writes that no watch has delivered yet; older events of them are dropped."""
    read: dict[tuple[str, str, str], PodSummary | None] = field(default_factory=dict)
    """Summaries of the pods among the objects; None: the pod is not of this job, whatever its labels are."""
    pods: tuple[PodSummary, ...] | None = None
    """The job's pods; None: to be built again. A sync reads them several times."""
    desired: DesiredState | None = None
    published: ReportedState | None = None
    reported_at: datetime | None = None
    moved: datetime | None = None
    committed: float | None = None
    """When the number of committed samples was last observed to grow, by `Cache`'s clock."""
    usage: Usage = field(default_factory=Usage)
    leader: MasterRecord | None = None
    ended: Ended | None = None
    request: SizeRequest | None = None
    """Who last changed the job's size. None: the job has not been observed yet."""

    @property
    def empty(self) -> bool:
        """Whether the job has nothing on the cluster and nothing in etcd."""
        return not (self.objects or self.usage.keys or any(getattr(self, each) for each, _ in READERS.values()))


class Cache:
    """The cache, by the job's UID.

    Args:
        clock: Monotonic clock, in seconds.
        on_record: Called with a job's UID and each record of it in etcd that is new. Default: does nothing.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, on_record: Callable[[Uid, object], None] = _ignore
    ) -> None:
        self._clock = clock
        self._on_record = on_record
        self.jobs: dict[Uid, Manifest] = {}
        """TrainingJobs by UID, without managedFields."""
        self._known: dict[Uid, _Known] = defaultdict(_Known)
        self._named: dict[Place, Uid] = {}
        self._uids_by_place: dict[Place, set[Uid]] = defaultdict(set)
        """UIDs with objects under a job's name: more than one if a job was deleted and created again."""
        self._deleted: dict[str, None] = {}
        """UIDs of recently deleted objects, oldest first."""
        self._lost_nodes: set[str] = set()
        self._deleted_nodes: set[str] = set()
        """The lost nodes that are deleted."""
        self._cordoned_nodes: set[str] = set()
        self._etcd = True

    # --- Events: each method returns the jobs that the event concerns ---

    def job_changed(self, manifest: Manifest, *, deleted: bool = False) -> set[Uid]:
        """Handle an event of a TrainingJob: it was added, changed or deleted."""
        uid = manifest["metadata"]["uid"]
        if not deleted:
            before = self.jobs.get(uid)
            self._named[place_of(manifest)] = uid
            after = self.jobs[uid] = {**manifest, "metadata": without(manifest["metadata"], "managedFields")}
            self._known[uid].request = size_request(self._known[uid].request, manifest)
            # The operator wrote the status itself, so a change of it needs no sync.
            return set() if before is not None and same(before, after, but="status") else {uid}
        self.jobs.pop(uid, None)
        if self._named.get(place_of(manifest)) == uid:
            del self._named[place_of(manifest)]
        known = self._known.pop(uid, None)
        if known is not None and known.objects:
            # They are deleted soon; until then no other job can use their names.
            self._known[uid] = _Known(objects=known.objects)
        return {uid}

    def object_changed(self, manifest: Manifest, *, deleted: bool = False) -> set[Uid]:
        """Handle an event of an object with a job's label: it was added, changed or deleted."""
        uid, job = label(manifest, "uid"), label(manifest, "job")
        if not uid:
            return set()
        metadata = manifest["metadata"]
        namespace, kind = metadata.get("namespace", ""), manifest["kind"]
        known, place, key = self._known[uid], (namespace, job), (kind, namespace, metadata["name"])
        ahead = known.ahead.get(key)
        if not deleted and ahead is not None and newer(ahead, manifest):
            return set()
        known.ahead.pop(key, None)
        before = known.objects.pop(key, None)
        known.read.pop(key, None)
        known.pods = None
        if deleted:
            self._remember_deleted(manifest)
            return {uid} | self._waiting_for(uid, place)
        after = known.objects[key] = without_unread_fields(manifest)
        self._uids_by_place[place].add(uid)
        # Controllers count in the status of their objects; the cache does not keep that.
        return set() if before is not None and same(before, after) else {uid}

    def response_received(self, manifest: Manifest) -> None:
        """Add an object from the API server's response to an own write, before a watch delivers it.

        Without this, syncs on a busy cluster would create the same pods again and again.
        """
        key = (manifest["kind"], manifest["metadata"].get("namespace", ""), manifest["metadata"]["name"])
        known = self._known[label(manifest, "uid")].objects.get(key)
        deleted = manifest["metadata"].get("uid", "") in self._deleted
        if not deleted and (known is None or newer(manifest, known)):
            self.object_changed(manifest)
            self._known[label(manifest, "uid")].ahead[key] = without_unread_fields(manifest)

    def _remember_deleted(self, manifest: Manifest) -> None:
        """Remember a deleted object: the response to its creation may be handled after the event of its deletion."""
        self._deleted[manifest["metadata"].get("uid", "")] = None
        if len(self._deleted) > _MOST_DELETED:
            del self._deleted[next(iter(self._deleted))]

    def _waiting_for(self, uid: Uid, place: Place) -> set[Uid]:
        """Return the job that waits for the remaining objects of a deleted job of its name, after one of them was deleted."""
        if uid in self.jobs:
            return set()
        if not self._known[uid].objects:
            del self._known[uid]
            others = self._uids_by_place.get(place, set())
            others.discard(uid)
            if not others:
                self._uids_by_place.pop(place, None)
        return {self._named[place]} if place in self._named else set()

    def records_replaced(self, records: Mapping[str, bytes]) -> dict[Uid, float]:
        """Replace all records with those in etcd, after a gap in the watch or a loss of data; missing ones are deleted."""
        there = {(found[0].uid, found[1]) for found in map(JobKeys.parse, records) if found is not None}
        touched: dict[Uid, float] = {}
        kinds = {uid: known.usage.problem_kinds for uid, known in self._known.items()}
        for uid, known in self._known.items():
            known.usage = Usage()
            for record, (attribute, _) in READERS.items():
                if (uid, record) not in there and getattr(known, attribute) is not None:
                    setattr(known, attribute, None)
                    touched[uid] = 0.0
        for key, value in records.items():
            touched |= self.record_changed(key, value, created=True)
        return touched | {uid: 0.0 for uid, before in kinds.items() if self._known[uid].usage.problem_kinds != before}

    def forget_missing(self, kind: str, listed: Iterable[Manifest], *, revision: int, namespace: str = "") -> set[Uid]:
        """Delete objects that a complete listing of a kind lacks, unless they changed after that listing.

        Args:
            kind: The kind that was listed.
            listed: The listed objects.
            revision: Resource version of the listing.
            namespace: The namespace that was listed. Empty: all.
        """
        if kind == "TrainingJob":
            uids = {each["metadata"]["uid"] for each in listed}
            here = [job for job in self.jobs.values() if namespace in {"", place_of(job)[0]}]
            deleted = [job for job in here if job["metadata"]["uid"] not in uids and revision_of(job) <= revision]
            return {uid for job in deleted for uid in self.job_changed(job, deleted=True)}
        if kind == "Node":
            nodes = {each["metadata"]["name"] for each in listed}
            unlisted = ({"metadata": {"name": name}} for name in self._nodes_in_use(revision) - nodes)
            return {uid for node in unlisted for uid in self.node_changed(node, deleted=True)}
        there = {
            (label(each, "uid"), each["metadata"].get("namespace", ""), each["metadata"]["name"]) for each in listed
        }
        missing = [
            each
            for uid, known in self._known.items()
            for (of, where, name), each in known.objects.items()
            if of == kind
            and namespace in {"", where}
            and (uid, where, name) not in there
            and revision_of(each) <= revision
        ]
        touched: set[Uid] = set()
        for each in missing:
            touched |= self.object_changed({"kind": kind, **each}, deleted=True)
        return touched

    def _nodes_in_use(self, revision: int) -> set[str]:
        """Return the nodes of pods that are not newer than this revision: a newer pod may be on a newer node."""
        return {
            str(each["spec"]["nodeName"])
            for known in self._known.values()
            for each in known.objects.values()
            if (each.get("spec") or {}).get("nodeName") and revision_of(each) <= revision
        }

    def node_changed(self, manifest: Manifest, *, deleted: bool = False) -> set[Uid]:
        """Handle an event of a node: it was added, changed or deleted."""
        name = manifest["metadata"]["name"]
        lost = deleted or unreachable(manifest)
        cordoned = not deleted and bool((manifest.get("spec") or {}).get("unschedulable"))
        before = (name in self._lost_nodes, name in self._deleted_nodes, name in self._cordoned_nodes)
        if (lost, deleted, cordoned) == before:
            return set()
        (self._cordoned_nodes.add if cordoned else self._cordoned_nodes.discard)(name)
        (self._lost_nodes.add if lost else self._lost_nodes.discard)(name)
        (self._deleted_nodes.add if deleted else self._deleted_nodes.discard)(name)
        return {
            uid
            for uid, known in self._known.items()
            if any((each.get("spec") or {}).get("nodeName") == name for each in known.objects.values())
        }

    def etcd_changed(self, *, away: bool) -> set[Uid]:
        """Handle a change of etcd's reachability."""
        changed, self._etcd = self._etcd is away, not away
        return set(self.jobs) if changed else set()

    def record_changed(self, key: str, value: bytes | None, *, created: bool = False) -> dict[Uid, float]:
        """Handle an event of a key in etcd.

        Args:
            key: Any key.
            value: Its present value. None: it was deleted.
            created: Whether it did not exist before.

        Returns:
            The jobs to sync, and within how many seconds.
        """
        found = JobKeys.parse(key)
        if found is None or (value is None and found[0].uid not in self._known):
            return {}
        uid, record = found[0].uid, found[1]
        known = self._known[uid]
        before = known.usage.problem_kinds
        if value is None:
            known.usage.removed(record)
        else:
            known.usage.written(record, len(value), created=created)
        due = self._update_record(uid, known, record, value) if record in READERS else {}
        if before != known.usage.problem_kinds:
            due = {uid: 0.0}
        if value is None and uid not in self.jobs and known.empty:
            del self._known[uid]
        return due

    def _update_record(self, uid: Uid, known: _Known, record: str, value: bytes | None) -> dict[Uid, float]:
        """Update what a record sets; one that cannot be read changes nothing but its complaint."""
        attribute, _ = READERS[record]
        try:
            now = read(record, value) if value is not None else None
        except RecordError as error:
            known.usage.unread[record] = str(error)
            return {}
        known.usage.unread.pop(record, None)
        before = getattr(known, attribute)
        if now == before:
            return {}  # a master writes its election record with every commit
        setattr(known, attribute, now)
        if now is not None:
            self._on_record(uid, now)
        if attribute != "published":
            return {uid: 0.0}
        known.reported_at = datetime.now(UTC)
        if isinstance(now, ReportedState) and (not isinstance(before, ReportedState) or now.moved != before.moved):
            known.moved = known.reported_at if now.moved else None
        if isinstance(before, ReportedState) and isinstance(now, ReportedState) and now.samples > before.samples:
            known.committed = self._clock()
        return {uid: NEWS_SECONDS if only_progress(before, known.published) else 0.0}

    def forgotten(self, uid: Uid, *, outcome_only: bool = False) -> None:
        """Drop records that were removed from etcd; the watch may report it later."""
        known = self._known[uid]
        known.ended = None
        if not outcome_only:
            known.desired = known.published = known.leader = None

    # --- Queries ---

    def observed(self, uid: Uid, *, template: str) -> Observed:
        """Return the observed state of a job.

        Args:
            uid: UID of the job.
            template: Hash label of trainers' pods of the job's present template.
        """
        known = self._known[uid]
        here = set(known.published.trainers) if known.published is not None else set()
        pods = self.pods(uid)
        trainers = [
            pod.trainer(
                lost=self._lost(pod),
                current=pod.template == template,
                member=pod.index in here,
                cordoned=pod.node in self._cordoned_nodes,
            )
            for pod in pods
            if pod.role == "trainer"
        ]
        finished = known.ended is not None and known.ended.state == "Complete"
        succeeded = any(pod.succeeded for pod in pods if pod.role == "trainer")
        return Observed(
            applied={key: each[0] for key, each in self._applied(uid).items()},
            fields={key: each[1] for key, each in self._applied(uid).items()},
            trainers=tuple(sorted(trainers, key=lambda pod: pod.index)),
            saved=finished and succeeded,
            servers=self._others(uid, "pserver"),
            preferred=self._preferred(uid),
            token=self._token(uid),
            masters=self._others(uid, "master"),
            desired=known.desired,
            published=known.published,
            ended=known.ended,
        )

    def pods(self, uid: Uid) -> tuple[PodSummary, ...]:
        """Return summaries of a job's pods."""
        job = self.jobs.get(uid)
        if job is None:
            return ()
        known = self._known[uid]
        if known.pods is None:
            known.pods = tuple(self._found_pods(known, job))
        return known.pods

    @staticmethod
    def _found_pods(known: _Known, job: Manifest) -> Iterator[PodSummary]:
        namespace, name = place_of(job)
        for key, pod in known.objects.items():
            if key[0] != "Pod":
                continue
            if key not in known.read:
                ours = key[1] == namespace and is_pod_of(pod, name, job["metadata"]["uid"])
                known.read[key] = PodSummary.of(pod) if ours else None
            found = known.read[key]
            if found is not None:
                yield found

    def starting(self, uid: Uid) -> bool:
        """Return whether a pod with a node does not run yet, as a pod that waits for its Secret."""
        return any(
            pod.node and not pod.deleting and (pod.pending or (pod.role == "master" and not pod.ready))
            for pod in self.pods(uid)
        )

    def predecessors(self, uid: Uid) -> list[str]:
        """Return names of the remaining objects of deleted jobs of the same name."""
        place = place_of(self.jobs[uid])
        others = self._uids_by_place.get(place, set()) - {uid}
        return sorted(
            f"{kind} {name}"
            for other in others
            for (kind, namespace, name), each in self._known[other].objects.items()
            # An object without an owner is never garbage collected: it only has the label.
            if namespace == place[0] and each["metadata"].get("ownerReferences")
        )

    def facts(self, uid: Uid) -> Facts:
        """Return the facts for a job's status that are not part of its observed state."""
        known = self._known[uid]
        pods = self.pods(uid)
        account = known.ended.account if known.ended is not None else None
        return Facts(
            etcd=self._etcd,
            placed=frozenset(pod.name for pod in pods if pod.node),
            ready=frozenset(pod.name for pod in pods if pod.ready),
            generation=known.leader.generation if known.leader is not None else None,
            reported_at=known.reported_at,
            moved=known.moved,
            account=AccountStatus.model_validate(account) if account is not None else None,
            requested_by=known.request.by if known.request is not None else "",
        )

    def committed(self, uid: Uid) -> float | None:
        """Return when a commit of a job's samples was last observed, by `clock`; None: not since this process started."""
        return self._known[uid].committed

    def record_problems(self, uid: Uid) -> Mapping[str, str]:
        """Return the problems of a job's keys in etcd: key -> message with the fix."""
        return self._known[uid].usage.record_problems()

    def problems(self, uid: Uid) -> list[PodProblem]:
        """Return the problems of a job's pods and of its claims."""
        job = self.jobs.get(uid)
        claims = [
            PodProblem("pserver", name, NO_CLASS, _NO_CLASS_MESSAGE)
            for (kind, namespace, name), each in self._known[uid].objects.items()
            if kind == "PersistentVolumeClaim" and each["classless"] and job and namespace == place_of(job)[0]
        ]
        return [*claims, *(each for pod in self.pods(uid) for each in pod.problems)]

    def ends(self, uid: Uid) -> list[ContainerEnd]:
        """Return how runs of a job's containers ended."""
        desired = self._known[uid].desired or DesiredState()
        found = ((pod, end) for pod in self.pods(uid) for end in pod.ends)
        return [replace(end, terminated=end.terminated or pod.terminated(desired)) for pod, end in found]

    # --- Helpers ---

    def _applied(self, uid: Uid) -> dict[tuple[str, str], tuple[str, str]]:
        """Return the hash of the applied manifest and the record of Shoal's fields, by kind and name of the job's objects."""
        job = self.jobs.get(uid)
        namespace = place_of(job)[0] if job is not None else ""
        return {
            (kind, name): (str((each["metadata"].get("annotations") or {}).get(APPLIED, "")), str(each["fields"]))
            for (kind, where, name), each in self._known[uid].objects.items()
            if kind in APPLIED_KINDS and where == namespace and controlled(each, "TrainingJob", uid=uid)
        }

    def _preferred(self, uid: Uid) -> dict[str, tuple[str, ...]]:
        found = {}
        for (kind, _, _), each in self._known[uid].objects.items():
            named = (each["metadata"].get("annotations") or {}).get(NODES, "")
            if kind in APPLIED_KINDS and named and controlled(each, "TrainingJob", uid=uid):
                found[kind] = tuple(str(named).split(","))
        return found

    def _token(self, uid: Uid) -> str:
        """Return the version of the token that a job's processes were created with, from its Deployment."""
        known = self._known[uid].objects.items()
        made = (each for (kind, *_), each in known if kind == "Deployment" and controlled(each, "TrainingJob", uid=uid))
        return str(((next(made, {}).get("metadata") or {}).get("annotations") or {}).get(TOKEN_VERSION, ""))

    def _others(self, uid: Uid, role: str) -> tuple[ServerPod, ...]:
        found = [
            ServerPod(
                name=pod.name,
                uid=pod.uid,
                lost=self._lost(pod),
                deleting=pod.deleting,
                node_deleted=pod.node in self._deleted_nodes,
            )
            for pod in self.pods(uid)
            if pod.role == role
        ]
        return tuple(sorted(found, key=lambda each: each.name))

    def _lost(self, pod: PodSummary) -> bool:
        return pod.node in self._lost_nodes and not pod.ended
