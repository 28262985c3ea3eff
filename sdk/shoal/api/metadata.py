"""Name and labels of a TrainingJob."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import Field, field_validator

from shoal.api.base import Model

__all__ = ["LONGEST_NAME", "Metadata", "resource_version"]

LONGEST_NAME: Final = 39
"""Longest name of a job: the master's pod is NAME-master-<10 letters>-<5 letters>, and Kubernetes allows 63 characters."""
_LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyz")
_IN_NAMES: Final = _LETTERS | frozenset("0123456789-")


class Metadata(Model):
    """Name and labels, as every Kubernetes object has them."""

    name: str = Field(description=f"Name of the job: lower-case letters, digits and '-'; at most {LONGEST_NAME}.")
    namespace: str = Field(default="default", description="Namespace of the job.")
    labels: dict[str, str] = Field(default_factory=dict, description="Labels of the job.")
    annotations: dict[str, str] = Field(default_factory=dict, description="Annotations of the job.")
    owner_references: list[dict[str, Any]] = Field(default_factory=list, description="Owners of the job.")
    finalizers: list[str] = Field(default_factory=list, description="Finalizers of the job.")

    @field_validator("name")
    @classmethod
    def _is_name(cls, value: str) -> str:
        if set(value) - _IN_NAMES or value[:1] not in _LETTERS or value.endswith("-"):
            raise ValueError(f"{value!r} must begin with a letter and have lower-case letters, digits and '-' only")
        if len(value) > LONGEST_NAME:
            raise ValueError(f"{value!r} has {len(value)} characters; at most {LONGEST_NAME} leave room for pod names")
        return value

    @field_validator("namespace")
    @classmethod
    def _is_label(cls, value: str) -> str:
        if not value or len(value) > 63 or set(value) - _IN_NAMES or "-" in {value[0], value[-1]}:
            raise ValueError(f"{value!r} must have lower-case letters, digits and '-' only, and at most 63")
        return value


def resource_version(metadata: Mapping[str, Any]) -> int:
    """Return the resource version in an object's metadata as a number; 0: it has none."""
    text = str(metadata.get("resourceVersion") or "")
    return int(text) if text.isdecimal() else 0
