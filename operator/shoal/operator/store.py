"""What is known of the cluster and of etcd, by job: filled by watches, asked by the reconciler. No I/O.

Every event says which jobs it concerns; whoever feeds events marks these dirty. Events may come late, twice, or (after a
watch began anew) without the deletions that were missed: ``replace_all`` takes a whole listing for that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from shoal.api.status import Account
from shoal.operator.pods import GROUP
from shoal.operator.reconcile import Ended, Observed, ServerPod
from shoal.operator.status import Facts, Trouble
from shoal.operator.trainers import TrainerPod
from shoal.operator.troubles import troubles_of
from shoal.store import JobKeys, Published, Wanted

__all__ = ["APPLIED", "ClusterStore"]

APPLIED: Final = f"{GROUP}/applied"
"""The annotation with the hash of the manifest that an object was last made from."""
_WATCHED: Final = ("Deployment", "StatefulSet", "Service", "ServiceAccount", "ConfigMap", "PodDisruptionBudget")

Uid = str
Manifest = Mapping[str, Any]


class _Leader(msgspec.Struct, frozen=True):
    """The part of a master's election record that is of interest here."""

    generation: int


@dataclass
class _Known:
    """All that is known of one job but its manifest."""

    pods: dict[str, Manifest] = field(default_factory=dict)
    applied: dict[tuple[str, str], str] = field(default_factory=dict)
    secrets: set[str] = field(default_factory=set)
    wanted: Wanted | None = None
    published: Published | None = None
    heard: datetime | None = None
    leader: _Leader | None = None
    ended: Ended | None = None


