"""Preferred nodes: the scheduler prefers the node that a plan assigns to a pod, and binds the pod elsewhere if necessary. Pure.

They are preferred node affinity, by node name. A user's template with preferred node affinity takes precedence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

__all__ = ["NODES", "preferred_node_of", "with_preferred_nodes"]

NODES: Final = "shoal.dev/nodes"
"""The annotation of a controller with the preferred nodes of its pods."""

_MOST_NODES: Final = 100
"""Most preferred nodes of one pod: a job with more servers than that fills its nodes anyway."""
_NO_SPREAD: Final = {
    "maxSkew": 1,
    "topologyKey": "kubernetes.io/hostname",
    "whenUnsatisfiable": "ScheduleAnyway",
    "labelSelector": {"matchLabels": {"shoal.dev/role": "none"}},
}
"""A constraint that selects no pod: it replaces the scheduler's default, which spreads the pods of a StatefulSet over nodes."""


def with_preferred_nodes(pod: Mapping[str, Any], nodes: Iterable[str], *, together: bool = False) -> dict[str, Any]:
    """Return a pod, or a pod template, that prefers these nodes.

    Args:
        pod: The pod, with a spec.
        nodes: Names of the nodes. Empty: the pod is returned unchanged.
        together: Whether pods of the same controller may share a node. By default the scheduler spreads them over nodes,
            with more weight than their preferred nodes have; a constraint that matches no pod replaces that default.
    """
    named = list(dict.fromkeys(nodes))[:_MOST_NODES]
    spec = pod["spec"]
    affinity = spec.get("affinity") or {}
    own = affinity.get("nodeAffinity") or {}
    if not named or own.get("preferredDuringSchedulingIgnoredDuringExecution"):
        return dict(pod)
    terms = [
        {"weight": 100, "preference": {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}}
        for node in named
    ]
    preference = {"nodeAffinity": {**own, "preferredDuringSchedulingIgnoredDuringExecution": terms}}
    spread = (
        {} if not together or spec.get("topologySpreadConstraints") else {"topologySpreadConstraints": [_NO_SPREAD]}
    )
    return {**pod, "spec": {**spec, "affinity": {**affinity, **preference}, **spread}}


def preferred_node_of(pod: Mapping[str, Any]) -> str:
    """Return the one node that a pod prefers; empty: there is none, or more than one."""
    affinity = (pod.get("spec") or {}).get("affinity") or {}
    terms = (affinity.get("nodeAffinity") or {}).get("preferredDuringSchedulingIgnoredDuringExecution") or []
    if len(terms) != 1:
        return ""
    fields = (terms[0].get("preference") or {}).get("matchFields") or []
    values = fields[0].get("values") or [] if fields else []
    return str(values[0]) if values else ""
