"""The TrainingJob: its fields, their defaults (defined only here), and the rules between them."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from shoal.api.base import Count, Model, Natural, Replicas, Template
from shoal.api.containers import CONTAINERS, container_of
from shoal.api.errors import Problem, RulesBrokenError
from shoal.api.metadata import Metadata
from shoal.api.types import Duration, Quantity

__all__ = [
    "API_VERSION",
    "KIND",
    "Checkpoint",
    "EmptyDir",
    "EnvVar",
    "Master",
    "Metadata",
    "Output",
    "ParameterServer",
    "ResourceRequirements",
    "RunPolicy",
    "Spec",
    "Trainer",
    "TrainingJob",
]

API_VERSION = "shoal.dev/v1alpha1"
KIND = "TrainingJob"
_CLAIM: Final[Template] = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Gi"}}}
"""Defaults of the PersistentVolumeClaimSpec for snapshots."""


class EnvVar(Model):
    """One variable of the trainers' environment."""

    name: str = Field(min_length=1, description="Name of the variable, such as OMP_NUM_THREADS.")
    value: str | None = Field(
        default=None,
        description='Its value, always text: numbers and true need quotes, as in "1". Not together with valueFrom.',
    )
    value_from: dict[str, Any] | None = Field(
        default=None,
        description="An EnvVarSource, as in pods: {secretKeyRef: {name: bucket, key: password}}. On one machine the value is "
        "that of the same variable in the environment of `shoal run`. Not together with value.",
    )

    @field_validator("name")
    @classmethod
    def _is_name(cls, value: str) -> str:
        if "=" in value or not value.isascii() or not value.isprintable():
            raise ValueError(f"{value!r} cannot name a variable; write letters, digits and '_'")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> EnvVar:
        if self.value is not None and self.value_from is not None:
            raise RulesBrokenError([Problem("valueFrom", "value is set too; keep one of them")])
        return self


class ResourceRequirements(Model):
    """Resource requests and limits of one process."""

    requests: dict[str, Quantity] = Field(
        default_factory=dict,
        description="Resources that are reserved for each process, and that the scheduler and the autoscaler calculate with: "
        '{cpu: "2", memory: 4Gi}. Quantities are text or whole numbers.',
    )
    limits: dict[str, Quantity] = Field(
        default_factory=dict,
        description="Resources that a process must not exceed: {memory: 4Gi}. A process that uses more memory is killed and "
        "replaced; extended resources such as nvidia.com/gpu are set here.",
    )


class Master(Model):
    """The job's master."""

    resources: ResourceRequirements | None = Field(
        default=None,
        description="Resources of the master. It computes nothing: {requests: {cpu: 100m, memory: 128Mi}} is enough for "
        "most jobs.",
    )
    template: Template | None = Field(
        default=None,
        description="PodTemplateSpec of the master's pod, for settings without a field of their own: node selectors, "
        "tolerations, pull secrets, volumes. Its container named master is merged with the other fields; a "
        "setting in both is refused.",
    )


class Trainer(Model):
    """Number and resources of the trainers."""

    min_replicas: Replicas = Field(
        default=1,
        description="Fewest trainers the job can use; it starts when there is room for these, and their pods are preempted "
        "last. May change at any time.",
    )
    max_replicas: Replicas | None = Field(
        default=None,
        description="Most trainers the job can use, if there is idle capacity. Unset: minReplicas, which makes the job's "
        "size fixed. May change at any time.",
    )
    replicas: Annotated[int, Field(ge=0, le=10_000, strict=True)] | None = Field(
        default=None,
        description="Pins the number of trainers, between minReplicas and maxReplicas. `kubectl scale tj/NAME "
        "--replicas=5` and a HorizontalPodAutoscaler set it; the latter needs an initial number. Unset: the number varies "
        "between the bounds. To un-pin: "
        """`kubectl patch tj/NAME --type=merge -p '{"spec":{"trainer":{"replicas":null}}}'`. 0 is refused; to pause """
        "a job set spec.suspend.",
    )
    resources: ResourceRequirements | None = Field(
        default=None,
        description='Resources of one trainer: {requests: {cpu: "1", memory: 1Gi}, limits: {nvidia.com/gpu: 1}}. The number '
        "of PyTorch's threads follows the cpu request. A change replaces trainers one by one.",
    )
    template: Template | None = Field(
        default=None,
        description="PodTemplateSpec of the trainers' pods, for settings without a field of their own: volumes, node "
        "selectors, tolerations, pull secrets, sidecars. Its container named trainer is merged with the other fields; a "
        "setting in both is refused. A change replaces trainers one by one, and no sample is lost.",
    )

    @property
    def most(self) -> int:
        """Upper bound of the number of trainers."""
        return self.max_replicas if self.max_replicas is not None else self.min_replicas

    @model_validator(mode="after")
    def _bounds(self) -> Trainer:
        low, high, pinned = self.min_replicas, self.most, self.replicas
        broken = []
        if low > high:
            fix = "lower minReplicas or raise maxReplicas"
            broken.append(Problem("minReplicas", f"{low} is more than maxReplicas {high}; {fix}"))
        if pinned == 0:
            broken.append(Problem("replicas", "0 trainers cannot train; to pause the job write `suspend: true`"))
        elif pinned is not None and low <= high and not low <= pinned <= high:
            between = f"minReplicas {low} and maxReplicas {high}"
            fix = "change it or the bounds, or leave it out"
            broken.append(Problem("replicas", f"{pinned} is not between {between}; {fix}"))
        if broken:
            raise RulesBrokenError(broken)
        return self


