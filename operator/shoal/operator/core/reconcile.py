"""The reconciliation of one job: the next actions, from its spec and its observed state. Pure, and without memory.

``reconcile`` is level-triggered: it compares the desired with the observed state and returns the next actions. It is called
again whenever something changed, however many of its actions were carried out in between. When both states are equal it
returns no actions.

A job is complete when the master reports that all samples are in the model. The trainers then exit; one of them writes the
model first, for which it needs the servers and the master. Ended pods stay, with their logs, until the job is deleted.
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
    """The end of a job as the master wrote it: state Complete or Failed, the reason, and the account of all samples."""

    state: str
    reason: str = ""
    account: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class ServerPod:
    """The last observed state of a parameter server's or a master's pod.

    Attributes:
        name: Name of the pod.
        uid: UID of the pod.
        lost: Its node is deleted or unreachable.
        deleting: It is being deleted.
        node_deleted: Its node is deleted.
    """

    name: str
    uid: str
    lost: bool = False
    deleting: bool = False
    node_deleted: bool = False

    @property
    def orphaned(self) -> bool:
        """Whether the pod has to be deleted by force, because no kubelet will end it.

        An unreachable node may return, with the data that a server keeps there. So the pod stays until the cluster evicts it
        (after ``tolerationSeconds`` of its toleration of unreachable nodes) or its node is deleted.
        """
        return self.lost and (self.deleting or self.node_deleted)


@dataclass(frozen=True, kw_only=True)
class PlannedNodes:
    """The nodes that a plan assigns to a job's pods.

    Attributes:
        kept: Node -> how many trainers stay there, as in `decide`.
        added: Node -> how many new trainers fit there now; it is their preferred node.
        servers: Preferred nodes of the parameter servers when they are first created.
        master: Preferred nodes of the master when it is first created.
        servers_wait: The parameter servers are not created yet, because there is no room for them.
        later: How many more trainers the job will have when victims have left.
    """

    kept: Mapping[str, int] | None = None
    added: Mapping[str, int] = field(default_factory=dict)
    servers: tuple[str, ...] = ()
    master: tuple[str, ...] = ()
    servers_wait: bool = False
    later: int = 0


@dataclass(frozen=True, kw_only=True)
class Observed:
    """The observed state of one job, on the cluster and in etcd.

    Attributes:
        applied: (kind, name) of each object of the job -> hash of the manifest that was last applied.
        fields: (kind, name) of these objects -> the API server's record of Shoal's fields, as of `fields_of`.
        secrets: Its Secrets and its user in etcd were ensured recently enough.
        trainers: Pods of trainers, in any state; at most one per index.
        saved: The script of some trainer exited with code 0 after the job was complete.
        servers: Pods of parameter servers.
        masters: Pods of the master.
        preferred: Kind of a controller -> names of the nodes that its pods preferred when it was first created.
        token: Version of the token that its processes were created with; empty: there are none.
        desired: The desired state in etcd; None: there is none.
        published: The state that the master reported last.
        ended: The end of the job; None: it has not ended.
        lost: The model was lost with the servers' pods, and the job has to be restarted from the beginning.
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
    desired: DesiredState | None = None
    published: ReportedState | None = None
    ended: Ended | None = None
    lost: bool = False


@dataclass(frozen=True)
class MakeSecrets:
    """Ensure that the job's Secrets and its user in etcd exist."""


@dataclass(frozen=True)
class Apply:
    """Apply an object by server-side apply.

    Attributes:
        manifest: The object.
        repair: The manifest is the one that was applied last; another client has changed one of its fields.
    """

    manifest: dict[str, Any]
    repair: bool = False


@dataclass(frozen=True)
class Remove:
    """Delete an object of the job that is no longer wanted; a missing object is no error."""

    kind: str
    name: str


@dataclass(frozen=True)
class CreatePod:
    """Create a trainer's pod; an existing pod is no error."""

    manifest: dict[str, Any]


@dataclass(frozen=True)
class DeletePod:
    """Delete the pod with this UID; a missing pod is no error."""

    name: str
    uid: str
    force: bool = False


