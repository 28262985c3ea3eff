"""What is known of the cluster and of etcd, by job: filled by watches, asked by the reconciler. No I/O.

Every event says which jobs it concerns; whoever feeds events marks these dirty. Events may come late or twice. A watch that
began anew lists what is there, but not what went meanwhile: ``forget_missing`` takes a listing for that.

Labels are anybody's to write. So an object is a job's only in the job's namespace, and where the API server's garbage
collector would say so too: by its owner, the job itself or a controller that belongs to it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

import msgspec

from shoal.api.status import Account
from shoal.operator.cache.pod_summary import PodSummary
from shoal.operator.core.reconcile import Ended, Observed, ServerPod
from shoal.operator.core.run_policy import ContainerEnd
from shoal.operator.etcd.records import READERS, MasterRecord, RecordError, Usage, read
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
    slim,
    unreachable,
    without,
)
from shoal.operator.resources.pods import GROUP, TOKEN_VERSION, label
from shoal.operator.status.conditions import PodProblem
from shoal.operator.status.facts import Facts
from shoal.operator.status.reasons import NO_CLASS
from shoal.store import DesiredState, JobKeys, ReportedState

__all__ = ["APPLIED", "APPLIED_KINDS", "NEWS_SECONDS", "Cache"]

APPLIED: Final = f"{GROUP}/applied"
"""The annotation with the hash of the manifest that an object was last made from."""
NEWS_SECONDS: Final = 15.0
"""Within so long progress is to be told that changes nothing else."""
APPLIED_KINDS: Final = ("Deployment", "StatefulSet", "Service", "ServiceAccount", "ConfigMap", "PodDisruptionBudget")
"""What bears that annotation: made when a job is first at work, and gone with it."""
_NO_CLASS_WORDS: Final = (
    "the cluster has no default StorageClass; name one in spec.parameterServer.volumeClaimSpec.storageClassName, or keep "
    "the snapshots in the pods (spec.parameterServer.emptyDir: {}), where they are lost with them"
)
_MOST_BURIED: Final = 10_000
"""More than can go between a write and its answer."""

Uid = str


@dataclass
class _Known:
    """All that is known of one job but its manifest."""

    objects: dict[tuple[str, str, str], Manifest] = field(default_factory=dict)
    """By kind, namespace and name; slim."""
    ahead: dict[tuple[str, str, str], Manifest] = field(default_factory=dict)
    """Those that an answer told, until a watch does: what it brings before that is older."""
    read: dict[tuple[str, str, str], PodSummary | None] = field(default_factory=dict)
    """Pods among them, read; None: it is none of the job's, whatever its labels say."""
    pods: tuple[PodSummary, ...] | None = None
    """Those of the job; None: to be found anew. A look asks for them again and again."""
    wanted: DesiredState | None = None
    published: ReportedState | None = None
    heard: datetime | None = None
    moved: datetime | None = None
    committed: float | None = None
    """When the number of committed samples was last seen to grow, by our own clock."""
    usage: Usage = field(default_factory=Usage)
    leader: MasterRecord | None = None
    ended: Ended | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing is on the cluster or in etcd."""
        return not (self.objects or self.usage.keys or any(getattr(self, each) for each, _ in READERS.values()))


class Cache:
    """What is known, by the job's uid.

    Args:
        clock: Seconds that only go forward.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.jobs: dict[Uid, Manifest] = {}
        """TrainingJobs as the API server has them."""
        self._known: dict[Uid, _Known] = defaultdict(_Known)
        self._named: dict[Place, Uid] = {}
        self._lives: dict[Place, set[Uid]] = defaultdict(set)
        """Who has objects under a job's name: more than one where a job was deleted and made again."""
        self._buried: dict[str, None] = {}
        """The uids of objects that went lately, oldest first."""
        self._lost_nodes: set[str] = set()
        self._gone_nodes: set[str] = set()
        """Of these, the ones that are no objects any more."""
        self._cordoned_nodes: set[str] = set()
        self._etcd = True

    # --- Events: each returns the jobs that it concerns ---

    def job_changed(self, manifest: Manifest, *, gone: bool = False) -> set[Uid]:
        """A TrainingJob is there, changed, or gone."""
        uid = manifest["metadata"]["uid"]
        if not gone:
            before = self.jobs.get(uid)
            self._named[place_of(manifest)] = uid
            after = self.jobs[uid] = {**manifest, "metadata": without(manifest["metadata"], "managedFields")}
            # A status is what was said here.
            return set() if before is not None and same(before, after, but="status") else {uid}
        self.jobs.pop(uid, None)
        if self._named.get(place_of(manifest)) == uid:
            del self._named[place_of(manifest)]
        known = self._known.pop(uid, None)
        if known is not None and known.objects:
            # They go soon, and until then nobody else can have their names.
            self._known[uid] = _Known(objects=known.objects)
        return {uid}

    def object_changed(self, manifest: Manifest, *, gone: bool = False) -> set[Uid]:
        """An object with the label of a job is there, changed, or gone."""
        uid, job = label(manifest, "uid"), label(manifest, "job")
        if not uid:
            return set()
        metadata = manifest["metadata"]
        namespace, kind = metadata.get("namespace", ""), manifest["kind"]
        known, place, key = self._known[uid], (namespace, job), (kind, namespace, metadata["name"])
        ahead = known.ahead.get(key)
        if not gone and ahead is not None and newer(ahead, manifest):
            return set()
        known.ahead.pop(key, None)
        before = known.objects.pop(key, None)
        known.read.pop(key, None)
        known.pods = None
        if gone:
            self._bury(manifest)
            return {uid} | self._left(uid, place)
        after = known.objects[key] = slim(manifest)
        self._lives[place].add(uid)
        # Controllers count in the statuses of what they control, and that is not kept.
        return set() if before is not None and same(before, after) else {uid}

    def answered(self, manifest: Manifest) -> None:
        """An object is there as the API server says in its answer to a write of ours, before a watch brings it.

        Without it, looks at a busy cluster would make the same pods again and again.
        """
        key = (manifest["kind"], manifest["metadata"].get("namespace", ""), manifest["metadata"]["name"])
        known = self._known[label(manifest, "uid")].objects.get(key)
        gone = manifest["metadata"].get("uid", "") in self._buried
        if not gone and (known is None or newer(manifest, known)):
            self.object_changed(manifest)
            self._known[label(manifest, "uid")].ahead[key] = slim(manifest)

    def _bury(self, manifest: Manifest) -> None:
        """An answer may come after the news that the object is gone again."""
        self._buried[manifest["metadata"].get("uid", "")] = None
        if len(self._buried) > _MOST_BURIED:
            del self._buried[next(iter(self._buried))]

    def _left(self, uid: Uid, place: Place) -> set[Uid]:
        """Who waits for what is left of a job that is gone, of which something has gone now."""
        if uid in self.jobs:
            return set()
        if not self._known[uid].objects:
            del self._known[uid]
            others = self._lives.get(place, set())
            others.discard(uid)
            if not others:
                self._lives.pop(place, None)
        return {self._named[place]} if place in self._named else set()

    def records_replaced(self, records: Mapping[str, bytes]) -> dict[Uid, float]:
        """All that etcd has now, after a gap or after it forgot something: what is not there is gone."""
        there = {(found[0].uid, found[1]) for found in map(JobKeys.parse, records) if found is not None}
        touched: dict[Uid, float] = {}
        wrong = {uid: known.usage.wrong for uid, known in self._known.items()}
        for uid, known in self._known.items():
            known.usage = Usage()
            for record, (attribute, _) in READERS.items():
                if (uid, record) not in there and getattr(known, attribute) is not None:
                    setattr(known, attribute, None)
                    touched[uid] = 0.0
        for key, value in records.items():
            touched |= self.record_changed(key, value, created=True)
        return touched | {uid: 0.0 for uid, before in wrong.items() if self._known[uid].usage.wrong != before}

    def forget_missing(self, kind: str, listed: Iterable[Manifest], *, revision: int, namespace: str = "") -> set[Uid]:
        """What is not in a whole listing of a kind is gone, unless it changed after that listing.

        Args:
            kind: Of which all were listed.
            listed: All of them.
            revision: Resource version of the listing.
            namespace: Of which all were listed; empty: of every one.
        """
        if kind == "TrainingJob":
            uids = {each["metadata"]["uid"] for each in listed}
            here = [job for job in self.jobs.values() if namespace in {"", place_of(job)[0]}]
            gone = [job for job in here if job["metadata"]["uid"] not in uids and revision_of(job) <= revision]
            return {uid for job in gone for uid in self.job_changed(job, gone=True)}
        if kind == "Node":
            nodes = {each["metadata"]["name"] for each in listed}
            gone_nodes = self._nodes_in_use(revision) - nodes
            return {uid for name in gone_nodes for uid in self.node_changed({"metadata": {"name": name}}, gone=True)}
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
            touched |= self.object_changed({"kind": kind, **each}, gone=True)
        return touched

    def _nodes_in_use(self, revision: int) -> set[str]:
        """Where pods are that changed no later than this: who came later may be on a node that is newer, too."""
        return {
            str(each["spec"]["nodeName"])
            for known in self._known.values()
            for each in known.objects.values()
            if (each.get("spec") or {}).get("nodeName") and revision_of(each) <= revision
        }

    def node_changed(self, manifest: Manifest, *, gone: bool = False) -> set[Uid]:
        """A node is there, changed, or gone."""
        name = manifest["metadata"]["name"]
        lost = gone or unreachable(manifest)
        cordoned = not gone and bool((manifest.get("spec") or {}).get("unschedulable"))
        before = (name in self._lost_nodes, name in self._gone_nodes, name in self._cordoned_nodes)
        if (lost, gone, cordoned) == before:
            return set()
        (self._cordoned_nodes.add if cordoned else self._cordoned_nodes.discard)(name)
        (self._lost_nodes.add if lost else self._lost_nodes.discard)(name)
        (self._gone_nodes.add if gone else self._gone_nodes.discard)(name)
        return {
            uid
            for uid, known in self._known.items()
            if any((each.get("spec") or {}).get("nodeName") == name for each in known.objects.values())
        }

    def etcd_changed(self, *, away: bool) -> set[Uid]:
        """Etcd cannot be reached, or answers again."""
        if self._etcd is not away:
            return set()
        self._etcd = not away
        return set(self.jobs)

    def record_changed(self, key: str, value: bytes | None, *, created: bool = False) -> dict[Uid, float]:
        """A key of some job in etcd was written, or removed (None).

        Args:
            key: Any one.
            value: What it has now. None: it is gone.
            created: Whether it was not there before.

        Returns:
            Who is to be looked at, and within how many seconds.
        """
        found = JobKeys.parse(key)
        if found is None or (value is None and found[0].uid not in self._known):
            return {}
        uid, record = found[0].uid, found[1]
        known = self._known[uid]
        before = known.usage.wrong
        if value is None:
            known.usage.removed(record)
        else:
            known.usage.written(record, len(value), created=created)
        due = self._record_read(uid, known, record, value) if record in READERS else {}
        if before != known.usage.wrong:
            due = {uid: 0.0}
        if value is None and uid not in self.jobs and known.empty:
            del self._known[uid]
        return due

    def _record_read(self, uid: Uid, known: _Known, record: str, value: bytes | None) -> dict[Uid, float]:
        """What cannot be read changes nothing of what is known."""
        attribute, _ = READERS[record]
        try:
            now = read(record, value) if value is not None else None
        except RecordError as error:
            known.usage.unread[record] = str(error)
            return {}
        known.usage.unread.pop(record, None)
        before = getattr(known, attribute)
        if now == before:
            return {}  # the election record is written with every commit
        setattr(known, attribute, now)
        if attribute != "published":
            return {uid: 0.0}
        known.heard = datetime.now(UTC)
        if isinstance(now, ReportedState) and (not isinstance(before, ReportedState) or now.moved != before.moved):
            known.moved = known.heard if now.moved else None
        if isinstance(before, ReportedState) and isinstance(now, ReportedState) and now.samples > before.samples:
            known.committed = self._clock()
        return {uid: NEWS_SECONDS if _only_further(before, known.published) else 0.0}

    def forgotten(self, uid: Uid) -> None:
        """A job's records were removed from etcd; the watch may tell it later."""
        known = self._known[uid]
        known.wanted, known.published, known.leader, known.ended = None, None, None, None

    # --- Questions ---

    def observed(self, uid: Uid, *, template: str) -> Observed:
        """What is seen of a job.

        Args:
            uid: The job's.
            template: The hash that trainers' pods of its present template bear.
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
            wanted=known.wanted,
            published=known.published,
            ended=known.ended,
        )

    def pods(self, uid: Uid) -> tuple[PodSummary, ...]:
        """A job's pods, as far as they are of use here."""
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
        """Whether a pod that has a node does not run yet, as one would that waits for its Secret."""
        return any(
            pod.node and not pod.deleting and (pod.pending or (pod.role == "master" and not pod.ready))
            for pod in self.pods(uid)
        )

    def predecessors(self, uid: Uid) -> list[str]:
        """Names of what is left of deleted jobs of the same name."""
        place = place_of(self.jobs[uid])
        others = self._lives.get(place, set()) - {uid}
        return sorted(
            f"{kind} {name}"
            for other in others
            for (kind, namespace, name), each in self._known[other].objects.items()
            # What nobody owns nobody collects: it only bears a label.
            if namespace == place[0] and each["metadata"].get("ownerReferences")
        )

    def facts(self, uid: Uid, *, why: str = "") -> Facts:
        """What a status says beside."""
        known = self._known[uid]
        pods = self.pods(uid)
        account = known.ended.account if known.ended is not None else None
        return Facts(
            etcd=self._etcd,
            placed=frozenset(pod.name for pod in pods if pod.node),
            ready=frozenset(pod.name for pod in pods if pod.ready),
            generation=known.leader.generation if known.leader is not None else None,
            heard=known.heard,
            moved=known.moved,
            account=Account.model_validate(account) if account is not None else None,
            why=why,
        )

    def committed(self, uid: Uid) -> float | None:
        """When samples of a job were last seen to be committed, by our own clock; None: not since this process began."""
        return self._known[uid].committed

    def complaints(self, uid: Uid) -> Mapping[str, str]:
        """What is wrong with a job's keys in etcd: what it is -> in words, with the fix."""
        return self._known[uid].usage.complaints()

    def troubles(self, uid: Uid) -> list[PodProblem]:
        """What is wrong with a job's pods and its claims."""
        job = self.jobs.get(uid)
        claims = [
            PodProblem("pserver", name, NO_CLASS, _NO_CLASS_WORDS)
            for (kind, namespace, name), each in self._known[uid].objects.items()
            if kind == "PersistentVolumeClaim" and each["classless"] and job and namespace == place_of(job)[0]
        ]
        return [*claims, *(each for pod in self.pods(uid) for each in pod.troubles)]

    def ends(self, uid: Uid) -> list[ContainerEnd]:
        """How lives of a job's containers ended."""
        wanted = self._known[uid].wanted or DesiredState()
        return [replace(end, asked=end.asked or _asked(pod, wanted)) for pod in self.pods(uid) for end in pod.ends]

    # --- Parts ---

    def _applied(self, uid: Uid) -> dict[tuple[str, str], tuple[str, str]]:
        """Of each object of the job, the hash of what it was made from, and the record of fields that are ours."""
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
        """What a job's Deployment says of the token that its processes were made with."""
        for (kind, _, _), each in self._known[uid].objects.items():
            if kind == "Deployment" and controlled(each, "TrainingJob", uid=uid):
                return str((each["metadata"].get("annotations") or {}).get(TOKEN_VERSION, ""))
        return ""

    def _others(self, uid: Uid, role: str) -> tuple[ServerPod, ...]:
        found = [
            ServerPod(
                name=pod.name,
                uid=pod.uid,
                lost=self._lost(pod),
                deleting=pod.deleting,
                gone=pod.node in self._gone_nodes,
            )
            for pod in self.pods(uid)
            if pod.role == role
        ]
        return tuple(sorted(found, key=lambda each: each.name))

    def _lost(self, pod: PodSummary) -> bool:
        return pod.node in self._lost_nodes and not pod.ended


def _only_further(before: ReportedState | None, after: ReportedState | None) -> bool:
    """Whether a master only counts on: all that a person or the reconciler waits for is as before."""
    if before is None or after is None or bool(before.moved) != bool(after.moved):
        return False
    same = {"samples": 0, "rate": 0.0, "moved": 0.0, "epoch": 0}
    return msgspec.structs.replace(before, **same) == msgspec.structs.replace(after, **same)


def _asked(pod: PodSummary, wanted: DesiredState) -> bool:
    """Whether a pod's process was asked to end."""
    return pod.deleting or (pod.role == "trainer" and wanted.leaves(pod.index))