class EmptyDir(Model):
    """An emptyDir volume, as in pods: it is deleted with its pod."""

    medium: Literal["", "Memory"] | None = Field(
        default=None, description="Memory keeps the volume in memory. Unset: on the node's disk."
    )
    size_limit: Quantity | None = Field(default=None, description="Largest size of the volume, such as 10Gi.")


class ParameterServer(Model):
    """The parameter servers."""

    replicas: Replicas = Field(
        default=1,
        description="Number of parameter servers that share the parameters. The model with its optimizer's state must fit "
        "into their memory. It cannot change once the job exists.",
    )
    resources: ResourceRequirements | None = Field(
        default=None,
        description="Resources of one parameter server: its memory holds its share of parameters and optimizer state, and "
        "the cpu runs the optimizer.",
    )
    volume_claim_spec: Template | None = Field(
        default=None,
        description="PersistentVolumeClaimSpec of the volume for snapshots, one per server: {storageClassName: fast, "
        "resources: {requests: {storage: 50Gi}}}. Defaults, also for single fields: a claim of 10Gi of the "
        "cluster's default StorageClass. The claims are deleted only with the job. It cannot change once the job exists.",
    )
    empty_dir: EmptyDir | None = Field(
        default=None,
        description="Keeps the snapshots in the pods instead of on claims: {}. If a server's pod is deleted or its node is "
        "lost, that part of the model is lost and the job starts again from the beginning. It cannot be added or removed "
        "once the job exists.",
    )
    template: Template | None = Field(
        default=None,
        description="PodTemplateSpec of the parameter servers' pods, for settings without a field of their own. Its "
        "container named pserver is merged with the other fields; a setting in both is refused.",
    )

    @property
    def claim(self) -> dict[str, Any] | None:
        """PersistentVolumeClaimSpec of each server's snapshots; None: the snapshots are in an emptyDir volume."""
        if self.empty_dir is not None:
            return None
        asked = self.volume_claim_spec or {}
        return {**_CLAIM, **asked, "resources": {**_CLAIM["resources"], **(asked.get("resources") or {})}}

    @model_validator(mode="after")
    def _one_volume(self) -> ParameterServer:
        if self.empty_dir is not None and self.volume_claim_spec is not None:
            raise RulesBrokenError([Problem("emptyDir", "volumeClaimSpec is set too; keep one of them")])
        return self


def positive_duration(value: Duration) -> Duration:
    """Check that a duration is longer than zero, and return it.

    Raises:
        ValueError: The duration is zero.
    """
    if value.seconds <= 0:
        raise ValueError(f"{str(value)!r} must be longer than zero")
    return value


class Checkpoint(Model):
    """When the parameter servers write snapshots."""

    interval: Duration = Field(
        default=Duration("30s"),
        description="Time between two snapshots of a server, such as 30s, 1m30s or 500ms. If a server is lost, its steps "
        "since the last snapshot are computed again; no sample counts twice.",
    )
    keep: Count = Field(
        default=2,
        description="Number of snapshots that are kept of each part of the parameters; with 2 a job survives a damaged one.",
    )

    @field_validator("interval")
    @classmethod
    def _positive(cls, value: Duration) -> Duration:
        return positive_duration(value)


