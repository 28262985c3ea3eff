"""Builds the pod of each role of a job: Shoal's frame, merged with the user's template. Pure.

A pod passes PodSecurity `restricted`, unless a user's template prevents that. No pod has a token for the API server.
A template cannot change what Shoal governs (names, the frame of the command, tokens, addresses): that is merged last.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from shoal.api import ResourceRequirements, TrainingJob
from shoal.operator.resources.template_merge import merged

__all__ = [
    "MASTER_PORT",
    "SERVER_PORT",
    "JobIdentity",
    "label",
    "labels",
    "master_pod",
    "names",
    "own_labels",
    "pod_hash",
    "secret_name",
    "server_pod",
    "trainer_pod",
    "trainer_pods",
]

MASTER_PORT: Final = 7700
SERVER_PORT: Final = 7701
PROBE_PORT: Final = 7702
GROUP: Final = "shoal.dev"
_FOLDER: Final = "/shoal"
OUTPUT_FOLDER: Final = f"{_FOLDER}/output"
"""Mount path of the claim for the model; a relative `output.path`, and relative paths of `job.save`, are in it."""
_SCRATCH: Final = "/tmp"  # noqa: S108 - the pod's own
TOKEN_VERSION: Final = f"{GROUP}/token-version"
"""Annotation of a job's Deployment: the `JobIdentity.token` that its processes were created with."""
SNAPSHOTS: Final = "shoal-snapshots"
"""Name of the claim template for the servers' snapshots."""
_NEEDED: Final = ("containers", "volumes")
_GONE_SECONDS: Final = 5
"""How long master and servers stay bound to a node that is not ready; Kubernetes' default is 300 s."""
_GRACE_SECONDS: Final = {"trainer": 60, "pserver": 120, "master": 10}
"""Termination grace periods: a trainer finishes its batch, a server writes its snapshot."""


@dataclass(frozen=True, kw_only=True)
class JobIdentity:
    """What a job's pods depend on beside the job's manifest.

    Attributes:
        uid: UID of the job.
        etcd: Endpoint of etcd, for the master.
        guarded: Whether etcd has authentication.
        token: Version of the root key in etcd from which jobs' tokens are derived.
        login: Version of the key from which the masters' passwords for etcd are derived.
        classes: PriorityClasses of servers and master, of minimum trainers and of surplus trainers. None: the pods have none.
        selector: Labels that nodes of trainers must have, beside those in the job's template.
    """

    uid: str
    etcd: str
    guarded: bool = False
    token: str = ""
    login: str = ""
    classes: tuple[str, str, str] | None = None
    selector: tuple[tuple[str, str], ...] = ()


def names(job: TrainingJob) -> dict[str, str]:
    """Return the names of a job's objects, by role."""
    name = job.metadata.name
    return {
        "master": f"{name}-master",
        "pserver": f"{name}-pserver",
        "trainer": f"{name}-trainer",
        "job": f"{name}-job",
        "account": f"{name}-shoal",
    }


def secret_name(job: TrainingJob, identity: JobIdentity, what: str) -> str:
    """Return the name of a job's Secret; no other job's Secret has it, not even a predecessor's. Secrets are never read."""
    version = {"token": identity.token, "etcd": identity.login}[what]
    tail = hashlib.sha256(f"{identity.uid} {version}".encode()).hexdigest()[:8]
    return f"{job.metadata.name}-{what}-{tail}"


def labels(job: TrainingJob, identity: JobIdentity, role: str) -> dict[str, str]:
    """Return the labels of a job's object: the job's own labels, overridden by those that select the job's objects.

    Pods have only the latter: a changed label in a pod template would restart the pods. A user's labels of pods are in
    ``template.metadata.labels``.
    """
    return {**job.metadata.labels, **own_labels(job, identity, role)}


def own_labels(job: TrainingJob, identity: JobIdentity, role: str) -> dict[str, str]:
    """Return the labels that select a job's objects."""
    return {
        "app.kubernetes.io/part-of": "shoal",
        "app.kubernetes.io/component": role,
        f"{GROUP}/job": job.metadata.name,
        f"{GROUP}/uid": identity.uid,
        f"{GROUP}/role": role,
    }


def label(manifest: Mapping[str, Any], name: str) -> str:
    """Return one of Shoal's labels of an object; empty: it has none."""
    return str((manifest["metadata"].get("labels") or {}).get(f"{GROUP}/{name}", ""))


