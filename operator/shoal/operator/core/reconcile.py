"""What is to be done for one job, from what it wants and what is seen. Pure, and without memory.

``reconcile`` looks at the level of things and names the next actions; it is called again whenever something changed, and
it does not matter how many of its actions were carried out in between. In the end it has nothing more to say.

A job's end: the master's word that all samples are in the model. The trainers end by themselves then, one of them after it
wrote the model, for which servers and master are still needed. Ended pods stay, with their logs, until the job goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from shoal.api import TrainingJob
from shoal.operator.core.scaling import CreateTrainer, DeleteTrainer, ScalingDecision, TrainerPod, decide, too_low
from shoal.operator.resources import workloads
from shoal.operator.resources.manifests import HashedManifest, JobManifests
from shoal.operator.resources.node_affinity import with_preferred_nodes
from shoal.operator.resources.pods import JobIdentity, names, trainer_pods
from shoal.store import DesiredState, ReportedState

__all__ = [
    "Action",
    "Apply",
    "CreatePod",
    "DeletePod",
    "Ended",
    "ForgetRecords",
    "MakeSecrets",
    "Observed",
    "PublishDesired",
    "Remove",
    "ServerPod",
    "StopPod",
    "in_pods",
    "reconcile",
]


class Ended(msgspec.Struct, frozen=True):
    """The master's last word on the job: Complete or Failed, and the account of every sample."""

    state: str
    reason: str = ""
    account: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class ServerPod:
    """A parameter server's or the master's pod as it was last seen.

    Attributes:
        name: Its name.
        uid: Its uid.
        lost: Its node is gone, or has not answered for too long.
        deleting: It is being deleted.
        gone: There is no such node any more.
    """

    name: str
    uid: str
    lost: bool = False
    deleting: bool = False
    gone: bool = False

    @property
    def ghost(self) -> bool:
        """Whether no kubelet will end it, although it has to end.

        A node that is silent may come back, and with it what a server keeps there. So the pod stays until the cluster
        evicts it (after ``tolerationSeconds`` of its toleration of unreachable nodes), or its node is gone for good.
        """
        return self.lost and (self.deleting or self.gone)


@dataclass(frozen=True, kw_only=True)
class PlannedNodes:
    """Where a plan has a job's pods.

    Attributes:
        stays: Node -> how many trainers stay there, as with `decide`.
        comes: Node -> how many new trainers have room there now and would do best there.
        servers: Nodes where its parameter servers would, when they are first made.
        master: The same for its master.
        servers_wait: They are not made yet: their room is not free.
        later: How many trainers more the job shall have when others have left.
    """

    stays: Mapping[str, int] | None = None
    comes: Mapping[str, int] = field(default_factory=dict)
    servers: tuple[str, ...] = ()
    master: tuple[str, ...] = ()
    servers_wait: bool = False
    later: int = 0


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What is on the cluster and in etcd, as far as it concerns one job.

    Attributes:
        applied: (kind, name) of each object of the job, and the hash of the manifest it was last made from.
        fields: (kind, name) of these, and the API server's record of the fields that are ours, as of `fields_of`.
        secrets: Its Secrets, and its user in etcd, were made sure of lately enough.
        trainers: Pods of trainers, in any state; at most one per index.
        saved: Some trainer's script has come to its good end.
        servers: Pods of parameter servers.
        masters: Pods of the master.
        preferred: Kind of a controller -> names of the nodes that its pods were to prefer when it was first made.
        token: Version of the token that its processes were made with; empty: none was made.
        wanted: What stands in etcd; None: nothing.
        published: The master's last word on the progress.
        ended: The job's end, if there is one.
        lost: The model went with its servers' pods, and the job is to begin again.
    """

    applied: Mapping[tuple[str, str], str] = field(default_factory=dict)
    fields: Mapping[tuple[str, str], str] = field(default_factory=dict)
    secrets: bool = False
    trainers: tuple[TrainerPod, ...] = ()
    saved: bool = False
    servers: tuple[ServerPod, ...] = ()
    masters: tuple[ServerPod, ...] = ()
    preferred: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    token: str = ""
    wanted: DesiredState | None = None
    published: ReportedState | None = None
    ended: Ended | None = None
    lost: bool = False


@dataclass(frozen=True)
class MakeSecrets:
    """See that the job's Secrets and its user in etcd are there."""


