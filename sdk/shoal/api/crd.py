"""The CustomResourceDefinition of TrainingJob, generated from the types.

    python -m shoal.api.crd > crds/trainingjobs.yaml

An API server requires a structural schema, which differs from JSON schema: no references, choices or closed objects,
but lists of type map, and CEL rules. This module rewrites pydantic's schema and adds the checks of pydantic's
validators as CEL rules, by field; the manifests in `tests/api/manifests.py` show that both agree. Bounds without a
counterpart in the types exist for the API server, which refuses rules whose estimated cost is too high; they are far
above practical values.

The rules require Kubernetes 1.29 or later (optional values and quantities in CEL).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

import yaml

from shoal.api.job import API_VERSION, KIND, TrainingJob
from shoal.api.metadata import LONGEST_NAME
from shoal.api.status import Status

__all__ = ["HEADER", "crd", "render"]

HEADER: Final = """\
# Generated from the types in sdk/shoal/api; do not edit.
# Made by: python -m shoal.api.crd > crds/trainingjobs.yaml
"""
Schema = dict[str, Any]

# --- Rules in addition to the types ------------------------------------------------------------------------------


def _rule(rule: str, message: str, *, at: str = "", reason: str = "FieldValueInvalid") -> Schema:
    """Return a CEL rule.

    Args:
        rule: CEL expression that must be true.
        message: What is wrong, and the fix. It has no values: the API server estimates the cost of formatting a number
            as unbounded and refuses the definition.
        at: Path of the invalid field below this one. Default: empty, this field.
        reason: The API server's reason for the error. Default: ``FieldValueInvalid``.
    """
    return {"rule": rule, "message": message, "reason": reason} | ({"fieldPath": at} if at else {})


_FIXED: Final = "cannot change once the job exists; make a new job"


def _fixed(field: str) -> Schema:
    """Return a rule for an immutable field, which may be set or unset."""
    optional = field.replace(".", ".?", 1)
    return _rule(f"self{optional} == oldSelf{optional}", _FIXED, at=field, reason="FieldValueForbidden")


_IS_DURATION: Final = r"self.matches('^([0-9]+(\\.[0-9]+)?(ms|s|m|h))+$')"
_IS_QUANTITY: Final = "isQuantity(string(self))"
_MOST: Final = "has(self.maxReplicas) ? self.maxReplicas : self.minReplicas"
_AMOUNT: Final = [
    _rule(_IS_QUANTITY, 'is not a quantity such as "1", "500m" or "1Gi"'),
    _rule(f"!{_IS_QUANTITY} || !quantity(string(self)).isLessThan(quantity('0'))", "is negative; write 0 or more"),
    _rule(
        f"!{_IS_QUANTITY} || quantity(string(self)).isLessThan(quantity('{2**63 - 1}'))",
        "is too large; the most is 2^63 - 1",
    ),
]

_SOME_TIME: Final = [
    _rule(_IS_DURATION, 'is not a duration such as "30s", "1m30s" or "500ms"'),
    _rule(f"!{_IS_DURATION} || self.matches('[1-9]')", "must be longer than zero"),
    _rule(f"!{_IS_DURATION} || duration(self) <= duration('{100 * 365 * 24}h')", "is longer than 100 years"),
]
_RULES: Final[Mapping[str, list[Schema]]] = {
    "": [
        _rule(
            f"self.metadata.name.size() <= {LONGEST_NAME}",
            f"has more than {LONGEST_NAME} characters; at most {LONGEST_NAME} leave room for pod names",
            at=".metadata.name",
        ),
        _rule(
            "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
            "must begin with a letter and have lower-case letters, digits and '-' only",
            at=".metadata.name",
        ),
    ],
    "spec": [
        _rule(
            "self.strategy != 'ParameterServer' || has(self.parameterServer)",
            "strategy ParameterServer needs this section; add `parameterServer: {replicas: 1}`",
            at=".parameterServer",
            reason="FieldValueRequired",
        ),
        _fixed(".epochs"),
        _fixed(".seed"),
        _fixed(".output.path"),
    ],
    "spec.strategy": [_rule("self == oldSelf", _FIXED, reason="FieldValueForbidden")],
    "spec.command": [
        _rule(
            "self.size() == 0 || self[0].trim() != ''",
            "its first word is empty; name the program, such as python",
        ),
    ],
    "spec.env[]": [
        _rule(
            "!has(self.value) || !has(self.valueFrom)",
            "value is set too; keep one of them",
            at=".valueFrom",
        ),
    ],
    "spec.env[].name": [
        _rule("self.matches('^[ -<>-~]*$')", "cannot name a variable; write letters, digits and '_'"),
    ],
    "spec.trainer": [
        _rule(
            f"self.minReplicas <= ({_MOST})",
            "minReplicas is more than maxReplicas; lower minReplicas or raise maxReplicas",
            at=".minReplicas",
        ),
        _rule(
            "!has(self.replicas) || self.replicas != 0",
            "0 trainers cannot train; to pause the job write `suspend: true`",
            at=".replicas",
        ),
        _rule(
            f"!has(self.replicas) || self.replicas == 0 || self.minReplicas > ({_MOST})"
            f" || (self.minReplicas <= self.replicas && self.replicas <= ({_MOST}))",
            "replicas is not between minReplicas and maxReplicas; change it or the bounds, or leave it out",
            at=".replicas",
        ),
    ],
    "spec.parameterServer": [
        _fixed(".replicas"),
        _rule(
            "!has(self.emptyDir) || !has(self.volumeClaimSpec)",
            "volumeClaimSpec is set too; keep one of them",
            at=".emptyDir",
        ),
        _rule(
            "has(self.emptyDir) == has(oldSelf.emptyDir)",
            "cannot be added or removed once the job exists; make a new job",
            at=".emptyDir",
            reason="FieldValueForbidden",
        ),
    ],
    "spec.checkpoint.interval": _SOME_TIME,
    "spec.runPolicy.stepTimeout": _SOME_TIME,
    "spec.sharedMemory": _AMOUNT,
    "spec.parameterServer.emptyDir.sizeLimit": _AMOUNT,
    **{
        f"spec.{role}.resources.{kind}{{}}": _AMOUNT
        for role in ("trainer", "parameterServer", "master")
        for kind in ("requests", "limits")
    },
}

_MAP: Final = {"x-kubernetes-list-type": "map"}
_BOUNDS: Final[Mapping[str, Schema]] = {
    "spec.command": {"maxItems": 1000},
    "spec.command[]": {"maxLength": 200_000},
    "spec.env": {"maxItems": 1000, **_MAP, "x-kubernetes-list-map-keys": ["name"]},
    "spec.env[].name": {"maxLength": 1000},
    **{
        f"spec.{role}.resources.{kind}": {"maxProperties": 100}
        for role in ("trainer", "parameterServer", "master")
        for kind in ("requests", "limits")
    },
    "status.conditions": {**_MAP, "x-kubernetes-list-map-keys": ["type"]},
}

# --- Columns of `kubectl get` ------------------------------------------------------------------------------------


def _column(name: str, path: str, description: str, *, kind: str = "string", wide: bool = False) -> Schema:
    column = {"name": name, "type": kind, "jsonPath": path, "description": description}
    return column | ({"priority": 1} if wide else {})


_COLUMNS: Final = [
    _column("State", ".status.state", "Phase of the job."),
    _column("Trainers", ".status.trainers.text", "Ready and desired trainers."),
    _column("Range", ".status.trainers.range", "Fewest and most trainers."),
    _column("Progress", ".status.progress.percent", "Share of all samples that are committed."),
    _column("Rate", ".status.progress.rate", "Samples per second.", kind="number"),
    _column("Age", ".metadata.creationTimestamp", "Time since the creation of the job.", kind="date"),
    _column("Priority", ".spec.priority", "Name of the priority.", wide=True),
    _column("Epoch", ".status.progress.epoch", "Number of the open epoch.", kind="integer", wide=True),
    _column("Servers", ".status.servers.text", "Ready and desired parameter servers.", wide=True),
    _column(
        "Last-Step", ".status.progress.lastStepTime", "Time since the last committed step.", kind="date", wide=True
    ),
    _column("Reason", ".status.reason", "Why the job is in this state.", wide=True),
]

# --- From pydantic's schema to a structural one ------------------------------------------------------------------

_COPIED: Final = (
    "description", "type", "format", "enum", "default", "pattern", "minLength", "maxLength", "minimum", "maximum",
    "minItems", "maxItems", "maxProperties", "x-kubernetes-int-or-string",
)  # fmt: skip
_DROPPED: Final = frozenset(("title", "readOnly", "$defs"))
_REWRITTEN: Final = frozenset(
    ("const", "exclusiveMinimum", "exclusiveMaximum", "properties", "required", "items", "additionalProperties")
)


class _Structural:
    """Rewrites the schema of one model into a structural schema; ``definitions`` has the schemas of its parts."""

    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self._definitions = definitions

    def rewrite(self, node: Schema) -> Schema:
        """Return the structural form of a node and all nodes below it.

        Raises:
            ValueError: The node has a keyword without a known structural form; it is not dropped silently.
        """
        node = self._resolve(node)
        unknown = node.keys() - set(_COPIED) - _DROPPED - _REWRITTEN
        if unknown:
            raise ValueError(f"no structural form is known for {sorted(unknown)} in {node}")
        made = {key: node[key] for key in _COPIED if node.get(key) is not None}
        if "const" in node:
            made["enum"] = [node["const"]]
        for bound in ("minimum", "maximum"):
            exclusive = node.get(f"exclusive{bound.capitalize()}")
            if exclusive is not None:
                made |= {bound: exclusive, f"exclusive{bound.capitalize()}": True}
        if made.get("type") == "integer":
            made |= _integer(made)
        return made | self._below(node)

    def _resolve(self, node: Schema) -> Schema:
        """Resolve references, and remove the choice of null, which the API server treats as unset."""
        while "$ref" in node or "anyOf" in node:
            node = dict(node)
            if "anyOf" in node:
                choices = [each for each in node.pop("anyOf") if each != {"type": "null"}]
                if len(choices) != 1:
                    raise ValueError(f"no structural form is known for a choice: {choices}")
                node = choices[0] | node
            if "$ref" in node:
                node = self._definitions[node.pop("$ref").rpartition("/")[2]] | node
        return {key: value for key, value in node.items() if key != "default" or value is not None}

    def _below(self, node: Schema) -> Schema:
        made: Schema = {}
        if "required" in node:
            made["required"] = list(node["required"])
        if "properties" in node:
            made["properties"] = {name: self._property(name, below, node) for name, below in node["properties"].items()}
        if "items" in node:
            made["items"] = self.rewrite(node["items"])
        values = node.get("additionalProperties")
        if values is True:
            made["x-kubernetes-preserve-unknown-fields"] = True
        elif values:
            made["additionalProperties"] = self.rewrite(values)
        return made

    def _property(self, name: str, below: Schema, parent: Schema) -> Schema:
        """Rewrite one field. An optional section gets its fields' defaults; they would not apply without the section."""
        made = self.rewrite(below)
        fields = made.get("properties", {})
        defaults = {key: each["default"] for key, each in fields.items() if "default" in each}
        left_out = name not in parent.get("required", ()) and "anyOf" not in below
        return made | ({"default": defaults} if left_out and defaults else {})


