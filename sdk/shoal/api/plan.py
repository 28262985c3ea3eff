"""What the autoscaler tells of its last plan: written by the operator into a ConfigMap, read by ``shoal plan``."""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["PLAN_KEY", "PLAN_NAME", "Plan", "PlannedClaim", "PlannedJob"]

PLAN_NAME: Final = "shoal-plan"
"""Of the ConfigMap, in the operator's namespace."""
PLAN_KEY: Final = "plan.json"


class PlannedJob(msgspec.Struct, frozen=True):
    """A job in a plan.

    Attributes:
        namespace: Of the TrainingJob.
        name: Of the TrainingJob.
        priority: Of its minimum trainers.
        trainers: How many have a node.
        given: How many it shall have.
        now: How many of these can be there now: the rest waits until others have left.
        min: Fewest.
        max: Most.
        why: In one word why it is given no more.
        words: The same for people.
    """

    namespace: str
    name: str
    priority: int
    trainers: int
    given: int
    now: int
    min: int
    max: int
    why: str
    words: str


class PlannedClaim(msgspec.Struct, frozen=True):
    """Room that is kept or made for a pod.

    Attributes:
        pod: NAMESPACE/NAME.
        node: Where.
        victims: NAMESPACE/NAME of a job -> how many of its trainers give way.
    """

    pod: str
    node: str
    victims: dict[str, int]


class Plan(msgspec.Struct, frozen=True):
    """The last plan, as it is told: it is written anew when something else than its times has changed.

    Attributes:
        time: When it was made, as RFC 3339 has it: plans since then said the same.
        seconds: How long planning took.
        acts: Whether jobs follow it; false in a dry run.
        problem: What is wrong with the configuration; empty: nothing.
        nodes: How many there are.
        usable: How many of these take pods.
        jobs: From the highest priority to the lowest.
        claims: For pods that wait.
        unread: Nodes, pods and templates with amounts that cannot be read.
        jobs_left_out: Jobs, of the lowest priorities, that had no room here.
        claims_left_out: The same of claims.
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
