"""Follows all objects of a kind: a listing, then every change, for ever; after a gap a listing again.

So whoever follows knows at any time what there is, and learns of each deletion: one that no stream told shows by what a
listing lacks. Failures are waited out here. It is lean: a change costs the reading of its text and one call.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final, NamedTuple

from shoal.kube.client import Kube, Listed
from shoal.kube.errors import KubeError, KubeGoneError

__all__ = ["Changed", "follow"]

_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 2.0
_STREAM_SECONDS: Final = (300, 600)
"""An API server is asked to end a stream after so long, so that streams spread over several of them again."""
_SHORT_SECONDS: Final = 1.0
_REMIND_SECONDS: Final = 10.0
_EXPIRED: Final = 410

log = logging.getLogger("shoal.kube")


class Changed(NamedTuple):
    """An object as it is now, or as it was when it went."""

    manifest: dict[str, Any]
    gone: bool


def _ignore(_words: str) -> None:
    pass


async def follow(
    kube: Kube,
    kind: str,
    *,
    namespace: str = "",
    selector: str = "",
    since: int | None = None,
    on_trouble: Callable[[str], None] = _ignore,
) -> AsyncGenerator[Listed | Changed]:
    """All that there is of a kind, and all that becomes of it.

    Args:
        kube: The gateway.
        kind: Of the objects.
        namespace: Where; empty: everywhere.
        selector: Labels.
        since: Resource version of a listing that the caller has; None: begin with one.
        on_trouble: Told why nothing comes, each time that it was tried in vain; empty: it goes on.
    """
    revision = since
    pauses = _Pauses(kind, on_trouble)
    while True:
        try:
            if revision is None:
                listed = await kube.listing(kind, namespace=namespace, selector=selector)
                revision = listed.revision
                yield listed
            began = time.monotonic()
            seconds = random.randint(*_STREAM_SECONDS)  # noqa: S311 - only to spread them
            stream = kube.watch(
                kind, namespace=namespace, selector=selector, revision=revision, seconds=seconds, opened=pauses.opened
            )
            async for event, manifest in stream:
                pauses.over()
                revision = int(manifest["metadata"]["resourceVersion"])
                if event != "BOOKMARK":
                    yield Changed(manifest, event == "DELETED")
            # One that ends again and again is no reason to ask without a pause.
            await asyncio.sleep(_FIRST_PAUSE_SECONDS if time.monotonic() - began < _SHORT_SECONDS else 0)
        except KubeError as error:
            if isinstance(error, KubeGoneError) and error.status == _EXPIRED:
                revision = None
            await pauses.take(error)


class _Pauses:
    """Between tries in vain: growing, and told of now and then."""

    def __init__(self, kind: str, on_trouble: Callable[[str], None]) -> None:
        self._kind = kind
        self._on_trouble = on_trouble
        self._pause = 0.0
        self._told = -_REMIND_SECONDS

    def opened(self) -> None:
        """The API server accepts the request: nothing is wrong now, and whether it lasts is not known yet."""
        self._on_trouble("")

    def over(self) -> None:
        if self._pause:
            self._pause = 0.0
            self._on_trouble("")

    async def take(self, error: KubeError) -> None:
        if time.monotonic() - self._told >= _REMIND_SECONDS and error.status != _EXPIRED:
            self._told = time.monotonic()
            log.warning("%s objects cannot be followed: %s", self._kind, error)
        self._on_trouble(f"{self._kind}: {error}")
        self._pause = min(_LONGEST_PAUSE_SECONDS, max(_FIRST_PAUSE_SECONDS, 2 * self._pause))
        await asyncio.sleep(self._pause)