@dataclass(frozen=True)
class Apply:
    """Server-side apply.

    Attributes:
        manifest: The object.
        repair: It is as it was applied before; another client has changed a field of it.
    """

    manifest: dict[str, Any]
    repair: bool = False


@dataclass(frozen=True)
class Remove:
    """Delete an object of the job that is not wanted any more; that it is gone is no error."""

    kind: str
    name: str


@dataclass(frozen=True)
class CreatePod:
    """Create a trainer's pod; that it exists already is no error."""

    manifest: dict[str, Any]


@dataclass(frozen=True)
class DeletePod:
    """Delete the pod of this uid; that it is gone is no error."""

    name: str
    uid: str
    force: bool = False


@dataclass(frozen=True)
class ForgetRecords:
    """Remove all records of the job from etcd: a master that comes then begins the job anew."""


@dataclass(frozen=True)
class StopPod:
    """Have the kubelet end a pod's containers; the pod stays, with its logs. That it is gone is no error."""

    name: str
    uid: str


@dataclass(frozen=True)
class PublishDesired:
    """Write the record for the master."""

    wanted: DesiredState


Action = ForgetRecords | MakeSecrets | Apply | Remove | CreatePod | DeletePod | StopPod | PublishDesired


_BUDGET: Final = "PodDisruptionBudget"


def in_pods(job: TrainingJob) -> bool:
    """Whether the snapshots go with the servers' pods."""
    server = job.spec.parameter_server
    return server is not None and server.claim is None


def reconcile(
    job: TrainingJob,
    identity: JobIdentity,
    seen: Observed,
    *,
    trainers: int,
    overdue: Collection[int] = (),
    resting: Collection[int] = (),
    places: PlannedNodes | None = None,
    waits: bool = False,
    rendered: JobManifests | None = None,
) -> list[Action]:
    """The next actions for a job that was accepted and is not being deleted.

    Args:
        job: As it is now.
        identity: Of the job on this cluster.
        seen: As far as it is known.
        trainers: How many are wanted, within the job's bounds, or as many of these as can be there now.
        overdue: Indices of trainers that were told to leave too long ago.
        resting: Indices of trainers whose next pod is not due yet.
        places: Where the plan has them; None: there is none.
        waits: The job waits in line. It has nothing meanwhile, but for servers whose snapshots would go with their pods,
            and the master.
        rendered: The job's manifests, where they were made before.
    """
    round_ = _Round(rendered or JobManifests(job, identity), seen, places or PlannedNodes(), overdue, resting)
    return round_.actions(0 if waits else trainers, waits=waits)


