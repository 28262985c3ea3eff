"""Valid and invalid manifests as data, for the two validators: the types in Python, and the API server's own code.

GOOD      name, manifest: accepted by both
BAD       name, manifest, words: refused by both immediately; both messages contain the words
LATE      name, manifest, words: refused by the types; no schema covers it, so that on a cluster the operator reports it
STRICTER  name, manifest, words: accepted by the types, refused by an API server
CHANGES   name, before, after, words: an update; refused with these words, or accepted if there are none
"""

import copy
from typing import Any

Manifest = dict[str, Any]


def job(name: str = "flights", **spec: Any) -> Manifest:
    """Return a valid manifest with these parts in its spec; a part that is None is omitted."""
    parts = {"command": ["python", "train.py"], "parameterServer": {}, **spec}
    return {
        "apiVersion": "shoal.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name},
        "spec": {key: value for key, value in parts.items() if value is not None},
    }


def without(manifest: Manifest, *path: str) -> Manifest:
    """Return the manifest without one field."""
    made = copy.deepcopy(manifest)
    at = made
    for part in path[:-1]:
        at = at[part]
    del at[path[-1]]
    return made


FULL = job(
    image="example.org/flights:1",
    args=["--lr", "0.1"],
    env=[
        {"name": "MODE", "value": "fast"},
        {"name": "with spaces and (", "value": ""},
        {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "bucket", "key": "password"}}},
    ],
    envFrom=[{"secretRef": {"name": "bucket"}}],
    strategy="ParameterServer",
    epochs=3,
    seed=7,
    trainer={
        "minReplicas": 2,
        "maxReplicas": 8,
        "replicas": 5,
        "resources": {"requests": {"cpu": 1, "memory": "1Gi"}, "limits": {"nvidia.com/gpu": "1"}},
        "template": {
            "metadata": {"labels": {"team": "a"}},
            "spec": {"nodeSelector": {"pool": "gpu"}, "containers": [{"name": "trainer", "tty": True}]},
        },
    },
    parameterServer={
        "replicas": 2,
        "resources": {"requests": {"cpu": "500m"}},
        "volumeClaimSpec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Gi"}}},
    },
    master={"resources": {"limits": {"memory": "256Mi"}}},
    checkpoint={"interval": "1m30s", "keep": 3},
    output={"path": "model.safetensors", "volumeClaimName": "models"},
    priority="batch",
    suspend=True,
    sharedMemory="2Gi",
    runPolicy={"activeDeadlineSeconds": 86400, "ttlSecondsAfterFinished": 0, "backoffLimit": 0},
)

GOOD: list[tuple[str, Manifest]] = [
    ("the least", job()),
    ("everything", FULL),
    ("the longest name", job("f" * 39)),
    ("the shortest name", job("f")),
    ("nulls", job() | {"spec": {**job()["spec"], "trainer": None, "epochs": None, "env": None}}),
    ("empty sections", job(trainer={}, master={}, checkpoint={}, runPolicy={}, env=[], args=[])),
    ("elastic", job(trainer={"minReplicas": 2, "maxReplicas": 8})),
    ("a fixed size", job(trainer={"minReplicas": 4})),
    ("pinned at the minimum", job(trainer={"minReplicas": 2, "maxReplicas": 8, "replicas": 2})),
    ("pinned at the maximum", job(trainer={"minReplicas": 2, "maxReplicas": 8, "replicas": 8})),
    ("as many as there may be", job(trainer={"minReplicas": 10_000}, parameterServer={"replicas": 10_000})),
    ("the largest seed", job(seed=2**63 - 1)),
    ("the smallest seed", job(seed=0)),
    ("many epochs", job(epochs=2**53)),
    ("a duration in parts", job(checkpoint={"interval": "1h1.5m0.25s500ms"})),
    ("the shortest duration", job(checkpoint={"interval": "0.000000000001ms"})),
    ("100 years", job(checkpoint={"interval": "876000h"})),
    *((f"sharedMemory {value}", job(sharedMemory=value)) for value in ("1.", ".5Gi", "+1", "1e3", "1E-2", "0", 0, "-0", "7Ei", 2**53)),
    ("an extended resource", job(trainer={"resources": {"limits": {"example.org/fpga-2": "3"}}})),
    ("a template of anything", job(master={"template": {"spec": {"containers": [], "x": [1, {"y": None}]}}})),
]  # fmt: skip

_LONG = "2562047788015215502499h"

