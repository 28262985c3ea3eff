"""List and watch of all objects of a kind, without end; a new listing follows after a gap.

The caller has the complete set of objects at any time: a deletion that no watch delivered shows in the next listing.
Failures are retried here with a back-off. A change costs the decoding of its JSON text and one call.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final, NamedTuple

from shoal.kube.client import Kube, Listed
from shoal.kube.errors import KubeError, KubeGoneError

__all__ = ["Changed", "follow"]

_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 2.0
_STREAM_SECONDS: Final = (300, 600)
"""Range of a stream's timeout, in seconds, after which the streams are distributed over the API servers again."""
_SHORT_SECONDS: Final = 1.0
_REMIND_SECONDS: Final = 10.0
_EXPIRED: Final = 410

log = logging.getLogger("shoal.kube")


class Changed(NamedTuple):
    """An object after a change; ``deleted``: it was deleted, and the manifest is its last one."""

    manifest: dict[str, Any]
    deleted: bool


def _ignore(_message: str) -> None:
    pass


def _never(_error: KubeError, _seconds: float) -> bool:
    return False


async def follow(
    kube: Kube,
    kind: str,
    *,
    namespace: str = "",
    selector: str = "",
    name: str = "",
    since: int | None = None,
    ends: Callable[[KubeError, float], bool] = _never,
    on_error: Callable[[str], None] = _ignore,
) -> AsyncGenerator[Listed | Changed]:
    """List and watch all objects of a kind.

    Args:
        kube: The client.
        kind: Kind of the objects.
        namespace: Namespace of the objects. Default: empty, all namespaces.
        selector: Label selector. Default: empty, all objects.
        name: Name of the only object to follow. Default: empty, all objects.
        since: Resource version of a listing that the caller has. Default: None, start with a listing.
        ends: Called after each failed attempt with the error and the seconds since attempts fail; True ends the iteration
            with that error. Default: failures are retried without end.
        on_error: Called after each failed attempt with the error; with an empty text when the watch continues.
    """
    revision = since
    pauses = _Pauses(kind, on_error)
    while True:
        try:
            if revision is None:
                listed = await kube.listing(kind, namespace=namespace, selector=selector, name=name)
                revision = listed.revision
                yield listed
            began = time.monotonic()
            seconds = random.randint(*_STREAM_SECONDS)  # noqa: S311 - only to spread them
            stream = kube.watch(
                kind,
                namespace=namespace,
                selector=selector,
                name=name,
                revision=revision,
                seconds=seconds,
                opened=pauses.opened,
            )
            async with aclosing(stream):
                async for event, manifest in stream:
                    pauses.over()
                    revision = int(manifest["metadata"]["resourceVersion"])
                    if event != "BOOKMARK":
                        yield Changed(manifest, event == "DELETED")
            # A pause limits the rate of requests if streams end repeatedly in less than _SHORT_SECONDS.
            await asyncio.sleep(_FIRST_PAUSE_SECONDS if time.monotonic() - began < _SHORT_SECONDS else 0)
        except KubeError as error:
            if isinstance(error, KubeGoneError) and error.status == _EXPIRED:
                revision = None
            elif ends(error, pauses.failing_seconds):
                raise
            await pauses.take(error)


class _Pauses:
    """Exponential back-off between failed attempts, with a log record every 10 s at most."""

    def __init__(self, kind: str, on_error: Callable[[str], None]) -> None:
        self._kind = kind
        self._on_error = on_error
        self._pause = 0.0
        self._logged = -_REMIND_SECONDS
        self._failing_since: float | None = None

    @property
    def failing_seconds(self) -> float:
        """Seconds since attempts fail; 0 at the first failure."""
        return 0.0 if self._failing_since is None else time.monotonic() - self._failing_since

    def opened(self) -> None:
        """Report that the API server has accepted the request; the back-off remains until the first change."""
        self._failing_since = None
        self._on_error("")

    def over(self) -> None:
        if self._pause:
            self._pause = 0.0
            self._on_error("")

    async def take(self, error: KubeError) -> None:
        if self._failing_since is None:
            self._failing_since = time.monotonic()
        if time.monotonic() - self._logged >= _REMIND_SECONDS and error.status != _EXPIRED:
            self._logged = time.monotonic()
            log.warning("%s objects cannot be followed: %s", self._kind, error)
        self._on_error(f"{self._kind}: {error}")
        self._pause = min(_LONGEST_PAUSE_SECONDS, max(_FIRST_PAUSE_SECONDS, 2 * self._pause))
        await asyncio.sleep(self._pause)
