"""Jobs for the operator's tests."""

from __future__ import annotations

from typing import Any

from shoal.api import TrainingJob, from_mapping
from shoal.operator.resources.pods import JobIdentity

IDENTITY = JobIdentity(
    uid="0b1e6c4a-0000-4000-8000-000000000001",
    etcd="https://etcd.shoal-system:2379",
    classes=("shoal-servers", "shoal-minimum", "shoal-surplus"),
)


def job(namespace: str = "default", **spec: Any) -> TrainingJob:
    """Build a job with everything at its default except the given fields."""
    spec = {
        "image": "example.org/train:1",
        "command": ["python", "train.py"],
        "trainer": {"minReplicas": 2, "maxReplicas": 4},
        "parameterServer": {"replicas": 2},
    } | spec
    metadata = {"name": "flights", "namespace": namespace, "labels": {"team": "air", "shoal.dev/role": "mine"}}
    return from_mapping({"apiVersion": "shoal.dev/v1alpha1", "kind": "TrainingJob", "metadata": metadata, "spec": spec})


TEMPLATE = {
    "metadata": {"labels": {"tier": "gold"}, "annotations": {"note": "x"}},
    "spec": {
        "nodeSelector": {"pool": "spot"},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "volumes": [{"name": "data", "emptyDir": {}}],
        "terminationGracePeriodSeconds": 90,
        "securityContext": {"runAsUser": 1000},
        "containers": [
            {"name": "log", "image": "log:1", "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}},
            {"name": "trainer", "args": ["--fast"], "env": [{"name": "A", "value": "b"}, {"name": "SHOAL_UID", "value": "forged"}],
             "volumeMounts": [{"name": "data", "mountPath": "/data"}]},
        ],
    },
}  # fmt: skip


def everything(namespace: str = "default") -> TrainingJob:
    """Build a job that uses every field of the definition."""
    asked = {"requests": {"cpu": "1500m", "memory": "1Gi"}, "limits": {"memory": "2Gi"}}
    return job(
        namespace,
        args=["--lr", "0.1"],
        env=[{"name": "LEVEL", "value": "debug"}, {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
        envFrom=[{"configMapRef": {"name": "more", "optional": True}}],
        seed=7,
        epochs=3,
        sharedMemory="256Mi",
        trainer={"minReplicas": 2, "maxReplicas": 4, "resources": asked, "template": template_without_args()},
        parameterServer={"replicas": 3, "resources": asked,
                         "volumeClaimSpec": {"resources": {"requests": {"storage": "1Gi"}}}},
        master={"resources": {"requests": {"cpu": "100m"}}},
        output={"path": "model.safetensors", "volumeClaimName": "model"},
    )  # fmt: skip


def template_without_args() -> dict[str, Any]:
    containers = [
        {key: value for key, value in each.items() if key not in {"args", "env"}}
        for each in TEMPLATE["spec"]["containers"]
    ]
    return TEMPLATE | {"spec": TEMPLATE["spec"] | {"containers": containers}}
