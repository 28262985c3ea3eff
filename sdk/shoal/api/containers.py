"""The names of the roles' containers in pod templates."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["CONTAINERS", "container_of"]

CONTAINERS: Final = {"trainer": "trainer", "parameterServer": "pserver", "master": "master"}
"""The name of each role's container in its pod template."""


def container_of(template: dict[str, Any], name: str) -> tuple[int, dict[str, Any]] | None:
    """Return the container of a name in a pod template with its index; None if there is none.

    Raises:
        TypeError: The template does not have the form of a PodTemplateSpec.
    """
    spec = template.get("spec")
    spec = {} if spec is None else spec
    if not isinstance(spec, dict):
        raise TypeError("its spec is not a mapping; write a PodTemplateSpec")
    containers = spec.get("containers")
    containers = [] if containers is None else containers
    if not isinstance(containers, list) or not all(isinstance(each, dict) for each in containers):
        raise TypeError("its spec.containers is not a list of mappings; write a PodTemplateSpec")
    return next(((number, each) for number, each in enumerate(containers) if each.get("name") == name), None)
