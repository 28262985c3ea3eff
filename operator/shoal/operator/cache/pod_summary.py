"""What looks want to know of a pod, read once for each version of it: a look at a job reads all of its pods. Pure."""

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

__all__ = ["PodSummary"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PodSummary:
    """One pod.

    Attributes:
        name: Its.
        uid: Its.
        role: By its label.
        template: Likewise.
        index: Likewise; -1: it has none.
        pending: It is placed or not, and does not run yet.
        ended: The process of its role has ended for good.
        lingers: Another of its containers runs on.
        succeeded: It ended well.
        deleting: It is being deleted.
        ready: As its kubelet says.
        priority: Its PriorityClass.
        node: Where it is; empty: nowhere yet.
        wish: Where the plan wanted it, as long as it is nowhere.
        troubles: What is wrong with it.
        ends: How lives of its container ended, as if nobody had asked it to end.
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
    wish: str
    troubles: tuple[PodProblem, ...]
    ends: tuple[ContainerEnd, ...]

    @classmethod
    def of(cls, pod: Mapping[str, Any]) -> Self:
        """From a manifest."""
        spec, phase, index = pod.get("spec") or {}, phase_of(pod), label(pod, "index")
        over = phase in {"Succeeded", "Failed"}
        last = (own_container(pod).get("state") or {}).get("terminated") or {}
        # What ends with an error is started again in place; what ends well is not, and other containers may run on.
        well = last.get("exitCode") == 0 if last else phase == "Succeeded"
        return cls(
            name=pod["metadata"]["name"],
            uid=pod["metadata"]["uid"],
            role=label(pod, "role"),
            template=label(pod, "template"),
            index=int(index) if index.isdigit() else -1,
            pending=phase == "Pending",
            ended=over or well,
            lingers=well and not over and _others_run(pod),
            succeeded=well,
            deleting=deleting(pod),
            ready=ready(pod),
            priority=str(spec.get("priorityClassName", "")),
            node=str(spec.get("nodeName") or ""),
            wish="" if spec.get("nodeName") else preferred_node_of(pod),
            troubles=tuple(problems_of_pod(pod)),
            ends=tuple(ends_of(pod)),
        )

    def trainer(self, *, lost: bool, current: bool, member: bool, cordoned: bool = False) -> TrainerPod:
        """As a trainer.

        Args:
            lost: Whether its node is.
            current: Whether it is of the present template.
            member: Whether the master has it as one.
            cordoned: Whether its node takes no new pods.
        """
        return TrainerPod(
            index=self.index,
            uid=self.uid,
            ended=self.ended,
            lingers=self.lingers,
            failing=any(end.code and not end.asked for end in self.ends) and not self.ended,
            deleting=self.deleting,
            lost=lost,
            ready=self.ready,
            current=current,
            works=member and not self.ended,
            cordoned=cordoned,
            priority=self.priority,
            node=self.node,
            wish=self.wish,
        )


def _others_run(pod: Mapping[str, Any]) -> bool:
    """Whether a container beside that of the role runs, or is started again and again.

    Of a pod whose containers have all ended the kubelet says so before it says that the pod has.
    """
    containers = (pod.get("status") or {}).get("containerStatuses") or []
    beside = [each for each in containers if each.get("name") != label(pod, "role")]
    return any(not (each.get("state") or {}).get("terminated") for each in beside)
