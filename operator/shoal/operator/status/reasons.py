"""Maps reasons of pods, of the master and of the preflight to the documented reasons of a job's conditions. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from shoal.api.status import REASONS, ConditionType, Reason

__all__ = ["NO_CLASS", "PodProblem", "clipped", "in_order", "listed", "message_of", "reason_of"]

_LONGEST: Final = 500
"""Longest text of one pod problem, in characters."""
_LONGEST_REASON: Final = 4000
"""Longest reason of a job's end, in characters: it may have the traceback of a script."""
_MOST_KINDS: Final = 3
"""Kinds of problems that one message lists."""
_ROLES: Final = ("master", "pserver", "trainer")

NO_CLASS: Final = "NoStorageClass"
"""Reason for a claim that names no StorageClass on a cluster without a default one."""

_REASONS: Final[Mapping[str, Reason]] = {
    "Unschedulable": Reason.UNSCHEDULABLE,
    "SchedulingGated": Reason.UNSCHEDULABLE,
    NO_CLASS: Reason.UNSCHEDULABLE,
    "FailedCreate": Reason.PODS_REFUSED,
    "Forbidden": Reason.PODS_REFUSED,
    "Invalid": Reason.PODS_REFUSED,
    "InternalError": Reason.PODS_REFUSED,
    "Unavailable": Reason.PODS_REFUSED,
    Reason.NAME_TAKEN: Reason.PODS_REFUSED,
    "ErrImagePull": Reason.IMAGE_PULL_FAILED,
    "ImagePullBackOff": Reason.IMAGE_PULL_FAILED,
    "ErrImageNeverPull": Reason.IMAGE_PULL_FAILED,
    "InvalidImageName": Reason.IMAGE_PULL_FAILED,
    "ImageInspectError": Reason.IMAGE_PULL_FAILED,
    "RegistryUnavailable": Reason.IMAGE_PULL_FAILED,
    "CreateContainerConfigError": Reason.CONTAINER_CANNOT_START,
    "CreateContainerError": Reason.CONTAINER_CANNOT_START,
    "RunContainerError": Reason.CONTAINER_CANNOT_START,
    "ContainerCannotRun": Reason.CONTAINER_CANNOT_START,
    "StartError": Reason.CONTAINER_CANNOT_START,
    "FailedMount": Reason.CONTAINER_CANNOT_START,
    "FailedAttachVolume": Reason.CONTAINER_CANNOT_START,
    "FailedMapVolume": Reason.CONTAINER_CANNOT_START,
    "FailedCreatePodSandBox": Reason.CONTAINER_CANNOT_START,
    "CrashLoopBackOff": Reason.CRASH_LOOP,
    "Error": Reason.CRASH_LOOP,
    "OOMKilled": Reason.OUT_OF_MEMORY,
    "NodeLost": Reason.NODE_LOST,
    "Evicted": Reason.PODS_EVICTED,
    "Preempting": Reason.PODS_EVICTED,
    "NodeShutdown": Reason.PODS_EVICTED,
    "Terminated": Reason.PODS_EVICTED,
    "DeadlineExceeded": Reason.PODS_EVICTED,
    "NodeAffinity": Reason.PODS_REFUSED,
    "NodePorts": Reason.PODS_REFUSED,
    "UnexpectedAdmissionError": Reason.PODS_REFUSED,
}
"""By the reason of the pod or of Shoal. A kubelet that lacks a resource refuses pods with its name, as in OutOfcpu."""


_FAILURES: Final[Mapping[str, Reason]] = {
    "no server has a good snapshot": Reason.SNAPSHOTS_LOST,
    "the script failed ": Reason.TASK_FAILED,
}
"""The beginning of the master's reason for a failure -> the documented reason; ScriptFailed for any other."""


@dataclass(frozen=True)
class PodProblem:
    """A problem of one pod.

    Attributes:
        role: master, pserver or trainer.
        pod: Name of the pod, whether it exists or its creation was refused.
        reason: Reason of the pod, the container or the API server, such as ImagePullBackOff.
        message: Message of the same source.
    """

    role: str
    pod: str
    reason: str
    message: str = ""

    @property
    def known(self) -> Reason | None:
        """The documented reason; None: there is none for it."""
        if "exceeded quota" in self.message:
            return Reason.QUOTA_EXCEEDED
        if self.reason.startswith("OutOf") and self.reason not in _REASONS:
            return Reason.PODS_REFUSED
        return _REASONS.get(self.reason)

    @property
    def decisive(self) -> bool:
        """Whether waiting cannot help: the pod was refused, and would be refused again."""
        return self.known is Reason.PODS_REFUSED or self.reason == NO_CLASS

    @property
    def before_node(self) -> bool:
        """Whether the problem keeps the pod from getting a node."""
        return self.known in REASONS[ConditionType.SCHEDULED]


def message_of(problems: Sequence[PodProblem]) -> str:
    """Return the first problem of each kind, and the number of further pods with problems.

    Pods of a role with the same problem differ in little but their names.
    """
    first: dict[tuple[str, str], PodProblem] = {}
    for each in problems:
        first.setdefault((each.role, each.reason), each)
    texts = [
        clipped(" ".join(f"{each.pod}: {each.reason}{': ' if each.message else ''}{each.message}".split()), _LONGEST)
        for each in list(first.values())[:_MOST_KINDS]
    ]
    more = len({each.pod for each in problems} - {each.pod for each in list(first.values())[:_MOST_KINDS]})
    return "; ".join(texts) + (f" (and {more} more)" if more else "")


def in_order(problems: Iterable[PodProblem]) -> list[PodProblem]:
    """Sort problems: first those that a person has to fix, then by role, the one that all jobs need first.

    The order does not depend on the order of the input. Within a role, pserver-2 is before pserver-10.
    """

    def key(each: PodProblem) -> tuple[bool, int, int, str, str, str]:
        role = _ROLES.index(each.role) if each.role in _ROLES else len(_ROLES)
        return not each.decisive, role, len(each.pod), each.pod, each.reason, each.message

    return sorted(set(problems), key=key)


def clipped(text: str, most: int) -> str:
    """Clip a text to a number of characters."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def reason_of(of: ConditionType, text: str) -> tuple[Reason, str]:
    """Return reason and message for a job that is not accepted or has failed; a text may start with a documented reason."""
    head, _, rest = text.partition(": ")
    if head in REASONS[of]:
        return Reason(head), clipped(rest, _LONGEST_REASON)
    found = Reason.INVALID_SPEC
    if of is ConditionType.FAILED:
        starts = (reason for start, reason in _FAILURES.items() if text.startswith(start))
        found = next(starts, Reason.SCRIPT_FAILED)
    return found, clipped(text, _LONGEST_REASON)


def listed(*, trainers: int, servers: int, masters: int) -> str:
    """Format counts of pods, as in `2 trainers, 1 parameter server`; zeros are left out."""
    counts = {"trainer": trainers, "parameter server": servers, "master": masters}
    return ", ".join(f"{count} {role}{'s' * (count > 1)}" for role, count in counts.items() if count > 0)
