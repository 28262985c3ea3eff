"""Which fields of which objects the chart's values decide on."""

from __future__ import annotations

import re
from typing import Any, Final

from deploy.helm.templating import Block, Merged, Text, When

__all__ = ["BACKUP", "EMBEDDED", "NAMESPACES", "SYSTEM", "parametrized", "spec_of_pods"]

SYSTEM: Final = "shoal-system"
"""Namespace of the installation in the manifests."""
NAMESPACES: Final = "$.Values.scope.namespaces"
EMBEDDED: Final = "$.Values.etcd.embedded.enabled"
BACKUP: Final = f"and {EMBEDDED} $.Values.etcd.embedded.backup.enabled"
_OWN_CLUSTER_ROLES: Final = ("shoal-operator", "shoal-operator-nodes", "shoal-autoscaler")
"""Cluster-scoped objects of one installation; a second one in another namespace has its own."""
_ENDPOINT: Final = f"https://shoal-etcd.{SYSTEM}.svc:2379"
_CONFIG: Final = "|\n    {{- toYaml $.Values.autoscaler.config | nindent 4 }}"
_KEEP: Final = {"helm.sh/resource-policy": "keep"}


def parametrized(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return an object whose fields depend on the values; the manifest may have conditional parts already."""
    kind, name = manifest["kind"], manifest["metadata"]["name"]
    result = dict(manifest)
    if kind == "Deployment":
        result["spec"] = _operator(result["spec"])
    elif kind == "StatefulSet":
        result["spec"] = _etcd(result["spec"])
    elif kind == "PersistentVolumeClaim":
        result["spec"] = _claim(result["spec"], "backup")
    elif kind == "ServiceAccount":
        result["imagePullSecrets"] = Block("$.Values.image.pullSecrets")
    elif kind == "ConfigMap":
        result["data"] = {"autoscaler.yaml": Text(_CONFIG, quoted=False)}
    if spec_of_pods(result):
        result["spec"] = _with_pods(result["spec"])
    result = {key: _in_namespace(value, key=key) for key, value in result.items()}
    if kind in {"ClusterRole", "ClusterRoleBinding"} and name in _OWN_CLUSTER_ROLES:
        result["metadata"]["name"] = _suffixed(name)
        if kind == "ClusterRoleBinding":
            result["roleRef"] |= {"name": _suffixed(result["roleRef"]["name"])}
    if kind == "Job":
        # A Job is immutable, so every upgrade has one of its own; it finds what an earlier one has created.
        suffix = "{{ if gt (int $.Release.Revision) 1 }}-{{ $.Release.Revision }}{{ end }}"
        result["metadata"]["name"] = Text(f"{name}{suffix}")
    _mark(result)
    return result


def spec_of_pods(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the spec of the pods that an object creates; empty: it creates none."""
    spec = manifest.get("spec") or {}
    spec = spec.get("jobTemplate", {}).get("spec", spec)
    found: dict[str, Any] = (spec.get("template") or {}).get("spec") or {}
    return found if "containers" in found else {}


def _mark(result: dict[str, Any]) -> None:
    """Add Helm's labels, the annotation of what an uninstall keeps, and the labels of a monitor."""
    metadata = result["metadata"]
    added = "shoal.monitorLabels" if result["kind"] == "PodMonitor" else "shoal.labels"
    metadata["labels"] = Merged(metadata.get("labels", {}), f'include "{added}" $')
    if result["kind"] == "CustomResourceDefinition":
        metadata["annotations"] = When("$.Values.crds.keep", _KEEP)
    elif result["kind"] == "Namespace":
        metadata["annotations"] = dict(_KEEP)


def _suffixed(name: str) -> Text:
    return Text(f'{name}{{{{ include "shoal.suffix" $ }}}}')


def _operator(spec: dict[str, Any]) -> dict[str, Any]:
    return spec | {"replicas": Text("{{ int $.Values.operator.replicas }}", quoted=False)}


def _etcd(spec: dict[str, Any]) -> dict[str, Any]:
    (template,) = spec["volumeClaimTemplates"]
    return spec | {"volumeClaimTemplates": [template | {"spec": _claim(template["spec"], "storage")}]}


def _claim(spec: dict[str, Any], value: str) -> dict[str, Any]:
    values = f"$.Values.etcd.embedded.{value}"
    class_name = f"{values}.className"
    return spec | {
        "resources": {"requests": {"storage": Text(f"{{{{ {values}.size }}}}")}},
        "storageClassName": When(class_name, Text(f"{{{{ {class_name} }}}}")),
    }


def _with_pods(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the spec of an object whose pods have the chart's images, resources and scheduling."""
    if "jobTemplate" in spec:
        job = spec["jobTemplate"]
        return spec | {"jobTemplate": job | {"spec": _with_pods(job["spec"])}}
    pods = spec["template"]["spec"]
    (container,) = pods["containers"]
    pods = pods | {
        "containers": [_container(container)],
        "nodeSelector": Block("$.Values.nodeSelector"),
        "tolerations": Block("$.Values.tolerations"),
    }
    return spec | {"template": spec["template"] | {"spec": pods}}


def _container(container: dict[str, Any]) -> dict[str, Any]:
    etcd = "etcd" in container["image"]
    helper, values = ("shoal.etcdImage", "etcd.embedded.image") if etcd else ("shoal.image", "image")
    policy = f"$.Values.{values}.pullPolicy"
    result = container | {
        "image": Text(f'{{{{ include "{helper}" $ }}}}'),
        "imagePullPolicy": When(policy, Text(f"{{{{ {policy} }}}}")),
    }
    resources = {"operator": "operator.resources", "etcd": "etcd.embedded.resources"}.get(container["name"])
    if resources:
        result["resources"] = Block(f"$.Values.{resources}")
    if container["name"] == "operator":
        endpoint = '{{ include "shoal.etcdEndpoints" $ }}'
        result["args"] = [
            Text(f"--etcd={endpoint}") if each == f"--etcd={_ENDPOINT}" else each for each in container["args"]
        ]
    return result


def _in_namespace(value: Any, *, key: str = "") -> Any:
    """Return a value with the release's namespace, and with the Secret of the operator's user in etcd."""
    if isinstance(value, dict):
        return {
            below: entry if below == "labels" else _in_namespace(entry, key=below) for below, entry in value.items()
        }
    if isinstance(value, list):
        return [_in_namespace(each) for each in value]
    if isinstance(value, When):
        return When(value.condition, _in_namespace(value.then), _in_namespace(value.otherwise))
    if not isinstance(value, str):
        return value
    if (key, value) == ("secretName", "shoal-etcd-operator"):
        return Text('{{ include "shoal.etcdSecret" $ }}')
    found = re.sub(rf"\b{SYSTEM}\b", "{{ $.Release.Namespace }}", value)
    return Text(found) if found != value else value
