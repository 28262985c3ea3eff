"""Merges a user's pod template with Shoal's. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = ["merged"]

_KEYS: Final = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
}
"""Lists that are merged by a key of their items, as in Kubernetes' strategic merge."""
_PROBES: Final = {"livenessProbe", "readinessProbe", "startupProbe"}
_ASK: Final = {"httpGet", "tcpSocket", "exec", "grpc"}
"""Handlers of a probe. A probe has exactly one, so one of ``over`` replaces another one of ``base``."""


def merged(base: Any, over: Any, *, field: str = "") -> Any:
    """Merge ``over`` into ``base``: mappings by field, lists with a merge key by item; all other values are replaced.

    An item that only one of them has is kept; items of ``base`` come first. A field that is null in ``over`` is removed, as
    in Kubernetes' strategic merge.
    """
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        if field in _PROBES and over.keys() & _ASK:
            base = {key: value for key, value in base.items() if key not in _ASK}
        keys = [key for key in [*base, *(key for key in over if key not in base)] if over.get(key, key) is not None]
        return {
            key: merged(base[key], over[key], field=key)
            if key in base and key in over
            else base.get(key, over.get(key))
            for key in keys
        }
    if field in _KEYS and isinstance(base, list) and isinstance(over, list):
        return _merged_items(base, over, _KEYS[field])
    return over


def _merged_items(base: Sequence[Any], over: Sequence[Any], key: str) -> list[Any]:
    def known(item: Any) -> Any:
        return item.get(key) if isinstance(item, Mapping) else None

    later = {known(item): item for item in over if known(item) is not None}
    kept = [merged(item, later[known(item)]) if known(item) in later else item for item in base]
    there = {known(item) for item in base}
    return [*kept, *(item for item in over if known(item) is None or known(item) not in there)]