class Output(Model):
    """Destination of the trained model."""

    path: str = Field(
        min_length=1,
        description="Path of the file that job.save writes, such as model.safetensors; relative to the working directory, "
        "or to the volume of volumeClaimName. It cannot change once the job exists.",
    )
    volume_claim_name: str | None = Field(
        default=None,
        description="PersistentVolumeClaim in the job's namespace for the model's file. Ignored on one machine.",
    )


class RunPolicy(Model):
    """When a job fails, and when it is deleted."""

    active_deadline_seconds: Count | None = Field(
        default=None,
        description="Seconds after which the job fails with reason DeadlineExceeded. They are counted from the acceptance of "
        "the job, which includes a job that never starts, but not while the job is suspended or queued. Unset: no limit.",
    )
    ttl_seconds_after_finished: Natural | None = Field(
        default=None,
        description="Seconds after its end at which the job is deleted with all its objects; 0 deletes it at once. Unset: "
        "never.",
    )
    disruption_budget: Literal["Minimum", "None"] = Field(
        default="Minimum",
        description="Pods that the drain of a node does not evict. Minimum: minReplicas trainers, and parameter servers with "
        "snapshots in their pods (emptyDir). None: no pods; all of them may be evicted at any time.",
    )
    backoff_limit: Natural = Field(
        default=6,
        description="Number of consecutive failures of the script before the job fails. Killed pods, lost nodes and "
        "out-of-memory kills do not count, and each committed step resets the count to 0.",
    )
    step_timeout: Duration = Field(
        default=Duration("10m"),
        description="Longest time of a trainer's script for one batch, such as 10m. A trainer that exceeds it writes the "
        "stacks of its threads into its log, is terminated and started again; the job fails after three times on the same "
        "samples. The limit is three times as long for the first batch of a trainer, for job.evaluate, for job.save and "
        "between two epochs; a call of job.log in them restarts the time.",
    )

    @field_validator("step_timeout")
    @classmethod
    def _takes_time(cls, value: Duration) -> Duration:
        return positive_duration(value)


