"""Where the plan has a pod, told to the scheduler as a wish: it binds wherever it finds better, or room at all. Pure.

The wish is preferred node affinity, by the nodes' names. What a user's template prefers goes before it: then there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

__all__ = ["NODES", "preferred_node_of", "with_preferred_nodes"]

NODES: Final = "shoal.dev/nodes"
"""The annotation of a controller whose pods have such a wish: the nodes."""

_MOST_NODES: Final = 100
"""Named in one pod: a job with more servers than that fills its nodes anyway."""
_NO_SPREAD: Final = {
    "maxSkew": 1,
    "topologyKey": "kubernetes.io/hostname",
    "whenUnsatisfiable": "ScheduleAnyway",
    "labelSelector": {"matchLabels": {"shoal.dev/role": "nobody"}},
}


def with_preferred_nodes(pod: Mapping[str, Any], nodes: Iterable[str], *, together: bool = False) -> dict[str, Any]:
    """A pod (or a template of one) that would like to be on one of these nodes.

    Args:
        pod: With a spec.
        nodes: Their names; none: no wish.
        together: It may stand beside its like. The scheduler spreads a controller's pods over nodes unless they say how they
            want to be spread, and that weighs more than our wish: a constraint that counts nobody takes its place.
    """
    named = list(dict.fromkeys(nodes))[:_MOST_NODES]
    spec = pod["spec"]
    affinity = spec.get("affinity") or {}
    own = affinity.get("nodeAffinity") or {}
    if not named or own.get("preferredDuringSchedulingIgnoredDuringExecution"):
        return dict(pod)
    wishes = [
        {"weight": 100, "preference": {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}}
        for node in named
    ]
    wish = {"nodeAffinity": {**own, "preferredDuringSchedulingIgnoredDuringExecution": wishes}}
    spread = (
        {} if not together or spec.get("topologySpreadConstraints") else {"topologySpreadConstraints": [_NO_SPREAD]}
    )
    return {**pod, "spec": {**spec, "affinity": {**affinity, **wish}, **spread}}


def preferred_node_of(pod: Mapping[str, Any]) -> str:
    """The one node that a pod would like to be on by our wish; empty: it has none, or more."""
    affinity = (pod.get("spec") or {}).get("affinity") or {}
    wishes = (affinity.get("nodeAffinity") or {}).get("preferredDuringSchedulingIgnoredDuringExecution") or []
    if len(wishes) != 1:
        return ""
    fields = (wishes[0].get("preference") or {}).get("matchFields") or []
    values = fields[0].get("values") or [] if fields else []
    return str(values[0]) if values else ""
