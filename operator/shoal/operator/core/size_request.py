"""Who last changed the size of a job: the field managers that the API server records in `metadata.managedFields`. Pure.

The manager of a field that was set is its owner. Three requests leave less than that:

- A manager that only removes a field, such as a pin, is not recorded. One whose request also set another field has a record that
  is new since the previous version of the job. If there is none, the manager is not known: a record of an earlier change would
  name the wrong one.
- A request to the scale subresource is recorded without a time, and not at all if no manager owned the pin before (seen with
  Kubernetes 1.34). A pin without an owner was set there; the client is not known, so `SCALE` stands for it.
- An operator that has just started has one version of the job only. It takes the newest record of a field of the size, unless the
  status has a later change already.

Source: Kubernetes documentation, "Server-Side Apply", section "Field management" (FieldsV1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from shoal.operator.resources.object_fields import parse_time

__all__ = ["SCALE", "SizeRequest", "size_request"]

SCALE: Final = "scale"
"""Stands for a client of the scale subresource that the API server has not recorded, as for `kubectl scale` of a job without a pin."""

_PIN: Final = "replicas"
_SUSPEND: Final = "suspend"
_OF_TRAINER: Final = (_PIN, "minReplicas", "maxReplicas")
_NEVER: Final = datetime(1, 1, 1, tzinfo=UTC)
"""Time of a record without one: it is the oldest."""


@dataclass(frozen=True)
class _FieldRecord:
    """One entry of `metadata.managedFields`; `owned`: the fields of the size in it."""

    manager: str
    operation: str
    subresource: str
    time: datetime
    owned: frozenset[str]

    @property
    def key(self) -> tuple[object, ...]:
        """Changes when the manager sets a field, and not when another manager takes one over."""
        return self.manager, self.operation, self.subresource, self.time


@dataclass(frozen=True)
class SizeRequest:
    """The last change of a job's size.

    Attributes:
        by: Field manager of the change; empty: not known.
        generation: Generation of the spec that was compared last.
        size: Pin, minimum, maximum and suspension in that spec, by field.
        known: The keys of the records of that version of the job.
    """

    by: str
    generation: int
    size: Mapping[str, object]
    known: frozenset[tuple[object, ...]]


def size_request(before: SizeRequest | None, manifest: Mapping[str, Any]) -> SizeRequest:
    """Return who last changed the size of a job.

    Args:
        before: The result for the previous version of the job. None: there is none.
        manifest: The job, with its `managedFields`.
    """
    generation = int(manifest["metadata"].get("generation") or 0)
    if before is not None and generation <= before.generation:
        return before
    size, records = _size(manifest), list(_records(manifest))
    known = frozenset(each.key for each in records)
    if before is None:
        by = _first(records, _last_change(manifest), is_pinned=size[_PIN] is not None)
    elif size == before.size:
        by = before.by
    else:
        changed = {name for name, value in size.items() if value is not None and value != before.size[name]}
        by = _newest(each for each in records if each.owned & changed)
        if not by and _PIN in changed and records:
            by = SCALE
        by = by or _newest(each for each in records if each.key not in before.known)
    return SizeRequest(by, generation, size, known)


def _first(records: Sequence[_FieldRecord], since: datetime | None, *, is_pinned: bool) -> str:
    """Return who changed the size last, from one version of a job.

    Args:
        records: Its records.
        since: Time of the last change in the status. None: it has none.
        is_pinned: Whether it has a pin.
    """
    if since is None and is_pinned and records and not any(_PIN in each.owned for each in records):
        return SCALE
    return _newest(
        each for each in records if each.owned and (since is None or each.time == _NEVER or each.time >= since)
    )


def _size(manifest: Mapping[str, Any]) -> dict[str, object]:
    spec = manifest.get("spec") or {}
    trainer = spec.get("trainer") or {}
    return {name: trainer.get(name) for name in _OF_TRAINER} | {_SUSPEND: spec.get(_SUSPEND)}


def _records(manifest: Mapping[str, Any]) -> Iterable[_FieldRecord]:
    """Yield the records, without those of the status."""
    for entry in manifest["metadata"].get("managedFields") or []:
        subresource = str(entry.get("subresource") or "")
        if subresource != "status":
            yield _FieldRecord(
                manager=str(entry.get("manager") or ""),
                operation=str(entry.get("operation") or ""),
                subresource=subresource,
                time=parse_time(entry.get("time")) or _NEVER,
                owned=_owned(entry.get("fieldsV1") or {}) | ({_PIN} if subresource == "scale" else set()),
            )


def _owned(fields: Mapping[str, Any]) -> frozenset[str]:
    spec = fields.get("f:spec") or {}
    trainer = spec.get("f:trainer") or {}
    of_trainer = {name for name in _OF_TRAINER if f"f:{name}" in trainer}
    return frozenset(of_trainer | ({_SUSPEND} if f"f:{_SUSPEND}" in spec else set()))


def _newest(records: Iterable[_FieldRecord]) -> str:
    """Return the manager of the newest record; empty: there is none."""
    newest = max(records, key=lambda each: (each.time, len(each.owned), each.manager), default=None)
    return newest.manager if newest is not None else ""


def _last_change(manifest: Mapping[str, Any]) -> datetime | None:
    """Return the time of the last change in the status; None: it has none."""
    history = (manifest.get("status") or {}).get("history") or []
    return parse_time(history[-1].get("time")) if history else None