@dataclass(frozen=True)
class ForgetRecords:
    """Remove the job's records from etcd.

    Attributes:
        outcome_only: Whether only the outcome is removed, so that the next master resumes the job. Otherwise the next master
            starts the job from the beginning.
    """

    outcome_only: bool = False


@dataclass(frozen=True)
class StopPod:
    """Have the kubelet terminate a pod's containers; the pod stays, with its logs. A missing pod is no error."""

    name: str
    uid: str


@dataclass(frozen=True)
class PublishDesired:
    """Write the desired state to etcd, for the master."""

    desired: DesiredState


Action = ForgetRecords | MakeSecrets | Apply | Remove | CreatePod | DeletePod | StopPod | PublishDesired


_BUDGET: Final = "PodDisruptionBudget"


def in_pods(job: TrainingJob) -> bool:
    """Return whether the snapshots are lost with the servers' pods, as the servers have no claims."""
    server = job.spec.parameter_server
    return server is not None and server.claim is None


def reconcile(
    job: TrainingJob,
    identity: JobIdentity,
    seen: Observed,
    *,
    trainers: int,
    overdue: Collection[int] = (),
    backing_off: Collection[int] = (),
    places: PlannedNodes | None = None,
    waits: bool = False,
    rendered: JobManifests | None = None,
) -> list[Action]:
    """Return the next actions for a job that was accepted and is not being deleted.

    Args:
        job: The job in force.
        identity: The job's identity on this cluster.
        seen: The observed state.
        trainers: How many trainers are wanted, within the job's bounds, or as many of these as have room now.
        overdue: Indices of trainers that have been in the drain list for too long.
        backing_off: Indices whose next pod is in back-off.
        places: The nodes that the plan assigns. None: there is no plan.
        waits: Whether the job is queued. A queued job has no pods, unless its snapshots would be lost with the servers' pods:
            then servers and master stay.
        rendered: The job's manifests, if they were built before. Default: they are built here.
    """
    reconciliation = _Reconciliation(
        rendered or JobManifests(job, identity), seen, places or PlannedNodes(), overdue, backing_off
    )
    return reconciliation.actions(0 if waits else trainers, waits=waits)