def _integer(made: Schema) -> Schema:
    """Return the format of an integer; bounds above 2^53, which the API server's floats cannot hold, are removed."""
    most = made.get("maximum")
    if most is not None and most > 2**53:
        del made["maximum"]
        most = None
    return {"format": "int32" if most is not None and most < 2**31 else "int64"}


def _nodes(node: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Yield every node with its path: ``spec.env[].name``, ``spec.trainer.resources.requests{}``."""
    yield path, node
    for name, below in node.get("properties", {}).items():
        yield from _nodes(below, f"{path}.{name}" if path else name)
    if "items" in node:
        yield from _nodes(node["items"], f"{path}[]")
    if "additionalProperties" in node:
        yield from _nodes(node["additionalProperties"], f"{path}{{}}")


# --- The definition ----------------------------------------------------------------------------------------------


def _schema() -> Schema:
    job = TrainingJob.model_json_schema(by_alias=True)
    root = _Structural(job["$defs"]).rewrite(job)
    status = Status.model_json_schema(by_alias=True, mode="serialization")
    root["properties"] = {
        "apiVersion": {"type": "string", "description": f"Version of the API: {API_VERSION}."},
        "kind": {"type": "string", "description": f"Always {KIND}."},
        "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
        "spec": root["properties"]["spec"],
        "status": _written_by_us(_Structural(status.get("$defs", {})).rewrite(status)),
    }
    root["required"] = ["spec"]
    for name, extras in (("bounds", _BOUNDS), ("rules", _RULES)):
        nodes = dict(_nodes(root))
        missing = extras.keys() - nodes.keys()
        if missing:
            raise ValueError(f"{name} for fields that are not there: {sorted(missing)}")
        for path, extra in extras.items():
            nodes[path].update(extra if isinstance(extra, dict) else {"x-kubernetes-validations": extra})
    return root


def _written_by_us(status: Schema) -> Schema:
    """Remove defaults and required fields from the status schema, except the required fields of a condition."""
    for path, node in _nodes(status):
        node.pop("default", None)
        if path != "conditions[]":
            node.pop("required", None)
    return status


def crd() -> dict[str, Any]:
    """Return the definition as a mapping, as it is applied to a cluster."""
    group, _, version = API_VERSION.partition("/")
    names = {
        "plural": "trainingjobs",
        "singular": "trainingjob",
        "kind": KIND,
        "listKind": f"{KIND}List",
        "shortNames": ["tj"],
        "categories": ["shoal"],
    }
    scale = {
        "specReplicasPath": ".spec.trainer.replicas",
        "statusReplicasPath": ".status.trainers.ready",
        "labelSelectorPath": ".status.selector",
    }
    served = {
        "name": version,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": _COLUMNS,
        "subresources": {"status": {}, "scale": scale},
        "schema": {"openAPIV3Schema": _schema()},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names['plural']}.{group}"},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [served]},
    }


class _Dumper(yaml.SafeDumper):
    """YAML dumper without anchors, because several fields share the same rules."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return True: write shared objects out in full."""
        del data
        return True


def render() -> str:
    """Return the definition as the text of its file."""
    return HEADER + yaml.dump(crd(), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


if __name__ == "__main__":
    sys.stdout.write(render())
