"""The TrainingJob: its fields, their defaults (here and nowhere else), and what must hold between them."""

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
    "Resources",
    "RunPolicy",
    "Spec",
    "Trainer",
    "TrainingJob",
]

API_VERSION = "shoal.dev/v1alpha1"
KIND = "TrainingJob"
_CLAIM: Final[Template] = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Gi"}}}
"""What a claim for snapshots asks for, where a job does not say it."""


class EnvVar(Model):
    """One variable of the trainers' environment."""

    name: str = Field(min_length=1, description="Name of the variable, such as OMP_NUM_THREADS.")
    value: str | None = Field(
        default=None,
        description='Its value, always text: numbers and true need quotes, as in "1". Not together with valueFrom.',
    )
    value_from: dict[str, Any] | None = Field(
        default=None,
        description="An EnvVarSource, as in pods: {secretKeyRef: {name: bucket, key: password}}. On one machine it is the "
        "variable of that name of who runs the job. Not together with value.",
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


class Resources(Model):
    """What one process asks for and may use."""

    requests: dict[str, Quantity] = Field(
        default_factory=dict,
        description='What is set aside for each process, and what the scheduler and the autoscaler count with: {cpu: "2", '
        "memory: 4Gi}. Quantities are text or whole numbers.",
    )
    limits: dict[str, Quantity] = Field(
        default_factory=dict,
        description="What a process must not exceed: {memory: 4Gi}. One that takes more memory is killed and replaced; "
        "extended resources such as nvidia.com/gpu are set here.",
    )


class Master(Model):
    """The job's master."""

    resources: Resources | None = Field(
        default=None,
        description="Resources of the master. It computes nothing: {requests: {cpu: 100m, memory: 128Mi}} is enough for "
        "most jobs.",
    )
    template: Template | None = Field(
        default=None,
        description="PodTemplateSpec of the master's pod, for what the short form cannot say: node selectors, "
        "tolerations, pull secrets, volumes. Its container named master is merged with the short form; the "
        "same thing set in both is refused.",
    )


class Trainer(Model):
    """The trainers: how many, and how large."""

    min_replicas: Replicas = Field(
        default=1,
        description="Fewest trainers the job can use; it starts when there is room for these, and their pods are the last "
        "to give way. May change at any time.",
    )
    max_replicas: Replicas | None = Field(
        default=None,
        description="Most trainers the job can use, where idle capacity allows; minReplicas if unset, which makes the "
        "job's size fixed. May change at any time.",
    )
    replicas: Annotated[int, Field(ge=0, le=10_000, strict=True)] | None = Field(
        default=None,
        description="Pins the number of trainers, between minReplicas and maxReplicas; `kubectl scale tj/NAME "
        "--replicas=5` and a HorizontalPodAutoscaler set it; the latter needs a number to begin with. Unset, the number moves "
        "between the bounds. To un-pin: "
        """`kubectl patch tj/NAME --type=merge -p '{"spec":{"trainer":{"replicas":null}}}'`. 0 is refused; to pause """
        "a job set spec.suspend.",
    )
    resources: Resources | None = Field(
        default=None,
        description='Resources of one trainer: {requests: {cpu: "1", memory: 1Gi}, limits: {nvidia.com/gpu: 1}}. Threads '
        "of PyTorch follow the cpu request. A change replaces trainers one by one.",
    )
    template: Template | None = Field(
        default=None,
        description="PodTemplateSpec of the trainers' pods, for what the short form cannot say: volumes, node selectors, "
        "tolerations, pull secrets, sidecars. Its container named trainer is merged with the short form; the "
        "same thing set in both is refused. A change replaces trainers one by one, and no sample is lost.",
    )

    @property
    def most(self) -> int:
        """The upper bound."""
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
    """A volume that lives and dies with its pod, as in pods."""

    medium: Literal["", "Memory"] | None = Field(
        default=None, description="Memory keeps it in memory; unset, on the node's disk."
    )
    size_limit: Quantity | None = Field(default=None, description="Most bytes that it may hold, such as 10Gi.")


class ParameterServer(Model):
    """The parameter servers."""

    replicas: Replicas = Field(
        default=1,
        description="How many parameter servers share the parameters. Take so many that the model with its optimizer's "
        "state fits into their memory. It cannot change once the job exists.",
    )
    resources: Resources | None = Field(
        default=None,
        description="Resources of one parameter server: its memory holds its share of parameters and optimizer state, and "
        "the cpu runs the optimizer.",
    )
    volume_claim_spec: Template | None = Field(
        default=None,
        description="PersistentVolumeClaimSpec of the volume for snapshots, one per server: {storageClassName: fast, "
        "resources: {requests: {storage: 50Gi}}}. Unset, or where it leaves something out: a claim of 10Gi of the "
        "cluster's default StorageClass. The claims are deleted with the job, and with nothing else. It cannot change "
        "once the job exists.",
    )
    empty_dir: EmptyDir | None = Field(
        default=None,
        description="Keeps the snapshots in the pods instead of on claims: {}. A server's pod that is deleted or whose node "
        "is lost takes its part of the model with it, and the job begins again. It cannot be added or removed once "
        "the job exists.",
    )
    template: Template | None = Field(
        default=None,
        description="PodTemplateSpec of the parameter servers' pods, for what the short form cannot say. Its container "
        "named pserver is merged with the short form; the same thing set in both is refused.",
    )

    @property
    def claim(self) -> dict[str, Any] | None:
        """The PersistentVolumeClaimSpec of each server's snapshots; None: they lie in the pods."""
        if self.empty_dir is not None:
            return None
        asked = self.volume_claim_spec or {}
        return {**_CLAIM, **asked, "resources": {**_CLAIM["resources"], **(asked.get("resources") or {})}}

    @model_validator(mode="after")
    def _one_volume(self) -> ParameterServer:
        if self.empty_dir is not None and self.volume_claim_spec is not None:
            raise RulesBrokenError([Problem("emptyDir", "volumeClaimSpec is set too; keep one of them")])
        return self


def longer_than_nothing(value: Duration) -> Duration:
    """The same duration.

    Raises:
        ValueError: It is none.
    """
    if value.seconds <= 0:
        raise ValueError(f"{str(value)!r} must be longer than nothing")
    return value


class Checkpoint(Model):
    """When the parameter servers write snapshots."""

    interval: Duration = Field(
        default=Duration("30s"),
        description="Time between two snapshots of a server, such as 30s, 1m30s or 500ms. What was trained after the last "
        "snapshot of a server that is lost is trained again; no sample counts twice.",
    )
    keep: Count = Field(
        default=2,
        description="How many snapshots of each part of the parameters are kept; two let a job survive a damaged one.",
    )

    @field_validator("interval")
    @classmethod
    def _positive(cls, value: Duration) -> Duration:
        return longer_than_nothing(value)


class Output(Model):
    """Where the trained model goes."""

    path: str = Field(
        min_length=1,
        description="File that job.save writes, such as model.safetensors; relative to the working directory, or to the "
        "volume of volumeClaimName. It cannot change once the job exists.",
    )
    volume_claim_name: str | None = Field(
        default=None,
        description="PersistentVolumeClaim in the job's namespace that the model is written to. Ignored on one machine.",
    )


class RunPolicy(Model):
    """When a job gives up, and what stays of it."""

    active_deadline_seconds: Count | None = Field(
        default=None,
        description="Seconds after which the job fails with reason DeadlineExceeded, counted from when it was accepted, so "
        "that it ends a job that never starts, too; the clock stands while the job is suspended or queued. Unset: no "
        "limit.",
    )
    ttl_seconds_after_finished: Natural | None = Field(
        default=None,
        description="Seconds after its end at which the job is removed with all that belongs to it; 0 removes it at once. "
        "Unset: never.",
    )
    disruption_budget: Literal["Minimum", "None"] = Field(
        default="Minimum",
        description="What a drain of a node leaves to the job. Minimum: minReplicas trainers, and parameter servers whose "
        "snapshots lie in their pods (emptyDir). None: nothing; all of its pods may be evicted at any time.",
    )
    backoff_limit: Natural = Field(
        default=6,
        description="How often in a row the script may end by an error of its own before the job fails. Killed pods, lost "
        "nodes and memory kills do not count, and each committed step sets the count back to 0.",
    )
    step_timeout: Duration = Field(
        default=Duration("10m"),
        description="How long a trainer's script may take for one batch, such as 10m. A trainer that comes no further for so "
        "long writes the stacks of its threads into its log, is ended and started again; three times on the same samples fail "
        "the job. The first batch of a trainer, job.evaluate, job.save and what a script does between two epochs may each take "
        "three times as long; job.log in them starts the clock anew.",
    )

    @field_validator("step_timeout")
    @classmethod
    def _takes_time(cls, value: Duration) -> Duration:
        return longer_than_nothing(value)


class Spec(Model):
    """What is trained, by how many, and for how long."""

    image: str | None = Field(
        default=None,
        description="Image of every role, such as example.org/flights:1; it holds the script, its libraries and Shoal. "
        "Ignored on one machine, where the command runs as a process. A change replaces pods one by one.",
    )
    command: list[str] = Field(
        min_length=1,
        description="The training command as a list of words: [python, train.py]. No shell reads it; for one write [sh, "
        '-c, "..."].',
    )
    args: list[str] = Field(
        default_factory=list, description='Arguments behind the command: [--batch-size, "64"]. Numbers need quotes.'
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
        description="How gradients become one model. ParameterServer: servers hold the parameters and apply each "
        "trainer's gradients as they come; needs the section parameterServer. It cannot change once the job "
        "exists.",
    )
    epochs: Count | None = Field(
        default=None,
        description="How often every sample counts, each exactly once per epoch; wins over what the script says. Unset: "
        "as the script says. It cannot change once the job exists.",
    )
    seed: Annotated[int, Field(ge=0, le=2**63 - 1, strict=True)] | None = Field(
        default=None,
        description="Seed of the samples' order and of the initial model; wins over what the script says. Unset: as the "
        "script says. It cannot change once the job exists.",
    )
    trainer: Trainer = Field(
        default_factory=Trainer,
        description="The processes that run the training script: how many, between which bounds, and how large. "
        "{minReplicas: 2, maxReplicas: 8} makes the job elastic: trainers join and leave while it runs, and "
        "those that stay are never restarted.",
    )
    parameter_server: ParameterServer | None = Field(
        default=None,
        description="The processes that hold the parameters and apply the optimizer, as strategy ParameterServer needs "
        "them. {} is one server; {replicas: 2} shares the parameters over two.",
    )
    master: Master = Field(
        default_factory=Master,
        description="The one process that hands out the samples, knows who belongs to the job, and keeps the account. It "
        "may die at any time; the others go on meanwhile.",
    )
    checkpoint: Checkpoint = Field(
        default_factory=Checkpoint,
        description="When the parameter servers write snapshots, from which a lost server or a suspended job goes on. "
        "{interval: 1m, keep: 2}",
    )
    output: Output | None = Field(
        default=None,
        description="Where the trained model goes, when the script saves one with job.save: {path: model.safetensors, "
        "volumeClaimName: models}. The job is complete only after it has been written.",
    )
    priority: str | None = Field(
        default=None,
        description="Name of a priority of the AutoscalerConfig, such as batch: who gets room first when jobs compete, "
        "and who gives way.",
    )
    suspend: Annotated[bool, Field(strict=True)] = Field(
        default=False,
        description="true pauses the job: a snapshot is written, and every pod leaves. false goes on from there, with no "
        "sample lost or counted twice.",
    )
    shared_memory: Quantity | None = Field(
        default=None,
        description="Size of /dev/shm in every pod, such as 2Gi: a memory volume, which counts as the pod's memory. Raise "
        "it when DataLoader workers end with a bus error.",
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
                broken += self._said_twice(role, part, part.template)
        if broken:
            raise RulesBrokenError(broken)
        return self

    def _said_twice(self, role: str, part: Trainer | Master | ParameterServer, template: Template) -> list[Problem]:
        """What both the short form and the role's container in its template set."""
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
    """One training job: elastic between its bounds, every sample counted once per epoch."""

    api_version: Literal["shoal.dev/v1alpha1"] = Field(default="shoal.dev/v1alpha1", description="Version of the API.")
    kind: Literal["TrainingJob"] = Field(default="TrainingJob", description="Always TrainingJob.")
    metadata: Metadata = Field(description="Name and labels.")
    spec: Spec = Field(description="What is trained, by how many, and for how long: what the user wants.")

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