class ClusterStore:
    """What is known, by the job's uid."""

    def __init__(self) -> None:
        self.jobs: dict[Uid, Manifest] = {}
        """TrainingJobs as the API server has them."""
        self._known: dict[Uid, _Known] = defaultdict(_Known)
        self._lost_nodes: set[str] = set()

    # --- Events: each returns the jobs that it concerns ---

    def job_changed(self, manifest: Manifest, *, gone: bool = False) -> set[Uid]:
        """A TrainingJob is there, changed, or gone."""
        uid = manifest["metadata"]["uid"]
        if gone:
            self.jobs.pop(uid, None)
            self._known.pop(uid, None)
        else:
            self.jobs[uid] = manifest
        return {uid}

    def object_changed(self, manifest: Manifest, *, gone: bool = False) -> set[Uid]:
        """An object with the label of a job is there, changed, or gone."""
        uid = _label(manifest, "uid")
        if not uid:
            return set()
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        known = self._known[uid]
        if kind == "Pod":
            _put(known.pods, name, None if gone else manifest)
        elif kind == "Secret":
            (known.secrets.discard if gone else known.secrets.add)(name)
        elif kind in _WATCHED:
            applied = (manifest["metadata"].get("annotations") or {}).get(APPLIED, "")
            _put(known.applied, (kind, name), None if gone else applied)
        return {uid}

    def replace_all(self, kind: str, manifests: Iterable[Manifest]) -> set[Uid]:
        """A whole listing of one kind: what is not in it is gone."""
        touched: set[Uid] = set()
        for uid, known in self._known.items():
            before = (bool(known.pods), bool(known.secrets), len(known.applied))
            if kind == "Pod":
                known.pods.clear()
            elif kind == "Secret":
                known.secrets.clear()
            else:
                known.applied = {key: value for key, value in known.applied.items() if key[0] != kind}
            if before != (bool(known.pods), bool(known.secrets), len(known.applied)):
                touched.add(uid)
        for manifest in manifests:
            touched |= self.object_changed({"kind": kind, **manifest})
        return touched

    def node_changed(self, manifest: Manifest, *, gone: bool = False) -> set[Uid]:
        """A node is there, changed, or gone."""
        name = manifest["metadata"]["name"]
        lost = gone or _unreachable(manifest)
        if lost == (name in self._lost_nodes):
            return set()
        (self._lost_nodes.add if lost else self._lost_nodes.discard)(name)
        return {
            uid
            for uid, known in self._known.items()
            if any((pod.get("spec") or {}).get("nodeName") == name for pod in known.pods.values())
        }

    def record_changed(self, key: str, value: bytes | None) -> set[Uid]:
        """A key of some job in etcd was written, or removed (None)."""
        found = JobKeys.parse(key)
        if found is None:
            return set()
        keys, record = found
        readers: dict[str, tuple[str, Any]] = {
            "wanted": ("wanted", Wanted),
            "progress": ("published", Published),
            "outcome": ("ended", Ended),
            "master": ("leader", _Leader),
        }
        if record not in readers:
            return set()
        attribute, kind = readers[record]
        try:
            read = msgspec.json.decode(value, type=kind) if value is not None else None
        except msgspec.MsgspecError:
            return set()  # of another version of Shoal: what is known stays
        known = self._known[keys.uid]
        if attribute == "published" and read != known.published:
            known.heard = datetime.now(UTC)
        if attribute == "leader" and read == known.leader:
            return set()  # it is written with every commit
        setattr(known, attribute, read)
        return {keys.uid}

    # --- Questions ---

    def observed(self, uid: Uid, *, template: str) -> Observed:
        """What is seen of a job.

        Args:
            uid: The job's.
            template: The hash that trainers' pods of its present template bear.
        """
        known = self._known[uid]
        here = set(known.published.trainers) if known.published is not None else set()
        trainers = [
            self._trainer(pod, here, template) for pod in known.pods.values() if _label(pod, "role") == "trainer"
        ]
        finished = known.ended is not None and known.ended.state == "Complete"
        succeeded = any(_phase(pod) == "Succeeded" for pod in known.pods.values() if _label(pod, "role") == "trainer")
        return Observed(
            applied=dict(known.applied),
            secrets=frozenset(known.secrets),
            trainers=tuple(sorted(trainers, key=lambda pod: pod.index)),
            saved=finished and succeeded,
            servers=self._others(known, "pserver"),
            masters=self._others(known, "master"),
            wanted=known.wanted,
            published=known.published,
            ended=known.ended,
        )

    def pods(self, uid: Uid) -> list[Manifest]:
        """A job's pods as the API server has them."""
        return list(self._known[uid].pods.values())

    def facts(self, uid: Uid, *, why: str = "") -> Facts:
        """What a status says beside."""
        known = self._known[uid]
        pods = known.pods.items()
        samples = known.ended.account if known.ended is not None else None
        return Facts(
            placed=frozenset(name for name, pod in pods if (pod.get("spec") or {}).get("nodeName")),
            ready=frozenset(name for name, pod in pods if _ready(pod)),
            generation=known.leader.generation if known.leader is not None else None,
            heard=known.heard,
            account=Account.model_validate({**samples, **samples["samples"]}) if samples is not None else None,
            why=why,
        )

    def troubles(self, uid: Uid) -> list[Trouble]:
        """What is wrong with a job's pods."""
        return [each for pod in self._known[uid].pods.values() for each in troubles_of(pod)]

    def orphans(self) -> set[Uid]:
        """Uids that something is known of, and no job."""
        return set(self._known) - set(self.jobs)

    # --- Parts ---

    def _trainer(self, pod: Manifest, here: set[int], template: str) -> TrainerPod:
        index = int(_label(pod, "index"))
        ended = _phase(pod) in {"Succeeded", "Failed"}
        return TrainerPod(
            index=index,
            uid=pod["metadata"]["uid"],
            ended=ended,
            deleting=_deleting(pod),
            lost=self._lost(pod),
            ready=_ready(pod),
            current=_label(pod, "template") == template,
            works=index in here and not ended,
        )

    def _others(self, known: _Known, role: str) -> tuple[ServerPod, ...]:
        return tuple(
            ServerPod(name=name, uid=pod["metadata"]["uid"], lost=self._lost(pod), deleting=_deleting(pod))
            for name, pod in sorted(known.pods.items())
            if _label(pod, "role") == role
        )

    def _lost(self, pod: Manifest) -> bool:
        node = (pod.get("spec") or {}).get("nodeName")
        return node in self._lost_nodes and _phase(pod) not in {"Succeeded", "Failed"}


def _put(mapping: dict[Any, Any], key: Any, value: Any) -> None:
    if value is None:
        mapping.pop(key, None)
    else:
        mapping[key] = value


def _label(manifest: Manifest, name: str) -> str:
    return str((manifest["metadata"].get("labels") or {}).get(f"{GROUP}/{name}", ""))


def _phase(pod: Manifest) -> str:
    return str((pod.get("status") or {}).get("phase", ""))


def _deleting(pod: Manifest) -> bool:
    return pod["metadata"].get("deletionTimestamp") is not None


def _condition(manifest: Manifest, kind: str) -> Manifest:
    conditions: list[Manifest] = (manifest.get("status") or {}).get("conditions") or []
    return next((each for each in conditions if each.get("type") == kind), {})


def _ready(pod: Manifest) -> bool:
    return _condition(pod, "Ready").get("status") == "True"


def _unreachable(node: Manifest) -> bool:
    """Whether nothing is heard of a node any more (its kubelet says NotReady itself when something else is wrong)."""
    taints = (node.get("spec") or {}).get("taints") or []
    tainted = any(each.get("key") == "node.kubernetes.io/unreachable" for each in taints)
    return tainted or _condition(node, "Ready").get("status") == "Unknown"