BAD: list[tuple[str, Manifest, tuple[str, ...]]] = [
    # unknown and misspelt
    ("a misspelt field", job(trainer={"minReplica": 2}), ("unknown field", "spec.trainer.minReplica")),
    ("a field elsewhere", job(backoffLimit=3), ("unknown field", "spec.backoffLimit")),
    ("a misspelt label", job() | {"metadata": {"name": "a", "lables": {}}}, ("unknown field", "metadata.lables")),
    ("an unknown part of env", job(env=[{"name": "A", "values": "x"}]), ("unknown field", "spec.env[0].values")),
    # wrong types
    ("epochs as text", job(epochs="3"), ("spec.epochs",)),
    ("epochs as a fraction", job(epochs=3.5), ("spec.epochs",)),
    ("suspend as text", job(suspend="yes"), ("spec.suspend",)),
    ("command as text", job(command="python train.py"), ("spec.command",)),
    ("a number among args", job(args=["--lr", 0.1]), ("spec.args[1]",)),
    ("a number in env", job(env=[{"name": "DEBUG", "value": 1}]), ("spec.env[0].value",)),
    ("trainer as a number", job(trainer=3), ("spec.trainer",)),
    ("a template that is a list", job(trainer={"template": []}), ("spec.trainer.template",)),
    # missing
    ("no spec", without(job(), "spec"), ("spec",)),
    ("no command", job(command=None), ("spec.command",)),
    ("no name in env", job(env=[{"value": "x"}]), ("spec.env[0].name",)),
    ("no path in output", job(output={"volumeClaimName": "models"}), ("spec.output.path",)),
    ("strategy without its section", job(parameterServer=None),
     ("spec.parameterServer", "strategy ParameterServer needs this section; add `parameterServer: {replicas: 1}`")),
    # out of bounds
    ("no epochs", job(epochs=0), ("spec.epochs",)),
    ("a negative seed", job(seed=-1), ("spec.seed",)),
    ("a seed that is too large", job(seed=2**63), ("spec.seed",)),
    ("too many servers", job(parameterServer={"replicas": 10_001}), ("spec.parameterServer.replicas",)),
    ("no servers", job(parameterServer={"replicas": 0}), ("spec.parameterServer.replicas",)),
    ("too many trainers", job(trainer={"minReplicas": 99_999}), ("spec.trainer.minReplicas",)),
    ("at least no trainers", job(trainer={"minReplicas": 0, "maxReplicas": 2}), ("spec.trainer.minReplicas",)),
    ("at most no trainers", job(trainer={"maxReplicas": 0}), ("spec.trainer.maxReplicas",)),
    ("at most too many", job(trainer={"maxReplicas": 10_001}), ("spec.trainer.maxReplicas",)),
    ("removed before its end", job(runPolicy={"ttlSecondsAfterFinished": -1}), ("spec.runPolicy.ttlSecondsAfterFinished",)),
    ("a negative pin", job(trainer={"replicas": -1}), ("spec.trainer.replicas",)),
    ("no snapshots", job(checkpoint={"keep": 0}), ("spec.checkpoint.keep",)),
    ("no time for a step", job(runPolicy={"stepTimeout": "0s"}), ("spec.runPolicy.stepTimeout", "longer than zero")),
    ("a time without its unit", job(runPolicy={"stepTimeout": "10"}), ("spec.runPolicy.stepTimeout",)),
    ("a negative limit", job(runPolicy={"backoffLimit": -1}), ("spec.runPolicy.backoffLimit",)),
    ("no deadline at all", job(runPolicy={"activeDeadlineSeconds": 0}), ("spec.runPolicy.activeDeadlineSeconds",)),
    ("an empty command", job(command=[]), ("spec.command",)),
    ("an empty program", job(command=["", "x"]),
     ("spec.command", "its first word is empty; name the program, such as python")),
    ("a program of spaces", job(command=[" \t\n"]), ("spec.command", "its first word is empty")),
    ("an empty path", job(output={"path": ""}), ("spec.output.path",)),
    ("an unknown strategy", job(strategy="AllReduce"), ("spec.strategy", "ParameterServer")),
    # durations and quantities
    ("a bare number", job(checkpoint={"interval": 30}), ("spec.checkpoint.interval",)),
    ("days", job(checkpoint={"interval": "1d"}),
     ("spec.checkpoint.interval", 'is not a duration such as "30s", "1m30s" or "500ms"')),
    ("an empty duration", job(checkpoint={"interval": ""}), ("spec.checkpoint.interval", "is not a duration")),
    ("no time", job(checkpoint={"interval": "0s"}), ("spec.checkpoint.interval", "must be longer than zero")),
    ("0h0.0m", job(checkpoint={"interval": "0h0.0m"}), ("spec.checkpoint.interval", "must be longer than zero")),
    ("101 years", job(checkpoint={"interval": "884760h"}), ("spec.checkpoint.interval", "is longer than 100 years")),
    ("longer than all time", job(checkpoint={"interval": _LONG}),
     ("spec.checkpoint.interval", "is longer than 100 years")),
    ("a long duration", job(checkpoint={"interval": "0" * 40 + "1s"}), ("spec.checkpoint.interval",)),
    ("a long quantity", job(sharedMemory="0" * 40 + "1"), ("spec.sharedMemory",)),
    ("a long exponent", job(sharedMemory="1e-100"), ("spec.sharedMemory",)),
    ("a quantity with a space", job(sharedMemory="1 GB"),
     ("spec.sharedMemory", 'is not a quantity such as "1", "500m" or "1Gi"')),
    ("a quantity that is true", job(sharedMemory=True), ("spec.sharedMemory",)),
    ("a negative quantity", job(sharedMemory="-1Gi"), ("spec.sharedMemory", "is negative")),
    ("a negative number", job(sharedMemory=-1), ("spec.sharedMemory", "is negative")),
    ("too large a quantity", job(sharedMemory="1e99"), ("spec.sharedMemory", "is too large; the most is 2^63 - 1")),
    *((f"{kind} of {role}", job(**{role: {"resources": {kind: {"cpu": "-1"}}}}),
       (f"spec.{role}.resources.{kind}", "is negative"))
      for role in ("trainer", "parameterServer", "master") for kind in ("requests", "limits")),
    # between fields
    ("more at least than at most", job(trainer={"minReplicas": 4, "maxReplicas": 2}),
     ("spec.trainer.minReplicas", "is more than maxReplicas", "lower minReplicas or raise maxReplicas")),
    ("a pin above", job(trainer={"minReplicas": 2, "maxReplicas": 4, "replicas": 7}),
     ("spec.trainer.replicas", "is not between minReplicas", "change it or the bounds, or leave it out")),
    ("a pin below", job(trainer={"minReplicas": 2, "maxReplicas": 4, "replicas": 1}),
     ("spec.trainer.replicas", "is not between minReplicas")),
    ("a pin above a fixed size", job(trainer={"minReplicas": 2, "replicas": 3}),
     ("spec.trainer.replicas", "is not between minReplicas")),
    ("pinned to nothing", job(trainer={"replicas": 0}),
     ("spec.trainer.replicas", "0 trainers cannot train; to pause the job write `suspend: true`")),
    ("two sources", job(env=[{"name": "A"}, {"name": "B", "value": "x", "valueFrom": {}}]),
     ("spec.env[1].valueFrom", "value is set too; keep one of them")),
    ("a variable twice", job(env=[{"name": "A"}, {"name": "B"}, {"name": "A", "value": "x"}]), ("spec.env[2]",)),
    ("no name of a variable", job(env=[{"name": "A=B"}]),
     ("spec.env[0].name", "cannot name a variable; write letters, digits and '_'")),
    ("an umlaut in a variable", job(env=[{"name": "Ä"}]), ("spec.env[0].name", "cannot name a variable")),
    ("an empty variable", job(env=[{"name": ""}]), ("spec.env[0].name",)),
    # names
    ("a long name", job("f" * 40), ("metadata.name", "at most 39 leave room for pod names")),
    ("the longest name of all", job("f" * 253), ("metadata.name", "at most 39 leave room for pod names")),
    ("capitals and others", job("Flights_1"),
     ("metadata.name", "must begin with a letter and have lower-case letters, digits and '-' only")),
    ("a digit first", job("1st"), ("metadata.name", "must begin with a letter")),
    ("a dot", job("a.b"), ("metadata.name", "must begin with a letter")),
    ("a dash at the end", job("a-"), ("metadata.name", "must begin with a letter")),
]  # fmt: skip