class _Reconciliation:
    """One call of `reconcile`."""

    def __init__(
        self,
        rendered: JobManifests,
        seen: Observed,
        places: PlannedNodes,
        overdue: Collection[int],
        backing_off: Collection[int],
    ) -> None:
        self._rendered = rendered
        self._overdue = overdue
        self._backing_off = backing_off
        job, identity = rendered.job, rendered.identity
        self._places = places
        self._job = job
        self._identity = identity
        self._seen = seen
        self._names = names(job)

    def actions(self, trainers: int, *, waits: bool) -> list[Action]:
        seen = self._seen
        # A pod on a lost node does no harm: its grants, or its master's generation, are fenced.
        lost = [DeletePod(pod.name, pod.uid, force=True) for pod in (*seen.servers, *seen.masters) if pod.orphaned]
        failed = seen.ended is not None and seen.ended.state != "Complete"
        pauses = seen.ended is None and (waits or self._job.spec.suspend)
        if pauses and not (seen.applied or seen.trainers or seen.servers or seen.masters):
            return []
        if failed or (pauses and not in_pods(self._job)):
            return [*lost, *self._stopped(self._no_trainers(), suspend=not failed)]
        if pauses:
            trainers = 0
        if seen.ended is not None:
            return [*lost, *self._complete()]
        return [*lost, *self._all_parts(self._scaling(trainers, self._trainers(trainers), kept=self._places.kept))]

    # --- Stages of a job ---

    def _scaling(
        self, trainers: int, pods: Sequence[TrainerPod], *, kept: Mapping[str, int] | None = None
    ) -> ScalingDecision:
        # The back-off of a pod's successor does not matter where no trainer is wanted.
        backing_off = self._backing_off if trainers else ()
        return decide(trainers, pods, self._drain(), overdue=self._overdue, backing_off=backing_off, kept=kept)

    def _complete(self) -> Iterable[Action]:
        """Wait until all trainers have exited; if none is left and no model was written, one more trainer writes it.

        A suspended job gets that trainer when it is resumed; until then the snapshots stay, in claims or in the servers' pods.
        """
        alive = [pod for pod in self._seen.trainers if not (pod.ended or pod.lost)]
        if self._seen.saved and not alive:
            return [*self._lost_trainers(), *self._lingering_trainers(), *self._scaled_down(servers=0, masters=0)]
        if alive:
            return [*self._running(), *self._lost_trainers()]
        if self._job.spec.suspend:
            none = self._scaling(0, self._seen.trainers)
            return self._all_parts(none) if in_pods(self._job) else self._stopped(none, suspend=True)
        return self._all_parts(self._scaling(1, self._seen.trainers))

    def _stopped(self, decision: ScalingDecision, *, suspend: bool) -> Iterable[Action]:
        """Stop a job: first trainers leave, then servers write their snapshots and exit, then the master is scaled to 0."""
        yield from self._scaling_actions(decision, suspend=suspend)
        if any(not pod.ended for pod in self._seen.trainers):
            return
        yield from self._scaled_down(servers=0, masters=0 if not self._seen.servers else 1)

    def _no_trainers(self) -> ScalingDecision:
        """Decide for no trainers; of a failed job, ended pods stay with their logs."""
        decision = self._scaling(0, self._seen.trainers)
        if self._seen.ended is None:
            return decision
        ended = {pod.uid for pod in self._seen.trainers if pod.ended and not pod.lingers}
        kept = tuple(each for each in decision.actions if isinstance(each, CreateTrainer) or each.uid not in ended)
        return ScalingDecision(decision.drain, kept, decision.publish)

    # --- Groups of actions ---

    def _all_parts(self, decision: ScalingDecision) -> list[Action]:
        """Return the actions of a running job. Trainers come last: a quota without room for all of them blocks nothing else."""
        made = [] if self._seen.secrets else [MakeSecrets()]
        permanent = [each for each in self._rendered.permanent if each.key[0] != _BUDGET]
        trainers = self._scaling_actions(decision, suspend=False)
        return [*made, *self._outdated(permanent), *self._running(), *trainers, *self._budgets()]

    def _budgets(self) -> Iterable[Action]:
        """Return the actions for budgets, after all others: a job runs without them.

        They are created when there are pods, as the budget controller syncs with every new pod.
        """
        desired = [each for each in self._rendered.permanent if each.key[0] == _BUDGET]
        if self._seen.trainers:
            yield from self._outdated(desired)
        keys = {each.key for each in desired}
        yield from (Remove(*key) for key in sorted(self._seen.applied) if key[0] == _BUDGET and key not in keys)

    def _running(self) -> Iterable[Action]:
        return self._scaled(servers=self._job.servers, masters=1)

    def _scaled(self, *, servers: int, masters: int) -> Iterable[Apply]:
        made = [self._rendered.master(masters, self._preferred("Deployment", "master", self._places.master))]
        if not self._places.servers_wait or ("StatefulSet", self._names["pserver"]) in self._seen.applied:
            nodes = self._preferred("StatefulSet", "pserver", self._places.servers)
            made.insert(0, self._rendered.servers(servers, nodes))
        return self._outdated(made)

    def _preferred(self, kind: str, role: str, planned: tuple[str, ...]) -> tuple[str, ...]:
        """Return the preferred nodes of a controller's pods: chosen when it is first created, and never changed."""
        there = (kind, self._names[role]) in self._seen.applied
        return self._seen.preferred.get(kind, ()) if there else planned

    def _scaled_down(self, *, servers: int, masters: int) -> Iterable[Action]:
        """Scale the controllers that exist already: a job that is created suspended creates none."""
        for action in self._scaled(servers=servers, masters=masters):
            if (action.manifest["kind"], action.manifest["metadata"]["name"]) in self._seen.applied:
                yield action

    def _outdated(self, manifests: Iterable[HashedManifest]) -> Iterable[Apply]:
        for manifest in manifests:
            if self._seen.applied.get(manifest.key) != manifest.hash:
                yield Apply(manifest.content)
            elif manifest.key in self._seen.fields and not manifest.has_fields(self._seen.fields[manifest.key]):
                yield Apply(manifest.content, repair=True)

    def _lingering_trainers(self) -> Iterable[Action]:
        """Delete pods whose other containers still run: they would occupy their node's resources without end."""
        return [self._deletion(DeleteTrainer(pod.index, pod.uid)) for pod in self._seen.trainers if pod.lingers]

    def _lost_trainers(self) -> Iterable[Action]:
        return [
            self._deletion(DeleteTrainer(pod.index, pod.uid, force=True)) for pod in self._seen.trainers if pod.lost
        ]

    def _scaling_actions(self, decision: ScalingDecision, *, suspend: bool) -> Iterable[Action]:
        desired = DesiredState(drain=list(decision.drain), suspend=suspend)
        if desired != (self._seen.desired or DesiredState()):
            yield PublishDesired(desired)
        draining_all = self._seen.desired is not None and self._seen.desired.suspend
        failing = {pod.uid for pod in self._seen.trainers if pod.failing and not (pod.ended or pod.lost)}
        over = self._seen.ended is not None
        for action in decision.actions:
            if isinstance(action, DeleteTrainer):
                stops = over and action.uid in failing
                named = f"{self._names['trainer']}-{action.index}"
                yield StopPod(named, action.uid) if stops else self._deletion(action)
        if draining_all:  # the master would drain a trainer that joins before the master has read the new record
            return
        indices = [action.index for action in decision.actions if isinstance(action, CreateTrainer)]
        if not self._has_minimum():
            # A quota may have room for some pods only: the ones without which the job cannot work are created first.
            alive = sum(not (pod.ended or pod.deleting or pod.lost) for pod in self._seen.trainers)
            indices = indices[: max(0, self._job.spec.trainer.min_replicas - alive)]
        owner = workloads.owner(self._job, self._identity)
        # A pod that has no node yet is counted at its preferred node.
        coming = Counter(
            pod.preferred_node for pod in self._seen.trainers if not (pod.node or pod.ended or pod.deleting)
        )
        nodes = (Counter(self._places.added) - coming).elements()
        for pod in trainer_pods(self._job, self._identity, indices):
            made = pod | {"metadata": pod["metadata"] | {"ownerReferences": [owner]}}
            node = next(nodes, None)
            yield CreatePod(with_preferred_nodes(made, [node]) if node is not None else made)

    def _has_minimum(self) -> bool:
        """Return whether all pods exist that the job cannot work without."""
        seen = self._seen
        servers = sum(not (pod.deleting or pod.lost) for pod in seen.servers)
        trainers = sum(not (pod.ended or pod.deleting or pod.lost) for pod in seen.trainers)
        minimum = self._job.spec.trainer.min_replicas
        return bool(seen.masters) and servers >= self._job.servers and trainers >= minimum

    def _deletion(self, action: DeleteTrainer) -> DeletePod:
        return DeletePod(f"{self._names['trainer']}-{action.index}", action.uid, action.force)

    def _trainers(self, desired: int) -> list[TrainerPod]:
        """Return the trainers; surplus ones that should be among the minimum count as pods of an older template.

        A pod's priority cannot change. A pod whose priority is higher than necessary keeps it.
        """
        if self._identity.classes is None:
            return list(self._seen.trainers)
        # Trainers without room yet will be created all the same, with the lowest free indices.
        desired += self._places.later
        low = too_low(
            self._seen.trainers,
            minimum=min(self._job.spec.trainer.min_replicas, desired),
            desired=desired,
            drain=self._drain(),
            surplus=self._identity.classes[2],
        )
        return [replace(pod, current=False) if pod.uid in low else pod for pod in self._seen.trainers]

    def _drain(self) -> list[int]:
        return self._seen.desired.drain if self._seen.desired is not None else []