class Spec(Model):
    """Desired state of a job: command, processes, and duration."""

    image: str | None = Field(
        default=None,
        description="Image of every role, such as example.org/flights:1; it contains the script, its libraries and Shoal. "
        "Ignored on one machine, where the command runs as a process. A change replaces pods one by one.",
    )
    command: list[str] = Field(
        min_length=1,
        description="The training command as a list of strings: [python, train.py]. It does not run in a shell; for a shell "
        'write [sh, -c, "..."].',
    )
    args: list[str] = Field(
        default_factory=list, description='Arguments of the command: [--batch-size, "64"]. Numbers need quotes.'
    )
    env: list[EnvVar] = Field(
        default_factory=list, description="Environment of the trainers: [{name: DATA, value: /data}]. Each name once."
    )
    env_from: list[dict[str, Any]] = Field(
        default_factory=list,
        description="Sources of environment variables (EnvFromSource), as in pods: [{secretRef: {name: bucket}}].",
    )
    strategy: Literal["ParameterServer"] = Field(
        default="ParameterServer",
        description="How gradients are combined. ParameterServer: servers hold the parameters and apply each "
        "trainer's gradients when they arrive; requires the section parameterServer. It cannot change once the job "
        "exists.",
    )
    epochs: Count | None = Field(
        default=None,
        description="Number of epochs; every sample counts exactly once per epoch. Overrides the script's value. Unset: the "
        "script's value. It cannot change once the job exists.",
    )
    seed: Annotated[int, Field(ge=0, le=2**63 - 1, strict=True)] | None = Field(
        default=None,
        description="Seed of the samples' order and of the initial model. Overrides the script's value. Unset: the script's "
        "value. It cannot change once the job exists.",
    )
    trainer: Trainer = Field(
        default_factory=Trainer,
        description="The processes that run the training script: their number, its bounds, and their resources. "
        "{minReplicas: 2, maxReplicas: 8} makes the job elastic: trainers join and leave while it runs, without a "
        "restart of the others.",
    )
    parameter_server: ParameterServer | None = Field(
        default=None,
        description="The processes that hold the parameters and apply the optimizer; required by strategy ParameterServer. "
        "{} is one server; {replicas: 2} distributes the parameters over two.",
    )
    master: Master = Field(
        default_factory=Master,
        description="The process that distributes the samples, keeps the list of members and accounts for every sample. The "
        "other processes continue while it restarts.",
    )
    checkpoint: Checkpoint = Field(
        default_factory=Checkpoint,
        description="When the parameter servers write snapshots, from which a lost server or a suspended job resumes. "
        "{interval: 1m, keep: 2}",
    )
    output: Output | None = Field(
        default=None,
        description="Destination of the trained model, if the script saves one with job.save: {path: model.safetensors, "
        "volumeClaimName: models}. The job is complete only after the model is written.",
    )
    priority: str | None = Field(
        default=None,
        description="Name of a priority of the AutoscalerConfig, such as batch. When jobs compete, those of a higher priority "
        "get room first, and those of a lower priority are preempted.",
    )
    suspend: Annotated[bool, Field(strict=True)] = Field(
        default=False,
        description="true pauses the job: a snapshot is written, and all pods are deleted. false resumes the job from there; "
        "no sample is lost or counted twice.",
    )
    shared_memory: Quantity | None = Field(
        default=None,
        description="Size of /dev/shm in every pod, such as 2Gi: a memory volume, which counts as memory of the pod. Raise it "
        "if DataLoader workers end with a bus error.",
    )
    run_policy: RunPolicy = Field(
        default_factory=RunPolicy,
        description="When the job gives up, and what stays of it: {activeDeadlineSeconds: 86400, ttlSecondsAfterFinished: "
        "3600, backoffLimit: 6}.",
    )

    @field_validator("command")
    @classmethod
    def _names_a_program(cls, value: list[str]) -> list[str]:
        if not value[0].strip():
            raise ValueError("its first word is empty; name the program, such as python")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Spec:
        broken = []
        if self.parameter_server is None:
            fix = "add `parameterServer: {replicas: 1}`"
            broken.append(Problem("parameterServer", f"strategy ParameterServer needs this section; {fix}"))
        seen: set[str] = set()
        for number, variable in enumerate(self.env):
            if variable.name in seen:
                broken.append(Problem(f"env[{number}].name", f"{variable.name!r} is set twice; keep one"))
            seen.add(variable.name)
        for role, part in (
            ("trainer", self.trainer),
            ("parameterServer", self.parameter_server),
            ("master", self.master),
        ):
            if part is not None and part.template is not None:
                broken += self._conflict(role, part, part.template)
        if broken:
            raise RulesBrokenError(broken)
        return self

    def _conflict(self, role: str, part: Trainer | Master | ParameterServer, template: Template) -> list[Problem]:
        """Return the settings that both a field and the role's container in its template have."""
        short: dict[str, tuple[object, str]] = {
            "image": (self.image, "spec.image"),
            "resources": (part.resources, f"spec.{role}.resources"),
        }
        if role == "trainer":
            short |= {
                "command": (self.command, "spec.command"),
                "args": (self.args or None, "spec.args"),
                "env": (self.env or None, "spec.env"),
                "envFrom": (self.env_from or None, "spec.envFrom"),
            }
        path = f"{role}.template.spec.containers"
        try:
            found = container_of(template, CONTAINERS[role])
        except TypeError as error:
            return [Problem(f"{role}.template", str(error))]
        if found is None:
            return []
        number, container = found
        return [
            Problem(f"{path}[{number}].{key}", f"{where} sets it too; set it in one place")
            for key, (value, where) in short.items()
            if value is not None and key in container
        ]


class TrainingJob(Model):
    """An elastic training job: its number of trainers varies, and every sample counts exactly once per epoch."""

    api_version: Literal["shoal.dev/v1alpha1"] = Field(default="shoal.dev/v1alpha1", description="Version of the API.")
    kind: Literal["TrainingJob"] = Field(default="TrainingJob", description="Always TrainingJob.")
    metadata: Metadata = Field(description="Name and labels.")
    spec: Spec = Field(description="Desired state of the job: command, processes, and duration.")

    @property
    def servers(self) -> int:
        """Number of parameter servers."""
        return self.spec.parameter_server.replicas if self.spec.parameter_server is not None else 0

    def desired_trainers(self, cores: int | None = None) -> int:
        """Return the number of trainers without an autoscaler.

        Args:
            cores: Number of cores of the machine that the job runs on. Default: None, the job runs on a cluster.
        """
        trainer = self.spec.trainer
        if trainer.replicas is not None:
            return trainer.replicas
        if cores is None:
            return trainer.min_replicas
        return max(trainer.min_replicas, min(trainer.most, cores))

    def to_mapping(self) -> dict[str, Any]:
        """Return the manifest: camelCase, only the fields that were set."""
        return self.model_dump(by_alias=True, exclude_unset=True, mode="json") | {
            "apiVersion": self.api_version,
            "kind": self.kind,
        }
