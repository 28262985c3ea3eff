"""Record of the autoscaler's last plan: written by the operator into a ConfigMap, read by ``shoal plan``."""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["PLAN_KEY", "PLAN_NAME", "Plan", "PlannedClaim", "PlannedJob"]

PLAN_NAME: Final = "shoal-plan"
"""Name of the ConfigMap, in the operator's namespace."""
PLAN_KEY: Final = "plan.json"


class PlannedJob(msgspec.Struct, frozen=True):
    """A job in a plan.

    Attributes:
        namespace: Namespace of the TrainingJob.
        name: Name of the TrainingJob.
        priority: Priority of its minimum trainers.
        trainers: Number of trainers with a node.
        given: Number of trainers that the plan gives to the job.
        now: Number of these that fit now; the rest waits for the exit of preempted trainers.
        min: Fewest trainers.
        max: Most trainers.
        reason: Reason why the job gets no more trainers, in one word.
        message: Reason why the job gets no more trainers, as text.
    """

    namespace: str
    name: str
    priority: int
    trainers: int
    given: int
    now: int
    min: int
    max: int
    reason: str
    message: str


class PlannedClaim(msgspec.Struct, frozen=True):
    """A claim: room on a node that is reserved for a pending pod.

    Attributes:
        pod: NAMESPACE/NAME of the pod.
        node: Name of the node.
        victims: Number of preempted trainers, by NAMESPACE/NAME of their job.
    """

    pod: str
    node: str
    victims: dict[str, int]


class Plan(msgspec.Struct, frozen=True):
    """The last plan; written again only when more than its times has changed.

    Attributes:
        time: Time of the plan (RFC 3339); later plans were equal to it.
        seconds: Duration of planning. Seconds.
        acts: Whether the plan is executed; false in a dry run.
        problem: What is wrong with the configuration; empty if it is valid.
        nodes: Number of nodes.
        usable: Number of nodes that accept pods.
        jobs: Jobs, from the highest priority to the lowest.
        claims: Claims for pending pods.
        unread: Number of nodes, pods and templates with quantities that cannot be parsed.
        jobs_left_out: Number of jobs, of the lowest priorities, that are left out to limit the record's size.
        claims_left_out: Number of claims that are left out to limit the record's size.
    """

    time: str
    seconds: float
    acts: bool
    problem: str
    nodes: int
    usable: int
    jobs: list[PlannedJob]
    claims: list[PlannedClaim]
    unread: int = 0
    jobs_left_out: int = 0
    claims_left_out: int = 0
