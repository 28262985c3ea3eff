"""The spec that is in force while a newer one is refused: the last accepted one, with the fields that always apply.

Suspension, scaling and the run policy apply even if the rest of the spec is refused. The job's ConfigMap stores the accepted
spec, so it survives a restart of the operator.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any, Final

from shoal.api import ManifestError, TrainingJob, from_mapping

__all__ = ["ACCEPTED_KEY", "in_force", "text_of"]

ACCEPTED_KEY: Final = "accepted.json"
"""Key in the ConfigMap's data."""
_ALWAYS: Final = (
    ("suspend",),
    ("trainer", "minReplicas"),
    ("trainer", "maxReplicas"),
    ("trainer", "replicas"),
    ("runPolicy",),
)
"""Fields of a spec that apply although the spec is refused."""
_MISSING: Final = object()


def text_of(job: TrainingJob) -> str:
    """Return a job's spec as canonical JSON, as the ConfigMap stores it."""
    return json.dumps(job.to_mapping()["spec"], sort_keys=True)


def in_force(accepted: str, manifest: Mapping[str, Any]) -> TrainingJob | None:
    """Return the job that is in force while a manifest's spec is refused; None: the stored spec cannot be read.

    Args:
        accepted: The last accepted spec, as of `text_of`.
        manifest: The job's manifest.
    """
    try:
        spec = json.loads(accepted)
        job = from_mapping({**manifest, "spec": spec})
    except (ValueError, ManifestError):
        return None
    newest = manifest.get("spec")
    # All fields together first: new bounds and a new pin may be valid only as a whole.
    for group in (_ALWAYS, *((each,) for each in _ALWAYS)):
        changed = copy.deepcopy(spec)
        for path in group:
            _put(changed, path, _at(newest, path))
        try:
            job = from_mapping({**manifest, "spec": changed})
        except ManifestError:
            continue
        spec = changed
        if group is _ALWAYS:
            break
    return job


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return _MISSING
        value = value[key]
    return value


def _put(spec: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        spec = spec.setdefault(key, {})
    if value is _MISSING:
        spec.pop(path[-1], None)
    else:
        spec[path[-1]] = value