def trainer_pod(job: TrainingJob, identity: JobIdentity, index: int) -> dict[str, Any]:
    """Return the Pod of the trainer with this index."""
    spec = job.spec
    command = [*spec.command, *spec.args]
    seed = [_env("SHOAL_SEED", str(spec.seed))] if spec.seed is not None else []
    container = _without_none(
        {
            "image": spec.image,
            "command": ["shoal", "exec", "--", *command],
            "env": [each.model_dump(by_alias=True, exclude_none=True) for each in spec.env],
            "envFrom": list(spec.env_from) or None,
        }
    )
    on_claim = spec.output is not None and spec.output.volume_claim_name is not None
    folder = [_env("SHOAL_FOLDER", OUTPUT_FOLDER)] if on_claim else []
    ours = {"env": [*seed, *folder, _env("SHOAL_INDEX", str(index))]}
    made = _pod(
        job, identity, "trainer", container, ours, template=spec.trainer.template, resources=spec.trainer.resources
    )
    if spec.output is not None and on_claim:
        claim = {"persistentVolumeClaim": {"claimName": spec.output.volume_claim_name}}
        _mount(made, "output", claim, OUTPUT_FOLDER, written=True)
    made["spec"]["restartPolicy"] = "OnFailure"
    if identity.selector:
        made["spec"]["nodeSelector"] = dict(identity.selector) | made["spec"].get("nodeSelector", {})
    if identity.classes is not None:
        made["spec"]["priorityClassName"] = _class(job, identity.classes, index)
    made["metadata"] |= {"name": f"{names(job)['trainer']}-{index}", "namespace": job.metadata.namespace}
    made["metadata"]["labels"][f"{GROUP}/index"] = str(index)
    made["metadata"]["labels"][f"{GROUP}/template"] = pod_hash(made)
    return {"apiVersion": "v1", "kind": "Pod", **made}