LATE: list[tuple[str, Manifest, tuple[str, ...]]] = [
    ("an image in two places",
     job(image="a:1", trainer={"template": {"spec": {"containers": [{"name": "log"}, {"name": "trainer", "image": "b"}]}}}),
     ("spec.trainer.template.spec.containers[1].image", "spec.image sets it too; set it in one place")),
    ("a command in two places",
     job(trainer={"template": {"spec": {"containers": [{"name": "trainer", "command": ["x"]}]}}}),
     ("spec.trainer.template.spec.containers[0].command", "spec.command sets it too; set it in one place")),
    ("resources in two places",
     job(master={"resources": {}, "template": {"spec": {"containers": [{"name": "master", "resources": {}}]}}}),
     ("spec.master.template.spec.containers[0].resources", "spec.master.resources sets it too")),
    ("containers that are no list", job(parameterServer={"template": {"spec": {"containers": {}}}}),
     ("spec.parameterServer.template", "its spec.containers is not a list of mappings; write a PodTemplateSpec")),
    ("a spec that is no mapping", job(trainer={"template": {"spec": 1}}),
     ("spec.trainer.template", "its spec is not a mapping; write a PodTemplateSpec")),
]  # fmt: skip

STRICTER: list[tuple[str, Manifest, tuple[str, ...]]] = [
    # x-kubernetes-int-or-string allows no fractions.
    ("a quantity that is a fraction", job(sharedMemory=0.5), ("spec.sharedMemory",)),
    # This is the largest quantity in CEL, which cannot distinguish it from a larger one.
    ("the largest quantity", job(sharedMemory=str(2**63 - 1)), ("spec.sharedMemory", "is too large")),
    # These bounds limit the estimated cost of the validation rules.
    ("very many words", job(command=["x"] * 1001), ("spec.command",)),
    ("a very long word", job(command=["x" * 200_001]), ("spec.command[0]",)),
    ("very many variables", job(env=[{"name": f"A{n}"} for n in range(1001)]), ("spec.env",)),
    ("a very long variable", job(env=[{"name": "A" * 1001}]), ("spec.env[0].name",)),
    ("very many resources",
     job(trainer={"resources": {"limits": {f"example.org/r{n}": 1 for n in range(101)}}}),
     ("spec.trainer.resources.limits",)),
]  # fmt: skip

