"""The TrainingJob: its fields, their defaults (here and nowhere else), and what must hold between them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.alias_generators import to_camel

from shoal.api.types import Duration, Quantity

__all__ = [
    "API_VERSION",
    "KIND",
    "Checkpoint",
    "Master",
    "Metadata",
    "Output",
    "ParameterServer",
    "Resources",
    "RunPolicy",
    "Spec",
    "Trainer",
    "TrainingJob",
]

API_VERSION = "shoal.dev/v1alpha1"
KIND = "TrainingJob"
LONGEST_NAME = 40
"""So that the names of pods, claims and Services made from it stay below Kubernetes' 63 characters."""

Count = Annotated[int, Field(ge=1, strict=True)]
Natural = Annotated[int, Field(ge=0, strict=True)]
Template = dict[str, Any]


class Model(BaseModel):
    """What all parts of a manifest have in common: camelCase outside, unknown fields refused, never changed."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)
    order: ClassVar[tuple[str, ...]] = ()


class Metadata(Model):
    """Name and labels, as every Kubernetes object has them."""

    model_config = ConfigDict(extra="ignore")
    name: str = Field(description="Name of the job: lower-case letters, digits and '-', at most 40 characters.")
    namespace: str = Field(default="default", description="Namespace of the job.")
    labels: dict[str, str] = Field(default_factory=dict, description="Labels of the job.")
    annotations: dict[str, str] = Field(default_factory=dict, description="Annotations of the job.")

    @field_validator("name")
    @classmethod
    def _is_label(cls, value: str) -> str:
        allowed = set("abcdefghijklmnopqrstuvwxyz0123456789-")
        if not value or set(value) - allowed or value[0] == "-" or value[-1] == "-" or value[0].isdigit():
            raise ValueError(f"{value!r} must begin with a letter and have lower-case letters, digits and '-' only")
        if len(value) > LONGEST_NAME:
            raise ValueError(f"{value!r} has {len(value)} characters; at most {LONGEST_NAME} leave room for pod names")
        return value


class Resources(Model):
    """What one process asks for and may use."""

    requests: dict[str, Quantity] = Field(
        default_factory=dict, description="What is set aside, such as cpu and memory."
    )
    limits: dict[str, Quantity] = Field(default_factory=dict, description="What must not be exceeded.")


class Master(Model):
    """The job's master."""

    resources: Resources | None = Field(default=None, description="Resources of the master.")
    template: Template | None = Field(default=None, description="PodTemplateSpec; its container is named master.")


class Trainer(Model):
    """The trainers: how many, and how large."""

    min_replicas: Count = Field(default=1, description="Fewest trainers the job can use.")
    max_replicas: Count | None = Field(default=None, description="Most trainers the job can use; minReplicas if unset.")
    replicas: Natural | None = Field(
        default=None, description="Pins the number of trainers (kubectl scale sets it); unset: between the bounds."
    )
    resources: Resources | None = Field(default=None, description="Resources of one trainer.")
    template: Template | None = Field(default=None, description="PodTemplateSpec; its container is named trainer.")

    @property
    def most(self) -> int:
        """The upper bound."""
        return self.max_replicas if self.max_replicas is not None else max(self.min_replicas, self.replicas or 0)

    @model_validator(mode="after")
    def _bounds(self) -> Trainer:
        if self.max_replicas is not None and self.min_replicas > self.max_replicas:
            raise ValueError(
                f"@minReplicas: {self.min_replicas} is more than maxReplicas {self.max_replicas}; "
                "lower minReplicas or raise maxReplicas"
            )
        if self.replicas == 0:
            raise ValueError("@replicas: 0 trainers cannot train; to pause the job use `suspend: true`")
        if self.replicas is not None and not self.min_replicas <= self.replicas <= self.most:
            raise ValueError(
                f"@replicas: {self.replicas} is not between minReplicas {self.min_replicas} and maxReplicas {self.most}; "
                "change it, the bounds, or leave replicas out"
            )
        return self


class ParameterServer(Model):
    """The parameter servers."""

    replicas: Count = Field(default=1, description="How many parameter servers hold the parameters.")
    resources: Resources | None = Field(default=None, description="Resources of one parameter server.")
    volume_claim_spec: Template | None = Field(
        default=None, description="PersistentVolumeClaimSpec of the volume for snapshots, one per server."
    )
    template: Template | None = Field(default=None, description="PodTemplateSpec; its container is named pserver.")


class Checkpoint(Model):
    """When the parameter servers write snapshots."""

    interval: Duration = Field(default=Duration("30s"), description="Time between two snapshots of a server.")
    keep: Count = Field(default=2, description="How many snapshots of each slot are kept.")

    @field_validator("interval")
    @classmethod
    def _positive(cls, value: Duration) -> Duration:
        if value.seconds <= 0:
            raise ValueError(f"{value!r} must be longer than nothing")
        return value


class Output(Model):
    """Where the trained model goes."""

    path: str = Field(min_length=1, description="File that job.save writes; relative to the working directory.")
    volume_claim_name: str | None = Field(default=None, description="Claim that is mounted for it on a cluster.")


