"""Control socket of `shoal run`, used by `shoal scale`, `shoal status` and `shoal.sdk`; it uses the job's handshake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from shoal.local.state.state_folder import StateFolder
from shoal.local.view.status import RunStatus
from shoal.transport import aio, auth
from shoal.transport.address import listen, publish
from shoal.transport.unauthenticated import Unauthenticated

__all__ = ["AskScale", "AskStatus", "AskStop", "Control", "ControlRefused", "Question", "ask"]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """A message on the control socket."""


class AskStatus(_Message, frozen=True):
    """Request for the job's status."""


class AskScale(_Message, frozen=True):
    """Request to change the number of trainers; None: the number at the start of `shoal run`.

    ``by`` is the name of the program that asks, for the history.
    """

    trainers: int | None
    by: str = ""


class AskStop(_Message, frozen=True):
    """Request to stop the job gracefully, as Ctrl-C does; a repeated one has no effect.

    ``kill``: All processes are killed instead, without a snapshot.
    """

    kill: bool = False


class ControlReply(_Message, frozen=True):
    """Reply to all requests, with the job's status."""

    status: RunStatus


class ControlRefused(_Message, frozen=True):
    """Refusal of a request, with its reason."""

    reason: str


Question = AskStatus | AskScale | AskStop
Answer = ControlReply | ControlRefused


class _Peer(aio.Listener):
    """A connection of a caller."""

    answer: Callable[[Any], RunStatus | ControlRefused]

    def on_message(self, message: Any) -> None:
        """Send the reply to a request."""
        answer = self.answer(message)
        self.send(answer if isinstance(answer, ControlRefused) else ControlReply(status=answer))


class Control:
    """Server of the control socket, in the runner.

    Args:
        state: The job's state folder.
        answer: Function that returns the reply to a request.
    """

    def __init__(self, state: StateFolder, answer: Callable[[Any], RunStatus | ControlRefused]) -> None:
        self._state = state
        self._answer = answer
        self._server: asyncio.AbstractServer | None = None

    async def open(self, address: str) -> None:
        """Listen, and write the address into the job's state folder."""
        decoder: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Question)
        identity = auth.Identity(role="runner", index=0, life=auth.new_life())
        token, job = auth.Token.read(self._state.token), self._state.uid
        unauthenticated: Unauthenticated[aio.Listener] = Unauthenticated()

        def make() -> _Peer:
            peer = _Peer(decoder, identity=identity, token=token, job=job, unauthenticated=unauthenticated)
            peer.answer = self._answer
            return peer

        stream, bound = listen(address)
        self._server = await asyncio.get_running_loop().create_unix_server(make, sock=stream)
        publish(self._state.control, bound)

    def close(self) -> None:
        """Stop listening and remove the address."""
        if self._server is not None:
            self._server.close()
        self._state.control.unlink(missing_ok=True)


def ask(state: StateFolder, question: Question) -> RunStatus | ControlRefused | None:
    """Send a request to a running job; None if it does not run (or is just starting or ending)."""
    try:
        return asyncio.run(_ask(state, question))
    except (OSError, ValueError):
        return None


async def _ask(state: StateFolder, question: Question) -> RunStatus | ControlRefused:
    caller = await aio.connect(
        f"file://{state.control}",
        identity=auth.Identity(role="observer", index=0, life=auth.new_life()),
        token=auth.Token.read(state.token),
        job=state.uid,
        decoder=msgspec.msgpack.Decoder(Answer),
    )
    try:
        caller.send(question)
        async with asyncio.timeout(10.0):
            answer = await caller.receive()
        return answer if isinstance(answer, ControlRefused) else answer.status
    finally:
        caller.close()
