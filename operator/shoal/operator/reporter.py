"""Writes what a job's status says, when it has changed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from shoal.api.status import Status
from shoal.kube import Kube
from shoal.operator.status import changed

__all__ = ["Reporter", "difference"]

_LATER_SECONDS: Final = 5.0
_FOR_EVER: Final = 1e9


class Reporter:
    """Remembers what it wrote: what the watch shows may be older.

    Args:
        kube: The gateway.
    """

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._written: dict[str, tuple[Status, float]] = {}

    def before(self, manifest: Mapping[str, Any]) -> Status:
        """What was said of a job last."""
        written = self._written.get(manifest["metadata"]["uid"])
        return written[0] if written is not None else Status.from_mapping(manifest.get("status"))

    def forget(self, uid: str) -> None:
        """The job is gone."""
        self._written.pop(uid, None)

    async def say(self, manifest: Mapping[str, Any], after: Status) -> float | None:
        """Write a status if it is to be written now.

        Returns:
            After how many seconds to say it again, if it was not; None: it stands.

        Raises:
            KubeError: The API server refused it, or was away for too long.
        """
        metadata = manifest["metadata"]
        before = self.before(manifest)
        if before == after:
            return None
        now = time.monotonic()
        since = now - self._written[metadata["uid"]][1] if metadata["uid"] in self._written else _FOR_EVER
        if not changed(before, after, seconds=since):
            return max(0.1, _LATER_SECONDS - since)
        patch = difference(before.to_mapping(), after.to_mapping())
        await self._kube.set_status("TrainingJob", metadata["name"], patch, namespace=metadata["namespace"])
        self._written[metadata["uid"]] = (after, now)
        return None


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The merge patch (RFC 7386) that makes one mapping the other: null for what is gone."""
    patch: dict[str, Any] = {key: None for key in before if key not in after}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            below = difference(old, value)
            if below:
                patch[key] = below
        elif key not in before or old != value:
            patch[key] = value
    return patch