_STAYS = "cannot change once the job exists; make a new job"
_ELASTIC = {"minReplicas": 2, "maxReplicas": 8}
_IN_PODS = {"emptyDir": {}}

CHANGES: list[tuple[str, Manifest, Manifest, tuple[str, ...]]] = [
    ("nothing", FULL, FULL, ()),
    ("a default written out", job(), job(strategy="ParameterServer", suspend=False, trainer={"minReplicas": 1}), ()),
    ("the pin", job(trainer=_ELASTIC), job(trainer={**_ELASTIC, "replicas": 5}), ()),
    ("the pin removed", job(trainer={**_ELASTIC, "replicas": 5}), job(trainer=_ELASTIC), ()),
    ("the bounds", job(trainer=_ELASTIC), job(trainer={"minReplicas": 1, "maxReplicas": 9}), ()),
    ("the image", job(image="a:1"), job(image="a:2"), ()),
    ("command, args and env", job(), job(command=["sh"], args=["-c", "x"], env=[{"name": "A"}]), ()),
    ("a template", job(), job(trainer={"template": {"spec": {"nodeSelector": {"a": "b"}}}}), ()),
    ("resources", job(), job(trainer={"resources": {"requests": {"cpu": "2"}}}), ()),
    ("suspend", job(), job(suspend=True), ()),
    ("the run policy", job(), job(runPolicy={"backoffLimit": 9}), ()),
    ("snapshots", job(), job(checkpoint={"interval": "5s", "keep": 9}), ()),
    ("the model's claim", job(output={"path": "m"}), job(output={"path": "m", "volumeClaimName": "c"}), ()),
    ("epochs", job(epochs=3), job(epochs=4), ("spec.epochs", _STAYS)),
    ("epochs set", job(), job(epochs=4), ("spec.epochs", _STAYS)),
    ("the seed", job(seed=1), job(seed=2), ("spec.seed", _STAYS)),
    ("the seed removed", job(seed=1), job(), ("spec.seed", _STAYS)),
    ("the seed set", job(), job(seed=1), ("spec.seed", _STAYS)),
    ("servers", job(), job(parameterServer={"replicas": 2}), ("spec.parameterServer.replicas", _STAYS)),
    ("servers removed", job(), job(parameterServer=None), ("spec.parameterServer", "needs this section")),
    ("the path", job(output={"path": "a"}), job(output={"path": "b"}), ("spec.output.path", _STAYS)),
    ("the output set", job(), job(output={"path": "b"}), ("spec.output.path", _STAYS)),
    ("the output removed", job(output={"path": "a"}), job(), ("spec.output.path", _STAYS)),
    ("snapshots in the pods", job(), job(parameterServer=_IN_PODS),
     ("spec.parameterServer.emptyDir", "cannot be added or removed once the job exists")),
    ("a claim after all", job(parameterServer=_IN_PODS), job(),
     ("spec.parameterServer.emptyDir", "cannot be added or removed once the job exists")),
    ("a pin out of bounds", job(trainer=_ELASTIC), job(trainer={**_ELASTIC, "replicas": 9}),
     ("spec.trainer.replicas", "is not between minReplicas")),
    ("scaled to nothing", job(trainer=_ELASTIC), job(trainer={**_ELASTIC, "replicas": 0}),
     ("spec.trainer.replicas", "suspend: true")),
    ("bounds below the pin", job(trainer={**_ELASTIC, "replicas": 8}),
     job(trainer={"minReplicas": 2, "maxReplicas": 4, "replicas": 8}),
     ("spec.trainer.replicas", "is not between minReplicas")),
]  # fmt: skip
