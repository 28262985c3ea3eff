"""Detects drift of applied objects from the field managers that the API server records. Pure.

Server-side apply records in ``metadata.managedFields`` which fields a manager has set. A client that changes one of these fields
takes over its ownership, and Shoal's record loses the field. So a field of the manifest that the record lacks has drifted. This
needs no copy of the object, and does not depend on how the API server formats values.
Source: Kubernetes documentation, "Server-Side Apply", section "Field management" (FieldsV1).
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = ["MANAGER", "fields_of", "has_fields"]

MANAGER: Final = "shoal"
_NOT_RECORDED: Final = frozenset({"apiVersion", "kind"})
_NAMES: Final = frozenset({"name", "namespace"})
"""Fields of metadata that no manager owns."""


def fields_of(manifest: Mapping[str, Any], *, manager: str = MANAGER) -> str:
    """Return the record of the fields that a manager applied, as canonical JSON; empty: there is none.

    Objects of the same form share one interned text.
    """
    for entry in manifest["metadata"].get("managedFields") or []:
        if entry.get("manager") == manager and entry.get("operation") == "Apply" and not entry.get("subresource"):
            return sys.intern(json.dumps(entry.get("fieldsV1") or {}, sort_keys=True))
    return ""


def has_fields(content: Mapping[str, Any], fields: str) -> bool:
    """Return whether a record has every field of a manifest.

    Args:
        content: The manifest that was applied.
        fields: The record, as of `fields_of`.
    """
    if not fields:
        return False
    record = _parsed(fields)
    rest = {key: value for key, value in content.items() if key not in _NOT_RECORDED}
    rest["metadata"] = {key: value for key, value in content["metadata"].items() if key not in _NAMES}
    return _within(rest, record)


@functools.lru_cache(maxsize=1024)
def _parsed(fields: str) -> dict[str, Any]:
    return dict(json.loads(fields))


def _within(value: Any, record: Mapping[str, Any]) -> bool:
    """Return whether a record has all of a value; an empty record stands for a field that is owned as a whole."""
    if not record or not isinstance(value, Mapping | list):
        return True
    if isinstance(value, Mapping):
        return all(
            f"f:{key}" in record and _within(below, record[f"f:{key}"])
            for key, below in value.items()
            if below is not None
        )
    return _items_within(value, record)


def _items_within(items: Sequence[Any], record: Mapping[str, Any]) -> bool:
    """Return whether a record has all items of a list that are owned one by one, by their keys or by their values."""
    keys = {name: json.loads(name[2:]) for name in record if name[:2] in {"k:", "v:"}}
    for item in items:
        if isinstance(item, Mapping):
            found = [name for name, key in keys.items() if name[0] == "k" and _is_key(key, item)]
            if not any(_within(item, record[name]) for name in found):
                return False
        elif not any(name[0] == "v" and key == item for name, key in keys.items()):
            return False
    return True


def _is_key(key: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
    """Return whether an item has this key; a part of the key may be a default that the manifest leaves out."""
    return all(item.get(name, value) == value for name, value in key.items())
