"""The TrainingJob as typed models: fields, defaults, validation. It imports no other package of Shoal."""

from shoal.api.errors import ManifestError, Problem
from shoal.api.job import (
    API_VERSION,
    KIND,
    Checkpoint,
    EnvVar,
    Master,
    Metadata,
    Output,
    ParameterServer,
    ResourceRequirements,
    RunPolicy,
    Spec,
    Trainer,
    TrainingJob,
)
from shoal.api.reading.load import from_mapping, load, loads
from shoal.api.reading.script import for_script, parse_trainers, with_options
from shoal.api.types import Duration, Quantity

__all__ = [
    "API_VERSION",
    "KIND",
    "Checkpoint",
    "Duration",
    "EnvVar",
    "ManifestError",
    "Master",
    "Metadata",
    "Output",
    "ParameterServer",
    "Problem",
    "Quantity",
    "ResourceRequirements",
    "RunPolicy",
    "Spec",
    "Trainer",
    "TrainingJob",
    "for_script",
    "from_mapping",
    "load",
    "loads",
    "parse_trainers",
    "with_options",
]
