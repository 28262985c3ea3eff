"""The kinds of objects that Shoal uses, with their paths in the Kubernetes API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["KINDS", "Kind"]


@dataclass(frozen=True)
class Kind:
    """A kind of object.

    Attributes:
        version: ``apiVersion`` of its manifests.
        plural: Plural name, as used in paths.
        namespaced: Whether the objects are namespaced. Default: true.
    """

    version: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str = "", name: str = "", *, subresource: str = "") -> str:
        """Return the path of an object, of all in a namespace (no name), or of all in the cluster (neither)."""
        parts = ["api" if "/" not in self.version else "apis", self.version]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        if name:
            parts.append(name)
        if subresource:
            parts.append(subresource)
        return "/" + "/".join(parts)


KINDS: Final = {
    "TrainingJob": Kind("shoal.dev/v1alpha1", "trainingjobs"),
    "Pod": Kind("v1", "pods"),
    "Service": Kind("v1", "services"),
    "ServiceAccount": Kind("v1", "serviceaccounts"),
    "Secret": Kind("v1", "secrets"),
    "ConfigMap": Kind("v1", "configmaps"),
    "Event": Kind("events.k8s.io/v1", "events"),
    # The same objects in the core API, which supports field selectors for the involved object.
    "CoreEvent": Kind("v1", "events"),
    "Namespace": Kind("v1", "namespaces", namespaced=False),
    "Node": Kind("v1", "nodes", namespaced=False),
    "PersistentVolumeClaim": Kind("v1", "persistentvolumeclaims"),
    "Deployment": Kind("apps/v1", "deployments"),
    "StatefulSet": Kind("apps/v1", "statefulsets"),
    "PodDisruptionBudget": Kind("policy/v1", "poddisruptionbudgets"),
    "PriorityClass": Kind("scheduling.k8s.io/v1", "priorityclasses", namespaced=False),
    "Lease": Kind("coordination.k8s.io/v1", "leases"),
    "CustomResourceDefinition": Kind("apiextensions.k8s.io/v1", "customresourcedefinitions", namespaced=False),
}
