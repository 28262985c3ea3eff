"""The summary of a pod, made once for each version of it: a sync of a job reads all of the job's pods. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from shoal.operator.core.run_policy import ContainerEnd, ends_of
from shoal.operator.core.scaling import TrainerPod
from shoal.operator.resources.node_affinity import preferred_node_of
from shoal.operator.resources.object_fields import deleting, own_container, phase_of, ready
from shoal.operator.resources.pods import label
from shoal.operator.status.pod_problems import problems_of_pod
from shoal.operator.status.reasons import PodProblem
from shoal.store import DesiredState

__all__ = ["PodSummary"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PodSummary:
    """The fields of a pod that syncs read.

    Attributes:
        name: Name of the pod.
        uid: UID of the pod.
        role: Its role label.
        template: Its template label: the hash of its template.
        index: Its index label; -1: it has none.
        pending: Its phase is Pending.
        ended: The process of its role has ended for good.
        lingers: That process has ended, and another of its containers still runs.
        succeeded: That process ended with exit code 0.
        deleting: It is being deleted.
        ready: It is ready.
        priority: Name of its PriorityClass.
        node: Name of its node; empty: it has none yet.
        preferred_node: Its preferred node by the plan, as long as it has no node.
        problems: Its problems.
        ends: How runs of its containers ended, without regard to a drain.
    """

    name: str
    uid: str
    role: str
    template: str
    index: int
    pending: bool
    ended: bool
    lingers: bool
    succeeded: bool
    deleting: bool
    ready: bool
    priority: str
    node: str
    preferred_node: str
    problems: tuple[PodProblem, ...]
    ends: tuple[ContainerEnd, ...]

    @classmethod
    def of(cls, pod: Mapping[str, Any]) -> Self:
        """Build the summary from a manifest."""
        spec, phase, index = pod.get("spec") or {}, phase_of(pod), label(pod, "index")
        over = phase in {"Succeeded", "Failed"}
        last = (own_container(pod).get("state") or {}).get("terminated") or {}
        # The kubelet restarts a container that failed, but not one that succeeded; other containers of the pod may still run.
        succeeded = last.get("exitCode") == 0 if last else phase == "Succeeded"
        return cls(
            name=pod["metadata"]["name"],
            uid=pod["metadata"]["uid"],
            role=label(pod, "role"),
            template=label(pod, "template"),
            index=int(index) if index.isdigit() else -1,
            pending=phase == "Pending",
            ended=over or succeeded,
            lingers=succeeded and not over and _others_run(pod),
            succeeded=succeeded,
            deleting=deleting(pod),
            ready=ready(pod),
            priority=str(spec.get("priorityClassName", "")),
            node=str(spec.get("nodeName") or ""),
            preferred_node="" if spec.get("nodeName") else preferred_node_of(pod),
            problems=tuple(problems_of_pod(pod)),
            ends=tuple(ends_of(pod)),
        )

    def terminated(self, desired: DesiredState) -> bool:
        """Return whether the pod's process was asked to terminate."""
        return self.deleting or (self.role == "trainer" and desired.leaves(self.index))

    def trainer(self, *, lost: bool, current: bool, member: bool, cordoned: bool = False) -> TrainerPod:
        """Return the pod as a trainer's pod.

        Args:
            lost: Whether its node is deleted or unreachable.
            current: Whether it was created from the present template.
            member: Whether the master lists the trainer as a member.
            cordoned: Whether its node is unschedulable. Default: it is not.
        """
        return TrainerPod(
            index=self.index,
            uid=self.uid,
            ended=self.ended,
            lingers=self.lingers,
            failing=any(end.code and not end.terminated for end in self.ends) and not self.ended,
            deleting=self.deleting,
            lost=lost,
            ready=self.ready,
            current=current,
            works=member and not self.ended,
            cordoned=cordoned,
            priority=self.priority,
            node=self.node,
            preferred_node=self.preferred_node,
        )


def _others_run(pod: Mapping[str, Any]) -> bool:
    """Return whether another container than the role's runs, or is restarted.

    The kubelet reports that all containers of a pod have ended before it reports that the pod has.
    """
    containers = (pod.get("status") or {}).get("containerStatuses") or []
    others = [each for each in containers if each.get("name") != label(pod, "role")]
    return any(not (each.get("state") or {}).get("terminated") for each in others)