class _Round:
    """One look at one job."""

    def __init__(
        self,
        rendered: JobManifests,
        seen: Observed,
        places: PlannedNodes,
        overdue: Collection[int],
        resting: Collection[int],
    ) -> None:
        self._rendered = rendered
        self._overdue = overdue
        self._resting = resting
        job, identity = rendered.job, rendered.identity
        self._places = places
        self._job = job
        self._identity = identity
        self._seen = seen
        self._names = names(job)

    def actions(self, trainers: int, *, waits: bool) -> list[Action]:
        seen = self._seen
        # A ghost does no harm: its grants, or its master's election, are of before.
        lost = [DeletePod(pod.name, pod.uid, force=True) for pod in (*seen.servers, *seen.masters) if pod.ghost]
        failed = seen.ended is not None and seen.ended.state != "Complete"
        pauses = seen.ended is None and (waits or self._job.spec.suspend)
        if pauses and not (seen.applied or seen.trainers or seen.servers or seen.masters):
            return []
        if failed or (pauses and not in_pods(self._job)):
            return [*lost, *self._stopped(self._none(), suspend=not failed)]
        if pauses:
            trainers = 0
        if seen.ended is not None:
            return [*lost, *self._complete()]
        return [*lost, *self._whole(self._decided(trainers, self._trainers(trainers), stays=self._places.stays))]

    # --- Stages of a job ---

    def _decided(
        self, trainers: int, pods: Sequence[TrainerPod], *, stays: Mapping[str, int] | None = None
    ) -> ScalingDecision:
        # A pod that waits for its successor is of no use where none is wanted.
        resting = self._resting if trainers else ()
        return decide(trainers, pods, self._drain(), overdue=self._overdue, resting=resting, stays=stays)

    def _complete(self) -> Iterable[Action]:
        """Everybody ends by himself; if nobody is left and no model was written, one more trainer does it.

        It comes when the job is no longer suspended; until then the snapshots stay, wherever they lie.
        """
        alive = [pod for pod in self._seen.trainers if not (pod.ended or pod.lost)]
        if self._seen.saved and not alive:
            return [*self._lost_trainers(), *self._lingering(), *self._shrunk(servers=0, masters=0)]
        if alive:
            return [*self._running(), *self._lost_trainers()]
        if self._job.spec.suspend:
            none = self._decided(0, self._seen.trainers)
            return self._whole(none) if in_pods(self._job) else self._stopped(none, suspend=True)
        return self._whole(self._decided(1, self._seen.trainers))

    def _stopped(self, decision: ScalingDecision, *, suspend: bool) -> Iterable[Action]:
        """Trainers leave first, then the servers write their snapshots, then the master goes."""
        yield from self._carried_out(decision, suspend=suspend)
        if any(not pod.ended for pod in self._seen.trainers):
            return
        yield from self._shrunk(servers=0, masters=0 if not self._seen.servers else 1)

    def _none(self) -> ScalingDecision:
        """No trainer is wanted; pods that ended stay with their logs when the job has failed."""
        decision = self._decided(0, self._seen.trainers)
        if self._seen.ended is None:
            return decision
        ended = {pod.uid for pod in self._seen.trainers if pod.ended and not pod.lingers}
        kept = tuple(each for each in decision.actions if isinstance(each, CreateTrainer) or each.uid not in ended)
        return ScalingDecision(decision.drain, kept, decision.tell)

    # --- Parts ---

    def _whole(self, decision: ScalingDecision) -> list[Action]:
        """All of a job at work. Trainers come last: a quota that has no room for all of them stops nothing else."""
        made = [] if self._seen.secrets else [MakeSecrets()]
        standing = [each for each in self._rendered.standing if each.key[0] != _BUDGET]
        trainers = self._carried_out(decision, suspend=False)
        return [*made, *self._changed(standing), *self._running(), *trainers, *self._budgets()]

    def _budgets(self) -> Iterable[Action]:
        """Last, as a job runs without them; and when there are pods, as a budget's controller counts each that comes."""
        wanted = [each for each in self._rendered.standing if each.key[0] == _BUDGET]
        if self._seen.trainers:
            yield from self._changed(wanted)
        keys = {each.key for each in wanted}
        yield from (Remove(*key) for key in sorted(self._seen.applied) if key[0] == _BUDGET and key not in keys)

    def _running(self) -> Iterable[Action]:
        return self._scaled(servers=self._job.servers, masters=1)

    def _scaled(self, *, servers: int, masters: int) -> Iterable[Apply]:
        made = [self._rendered.master(masters, self._preferred("Deployment", "master", self._places.master))]
        if not self._places.servers_wait or ("StatefulSet", self._names["pserver"]) in self._seen.applied:
            nodes = self._preferred("StatefulSet", "pserver", self._places.servers)
            made.insert(0, self._rendered.servers(servers, nodes))
        return self._changed(made)

    def _preferred(self, kind: str, role: str, planned: tuple[str, ...]) -> tuple[str, ...]:
        """The nodes that a controller's pods are to prefer: those of now when it is first made, and then for ever."""
        there = (kind, self._names[role]) in self._seen.applied
        return self._seen.preferred.get(kind, ()) if there else planned

    def _shrunk(self, *, servers: int, masters: int) -> Iterable[Action]:
        """The same for what is there already: a job that begins suspended makes nothing."""
        for action in self._scaled(servers=servers, masters=masters):
            if (action.manifest["kind"], action.manifest["metadata"]["name"]) in self._seen.applied:
                yield action

    def _changed(self, manifests: Iterable[HashedManifest]) -> Iterable[Apply]:
        for manifest in manifests:
            if self._seen.applied.get(manifest.key) != manifest.hash:
                yield Apply(manifest.content)
            elif manifest.key in self._seen.fields and not manifest.held(self._seen.fields[manifest.key]):
                yield Apply(manifest.content, repair=True)

    def _lingering(self) -> Iterable[Action]:
        """Pods whose other containers run on: they would hold their room for ever."""
        return [self._deletion(DeleteTrainer(pod.index, pod.uid)) for pod in self._seen.trainers if pod.lingers]

    def _lost_trainers(self) -> Iterable[Action]:
        return [
            self._deletion(DeleteTrainer(pod.index, pod.uid, force=True)) for pod in self._seen.trainers if pod.lost
        ]

    def _carried_out(self, decision: ScalingDecision, *, suspend: bool) -> Iterable[Action]:
        wanted = DesiredState(drain=list(decision.drain), suspend=suspend)
        if wanted != (self._seen.wanted or DesiredState()):
            yield PublishDesired(wanted)
        told_to_leave = self._seen.wanted is not None and self._seen.wanted.suspend
        failing = {pod.uid for pod in self._seen.trainers if pod.failing and not (pod.ended or pod.lost)}
        over = self._seen.ended is not None
        for action in decision.actions:
            if isinstance(action, DeleteTrainer):
                stops = over and action.uid in failing
                named = f"{self._names['trainer']}-{action.index}"
                yield StopPod(named, action.uid) if stops else self._deletion(action)
        if told_to_leave:  # who comes before the master knows better would be sent away
            return
        indices = [action.index for action in decision.actions if isinstance(action, CreateTrainer)]
        if not self._has_the_fewest():
            # A quota may have room for some pods only: those come first without which the job cannot work.
            alive = sum(not (pod.ended or pod.deleting or pod.lost) for pod in self._seen.trainers)
            indices = indices[: max(0, self._job.spec.trainer.min_replicas - alive)]
        owner = workloads.owner(self._job, self._identity)
        # Who is nowhere yet will be where he was wanted.
        coming = Counter(pod.wish for pod in self._seen.trainers if not (pod.node or pod.ended or pod.deleting))
        nodes = (Counter(self._places.comes) - coming).elements()
        for pod in trainer_pods(self._job, self._identity, indices):
            made = pod | {"metadata": pod["metadata"] | {"ownerReferences": [owner]}}
            node = next(nodes, None)
            yield CreatePod(with_preferred_nodes(made, [node]) if node is not None else made)

    def _has_the_fewest(self) -> bool:
        """Whether all pods exist that the job cannot work without."""
        seen = self._seen
        servers = sum(not (pod.deleting or pod.lost) for pod in seen.servers)
        trainers = sum(not (pod.ended or pod.deleting or pod.lost) for pod in seen.trainers)
        fewest = self._job.spec.trainer.min_replicas
        return bool(seen.masters) and servers >= self._job.servers and trainers >= fewest

    def _deletion(self, action: DeleteTrainer) -> DeletePod:
        return DeletePod(f"{self._names['trainer']}-{action.index}", action.uid, action.force)

    def _trainers(self, wanted: int) -> list[TrainerPod]:
        """As they are seen; those of the surplus that should be among the fewest are of an older template.

        A pod's priority cannot change. One that has a higher one than it needs keeps it.
        """
        if self._identity.classes is None:
            return list(self._seen.trainers)
        # Who has no room yet comes nevertheless, and to the lowest index that is free.
        wanted += self._places.later
        low = too_low(
            self._seen.trainers,
            fewest=min(self._job.spec.trainer.min_replicas, wanted),
            wanted=wanted,
            drain=self._drain(),
            surplus=self._identity.classes[2],
        )
        return [replace(pod, current=False) if pod.uid in low else pod for pod in self._seen.trainers]

    def _drain(self) -> list[int]:
        return self._seen.wanted.drain if self._seen.wanted is not None else []