class RunPolicy(Model):
    """When a job gives up, and what stays of it."""

    active_deadline_seconds: Count | None = Field(default=None, description="Seconds after which the job fails.")
    ttl_seconds_after_finished: Natural | None = Field(
        default=None, description="Seconds after its end at which the job is removed; unset: never."
    )
    backoff_limit: Natural = Field(
        default=6, description="How often in a row the script may end by an error of its own without progress."
    )


class Spec(Model):
    """What is trained, by how many, and for how long."""

    image: str | None = Field(default=None, description="Image of every role; ignored on one machine.")
    command: list[str] = Field(min_length=1, description="The training command, such as [python, train.py].")
    args: list[str] = Field(default_factory=list, description="Arguments behind the command.")
    env: list[dict[str, Any]] = Field(default_factory=list, description="Environment of the trainers (EnvVar).")
    env_from: list[dict[str, Any]] = Field(default_factory=list, description="Environment sources (EnvFromSource).")
    strategy: Literal["ParameterServer"] = Field(default="ParameterServer", description="How gradients are combined.")
    epochs: Count | None = Field(default=None, description="How often every sample counts; unset: as the script says.")
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] | None = Field(
        default=None, description="Seed of the samples' order and of the initial model; unset: as the script says."
    )
    trainer: Trainer = Field(default_factory=Trainer, description="The trainers.")
    parameter_server: ParameterServer | None = Field(default=None, description="The parameter servers.")
    master: Master = Field(default_factory=Master, description="The master.")
    checkpoint: Checkpoint = Field(default_factory=Checkpoint, description="Snapshots of the parameters.")
    output: Output | None = Field(default=None, description="Where the trained model goes.")
    priority: str | None = Field(default=None, description="Name of a priority of the AutoscalerConfig.")
    suspend: Annotated[bool, Field(strict=True)] = Field(default=False, description="Whether the job is paused.")
    shared_memory: Quantity | None = Field(default=None, description="Size of /dev/shm in every pod.")
    run_policy: RunPolicy = Field(default_factory=RunPolicy, description="When the job gives up.")

    @model_validator(mode="after")
    def _consistent(self) -> Spec:
        if self.parameter_server is None:
            raise ValueError(
                "@parameterServer: strategy ParameterServer needs this section; add `parameterServer: {replicas: 1}`"
            )
        for role, part in (
            ("trainer", self.trainer),
            ("master", self.master),
            ("parameterServer", self.parameter_server),
        ):
            self._once(role, part)
        return self

    def _once(self, role: str, part: Trainer | Master | ParameterServer) -> None:
        """The short form and the template must not set the same thing."""
        name = "pserver" if role == "parameterServer" else role
        container = container_of(part.template, name)
        short: dict[str, tuple[object, str]] = {
            "resources": (part.resources, f"spec.{role}.resources"),
            "image": (self.image, "spec.image"),
        }
        if role == "trainer":
            short |= {
                "command": (self.command, "spec.command"),
                "args": (self.args or None, "spec.args"),
                "env": (self.env or None, "spec.env"),
                "envFrom": (self.env_from or None, "spec.envFrom"),
            }
        for key, (value, path) in short.items():
            if value is not None and key in container:
                raise ValueError(
                    f"@{role}.template: its container {name} sets {key}, and so does {path}; set it in one place"
                )


def container_of(template: Template | None, name: str) -> dict[str, Any]:
    """The role's container in a pod template; empty if there is none."""
    spec = (template or {}).get("spec")
    containers = spec.get("containers") if isinstance(spec, dict) else None
    if not isinstance(containers, list):
        return {}
    return next((c for c in containers if isinstance(c, dict) and c.get("name") == name), {})


class TrainingJob(Model):
    """One training job: elastic between its bounds, every sample counted once per epoch."""

    api_version: Literal["shoal.dev/v1alpha1"] = Field(default="shoal.dev/v1alpha1", description="Version of the API.")
    kind: Literal["TrainingJob"] = Field(default="TrainingJob", description="Always TrainingJob.")
    metadata: Metadata = Field(description="Name and labels.")
    spec: Spec = Field(description="What is trained.")

    @property
    def servers(self) -> int:
        """How many parameter servers there are."""
        return self.spec.parameter_server.replicas if self.spec.parameter_server is not None else 0

    def wanted_trainers(self, cores: int | None = None) -> int:
        """How many trainers there should be without an autoscaler.

        Args:
            cores: Of the one machine that the job runs on; None on a cluster.
        """
        trainer = self.spec.trainer
        if trainer.replicas is not None:
            return trainer.replicas
        if cores is None:
            return trainer.min_replicas
        return max(trainer.min_replicas, min(trainer.most, cores))

    def to_mapping(self) -> dict[str, Any]:
        """As a manifest: camelCase, only what was set."""
        return self.model_dump(by_alias=True, exclude_unset=True, mode="json") | {
            "apiVersion": self.api_version,
            "kind": self.kind,
        }
