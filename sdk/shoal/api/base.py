"""Base class and common types of all parts of a manifest."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

__all__ = ["Count", "Model", "Natural", "Replicas", "Template"]

Count = Annotated[int, Field(ge=1, strict=True)]
Replicas = Annotated[int, Field(ge=1, le=10_000, strict=True)]
Natural = Annotated[int, Field(ge=0, strict=True)]
Template = dict[str, Any]


class Model(BaseModel):
    """Base class of all parts of a manifest: camelCase aliases, unknown fields are refused, instances are frozen."""

    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, extra="forbid", frozen=True
    )
