"""Receives progress reports from the job's active master."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from shoal.protocol.messages import FromMaster, JobProgress, Observe
from shoal.transport import aio, auth

__all__ = ["observe"]

_PAUSE_SECONDS = 0.05


async def observe(address: str, *, token: auth.Token, job: str, on_progress: Callable[[JobProgress], None]) -> None:
    """Connect to the master, and connect again after a disconnect, until cancelled.

    Args:
        address: Address of the master; ``file://`` also finds its successor.
        token: The job's token.
        job: The job's uid.
        on_progress: Called with each progress report.
    """
    decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(FromMaster)
    identity = auth.Identity(role="observer", index=0, life=auth.new_life())
    while True:
        try:
            caller = await aio.connect(address, identity=identity, token=token, job=job, decoder=decoder)
        except (OSError, ValueError):
            await asyncio.sleep(_PAUSE_SECONDS)
            continue
        try:
            caller.send(Observe())
            while True:
                message = await caller.receive()
                if isinstance(message, JobProgress):
                    on_progress(message)
        except ConnectionError:
            await asyncio.sleep(_PAUSE_SECONDS)
        finally:
            caller.close()
