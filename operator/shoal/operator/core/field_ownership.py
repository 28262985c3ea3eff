"""Whether every field that was applied is still ours, by what the API server records of field managers. Pure.

Server-side apply writes into ``metadata.managedFields`` which fields a manager has set. Another client that changes one of
them takes it over, and the record of ours has it no more. So a record that lacks a field of the manifest tells a drift of
that very field, with no copy of the object kept, and whatever form the API server gives to values.
Source: Kubernetes documentation, "Server-Side Apply", section "Field management" (FieldsV1).
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = ["MANAGER", "fields_of", "holds"]

MANAGER: Final = "shoal"
_NOT_RECORDED: Final = frozenset({"apiVersion", "kind"})
_NAMES: Final = frozenset({"name", "namespace"})
"""Of metadata; no manager owns them."""


def fields_of(manifest: Mapping[str, Any], *, manager: str = MANAGER) -> str:
    """The record of a manager's applied fields, as canonical JSON; empty: it has none.

    Objects of the same form have the same text, which is kept once for all of them.
    """
    for entry in manifest["metadata"].get("managedFields") or []:
        if entry.get("manager") == manager and entry.get("operation") == "Apply" and not entry.get("subresource"):
            return sys.intern(json.dumps(entry.get("fieldsV1") or {}, sort_keys=True))
    return ""


def holds(content: Mapping[str, Any], fields: str) -> bool:
    """Whether a record has every field of a manifest.

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
    """Whether what is below a field is in its record; an empty record is of a field that is owned as a whole."""
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
    """The same for a list whose items are owned one by one: by their keys, or by their values."""
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
    """Whether an item has this key; a part of it may be a default that the manifest leaves out."""
    return all(item.get(name, value) == value for name, value in key.items())
