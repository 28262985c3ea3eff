"""The reader of an AutoscalerConfig: from a text in YAML or JSON to the configuration, or to all of its problems by path and line.

In practice the text is a mounted ConfigMap.
"""

from __future__ import annotations

from typing import Final

from pydantic import ValidationError

from shoal.api import ManifestError, Problem
from shoal.api.reading.explain import problems_of
from shoal.api.reading.strict_yaml import YamlError, YamlLimits, read_yaml
from shoal.autoscaler.config.types import AutoscalerConfig

__all__ = ["LARGEST", "ConfigError", "load"]

LARGEST: Final = 1 << 18
"""Most characters of a text."""
_LIMITS: Final = YamlLimits(kind="AutoscalerConfig", characters=LARGEST, values=10_000)


class ConfigError(ManifestError):
    """A configuration that is not valid; ``problems`` has all of its problems."""


def load(text: str) -> AutoscalerConfig:
    """Read a configuration from a text in YAML or JSON.

    Keys with the value null count as not set; an empty text sets nothing.

    Raises:
        ConfigError: The text is not valid; the configuration in force should stay.
    """
    try:
        document = read_yaml(text, _LIMITS)
    except YamlError as error:
        raise ConfigError([error.problem]) from None
    mapping = {} if document.value is None else document.value
    if not isinstance(mapping, dict):
        raise ConfigError([Problem("", "not a mapping; write keys and values such as `cycle: 5s`")])
    try:
        config = AutoscalerConfig.model_validate(mapping, by_alias=True, by_name=False)
    except ValidationError as error:
        raise ConfigError(document.located(problems_of(error, root=AutoscalerConfig))) from None
    if document.problems:
        raise ConfigError(document.problems)
    return config