def trainer_pods(job: TrainingJob, identity: JobIdentity, indices: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Yield trainers' Pods, by index: equal to those of `trainer_pod`, but derived from one of them."""
    first: dict[str, Any] | None = None
    for index in indices:
        if first is None:
            first = trainer_pod(job, identity, index)
        yield _with_index(first, job, identity, index)


def _with_index(pod: dict[str, Any], job: TrainingJob, identity: JobIdentity, index: int) -> dict[str, Any]:
    """Return a trainer's pod with another index; parts that do not depend on the index are shared."""
    own, *others = pod["spec"]["containers"]
    env = [_env("SHOAL_INDEX", str(index)) if each.get("name") == "SHOAL_INDEX" else each for each in own["env"]]
    spec = {**pod["spec"], "containers": [{**own, "env": env}, *others]}
    if identity.classes is not None:
        spec["priorityClassName"] = _class(job, identity.classes, index)
    known = {**pod["metadata"]["labels"], f"{GROUP}/index": str(index)}
    metadata = {**pod["metadata"], "name": f"{names(job)['trainer']}-{index}", "labels": known}
    return {**pod, "metadata": metadata, "spec": spec}


def _class(job: TrainingJob, classes: tuple[str, str, str], index: int) -> str:
    return classes[1 if index < job.spec.trainer.min_replicas else 2]


def server_pod(job: TrainingJob, identity: JobIdentity) -> dict[str, Any]:
    """Return the pod template of the parameter servers' StatefulSet."""
    part = job.spec.parameter_server
    assert part is not None
    # A StatefulSet gives its pods a label with their index (Kubernetes 1.28).
    index = {
        "name": "SHOAL_INDEX",
        "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['apps.kubernetes.io/pod-index']"}},
    }
    address = {"name": "SHOAL_POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    listen = f"tcp://$(SHOAL_POD_IP):{SERVER_PORT}"
    folder = f"{_FOLDER}/snapshots"
    container = _without_none(
        {
            "image": job.spec.image,
            "command": [
                "shoal",
                "exec",
                "--",
                "python",
                "-m",
                "shoal.pserver",
                "--listen",
                listen,
                "--snapshots",
                folder,
                "--probe",
                f"tcp://$(SHOAL_POD_IP):{PROBE_PORT}",
            ],
            "ports": [{"containerPort": SERVER_PORT, "name": "tensors"}],
            "livenessProbe": _alive(),
            "startupProbe": _starts(),
        }
    )
    made = _pod(
        job, identity, "pserver", container, {"env": [index, address]}, template=part.template, resources=part.resources
    )
    source: dict[str, Any] | None = None
    if part.empty_dir is not None:
        # The node may return, with the snapshots: the pod stays for as long as the cluster's default tolerations allow.
        source = {"emptyDir": part.empty_dir.model_dump(by_alias=True, exclude_unset=True, mode="json")}
    else:
        made["spec"]["tolerations"] = [*made["spec"].get("tolerations", []), *_leaves_lost_nodes()]
    _mount(made, "snapshots", source, folder, written=True)
    if identity.classes is not None:
        made["spec"]["priorityClassName"] = identity.classes[0]
    return made


def master_pod(job: TrainingJob, identity: JobIdentity) -> dict[str, Any]:
    """Return the pod template of the master's Deployment."""
    manifest, login = f"{_FOLDER}/job/job.json", f"{_FOLDER}/etcd"
    container = _without_none(
        {
            "image": job.spec.image,
            "command": [
                *("shoal", "exec", "--", "python", "-m", "shoal.master", "--manifest", manifest),
                *("--etcd", identity.etcd, *(("--etcd-credentials", login) if identity.guarded else ())),
                *("--listen", f"tcp://0.0.0.0:{MASTER_PORT}", "--probe", f"tcp://0.0.0.0:{PROBE_PORT}"),
            ],
            "ports": [{"containerPort": MASTER_PORT, "name": "master"}],
            "readinessProbe": {"tcpSocket": {"port": MASTER_PORT}, "periodSeconds": 1},
            "livenessProbe": _alive(),
            "startupProbe": _starts(),
        }
    )
    part = job.spec.master
    ours = {"env": [_env("SHOAL_INDEX", "0")]}
    made = _pod(job, identity, "master", container, ours, template=part.template, resources=part.resources)
    # The ConfigMap's other keys are for the operator only.
    items = [{"key": "job.json", "path": "job.json"}]
    _mount(made, "job", {"configMap": {"name": names(job)["job"], "items": items}}, f"{_FOLDER}/job")
    if identity.guarded:
        _mount(made, "etcd", _secret(job, identity, "etcd"), login)
    made["spec"]["tolerations"] = [*made["spec"].get("tolerations", []), *_leaves_lost_nodes()]
    if identity.classes is not None:
        made["spec"]["priorityClassName"] = identity.classes[0]
    return made


def pod_hash(pod: dict[str, Any]) -> str:
    """Return a hash of a trainer's pod, without its index, name and priority."""
    spec = {key: value for key, value in pod["spec"].items() if key != "priorityClassName"}
    containers = [
        {**each, "env": [variable for variable in each.get("env", []) if variable.get("name") != "SHOAL_INDEX"]}
        for each in spec["containers"]
    ]
    text = json.dumps({**spec, "containers": containers}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _pod(
    job: TrainingJob,
    identity: JobIdentity,
    role: str,
    container: dict[str, Any],
    ours: dict[str, Any],
    *,
    template: dict[str, Any] | None,
    resources: ResourceRequirements | None,
) -> dict[str, Any]:
    """Merge the frame of every role's pod with the user's template, and then with what Shoal governs."""
    frame = _frame(job, role, container, resources)
    made = merged(frame, _with_parts(template or {}))
    governed = {
        "metadata": {"labels": own_labels(job, identity, role)},
        "spec": {
            "automountServiceAccountToken": False,
            "serviceAccountName": made["spec"].get("serviceAccountName", names(job)["account"]),
            "containers": [{"name": role, "env": [*_environment(job, identity, role), *ours["env"]]}],
        },
    }
    made = merged(made, governed)
    # The role's container is the first one: it is the default of `kubectl logs` and `kubectl exec`.
    made["spec"]["containers"].sort(key=lambda each: each.get("name") != role)
    _mount(made, "token", _secret(job, identity, "token"), f"{_FOLDER}/token")
    _give_scratch(made)
    return dict(made)


def _give_scratch(pod: dict[str, Any]) -> None:
    """Mount a writable /tmp if the root is read-only and the template has none: PyTorch and most libraries need it."""
    own = pod["spec"]["containers"][0]
    mounted = {posixpath.normpath(str(each.get("mountPath"))) for each in own.get("volumeMounts") or []}
    if (own.get("securityContext") or {}).get("readOnlyRootFilesystem") and _SCRATCH not in mounted:
        _mount(pod, "tmp", {"emptyDir": {}}, _SCRATCH, written=True)


def _with_parts(template: dict[str, Any]) -> dict[str, Any]:
    """Return a template without nulls that would remove a part that a pod must have."""
    found = {key: value for key, value in template.items() if value is not None}
    spec = found.get("spec", {})
    found["spec"] = {key: value for key, value in spec.items() if value is not None or key not in _NEEDED}
    return found


def _frame(
    job: TrainingJob, role: str, container: dict[str, Any], resources: ResourceRequirements | None
) -> dict[str, Any]:
    shared: dict[str, Any] = {"medium": "Memory"}
    if job.spec.shared_memory is not None:
        shared["sizeLimit"] = str(job.spec.shared_memory)
    asked = resources.model_dump(by_alias=True, exclude_unset=True, mode="json") if resources is not None else None
    return {
        "metadata": {},
        "spec": {
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": _GRACE_SECONDS[role],
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [{"name": "shoal-shm", "emptyDir": shared}],
            "containers": [
                _without_none(
                    {
                        "name": role,
                        **container,
                        "resources": asked,
                        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                        # The last lines of its output are then in the pod's status, for the job's conditions.
                        "terminationMessagePolicy": "FallbackToLogsOnError",
                        "volumeMounts": [{"name": "shoal-shm", "mountPath": "/dev/shm"}],  # noqa: S108 - the pod's own
                    }
                )
            ],
        },
    }  # fmt: skip


def _environment(job: TrainingJob, identity: JobIdentity, role: str) -> list[dict[str, Any]]:
    part = {"trainer": job.spec.trainer, "pserver": job.spec.parameter_server, "master": job.spec.master}[role]
    threads = []
    if part is not None and part.resources is not None and "cpu" in part.resources.requests:
        threads = [_env("OMP_NUM_THREADS", str(max(1, int(part.resources.requests["cpu"].amount))))]
    return [
        *threads,
        _env("PYTHONUNBUFFERED", "1"),
        _env("SHOAL_MASTER", f"tcp://{names(job)['master']}:{MASTER_PORT}"),
        _env("SHOAL_TOKEN_FILE", f"{_FOLDER}/token/token"),
        _env("SHOAL_UID", identity.uid),
        _env("SHOAL_ROLE", role),
    ]


def _secret(job: TrainingJob, identity: JobIdentity, what: str) -> dict[str, Any]:
    return {"secret": {"secretName": secret_name(job, identity, what), "defaultMode": 0o440}}


def _leaves_lost_nodes() -> list[dict[str, Any]]:
    return [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": _GONE_SECONDS,
        }
        for state in ("not-ready", "unreachable")
    ]


def _mount(pod: dict[str, Any], name: str, source: dict[str, Any] | None, path: str, *, written: bool = False) -> None:
    """Mount a volume in the role's container. Shoal's volumes are named `shoal-...`, so they never clash with a user's.

    Args:
        pod: The pod; it is changed.
        name: Name of the volume, without the prefix.
        source: Source of the volume. None: a claim template of the same name.
        path: Mount path in the container.
        written: Whether the container may write to the volume. Default: it may not.
    """
    if source is not None:
        pod["spec"]["volumes"].append({"name": f"shoal-{name}", **source})
    mount = {"name": f"shoal-{name}", "mountPath": path} | ({} if written else {"readOnly": True})
    pod["spec"]["containers"][0].setdefault("volumeMounts", []).append(mount)


def _probe(**numbers: int) -> dict[str, Any]:
    """Return an HTTP probe of the process, which reports whether it makes progress (`shoal.transport.liveness_probe`)."""
    return {"httpGet": {"path": "/", "port": PROBE_PORT}, "timeoutSeconds": 5, **numbers}


def _alive() -> dict[str, Any]:
    """Return the liveness probe. A process that fails it hangs, and would not use the grace period of an orderly exit."""
    return _probe(periodSeconds=10, failureThreshold=3, terminationGracePeriodSeconds=5)


def _starts() -> dict[str, Any]:
    """Return the startup probe, which delays the others: importing torch takes seconds, or 60 s on a slow disk."""
    return _probe(periodSeconds=1, failureThreshold=300)


def _env(name: str, value: str) -> dict[str, Any]:
    return {"name": name, "value": value}


def _without_none(mapping: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if value is not None}
