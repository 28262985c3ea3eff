"""The handshake: both ends prove that they have the job's token, without sending it.

The listener sends a challenge with a nonce; the caller replies with a greeting: its identity, its own nonce, and an HMAC
over all of these; the listener replies with a welcome that has its own HMAC, so that a caller detects a process of another
job that has taken the port. Version and job are compared once, here, and a refusal names the difference. The functions
are pure; ``aio`` and ``sync`` transmit the messages.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path
from typing import Annotated

import msgspec

__all__ = [
    "VERSION",
    "AuthenticationError",
    "Challenge",
    "Greeting",
    "Handshake",
    "HandshakeRefused",
    "Identity",
    "Token",
    "Welcome",
    "challenge",
    "greet",
    "new_life",
    "verify",
    "verify_welcome",
    "welcome",
]

VERSION = "0.1.0"
"""The version of Shoal; ends of different versions refuse each other."""


class AuthenticationError(ConnectionError):
    """The other end is of another job or another version; the message has the difference."""


class Identity(msgspec.Struct, frozen=True):
    """The identity of one run of a process; ``life`` is random and distinguishes a successor of the same role and index."""

    role: Annotated[str, msgspec.Meta(max_length=20)]
    index: Annotated[int, msgspec.Meta(ge=0, le=2**31)]
    life: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]

    def __str__(self) -> str:
        """Return role and index, such as ``trainer-3``."""
        return self.role if self.role in {"master", "observer"} else f"{self.role}-{self.index}"


class Token:
    """The job's shared secret; its value is never printed."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < 16:
            raise ValueError("the job's token must have at least 16 bytes")
        self._secret = secret

    def __repr__(self) -> str:
        return "Token(***)"

    @classmethod
    def read(cls, path: str | Path) -> Token:
        """Read the token from a file.

        Raises:
            OSError: The file cannot be read.
            ValueError: The file has fewer than 16 bytes.
        """
        return cls(Path(path).read_bytes().strip())

    @classmethod
    def create(cls, path: Path) -> Token:
        """Create a random token and write it to a file that only its owner can read."""
        secret = secrets.token_hex(32).encode()
        path.touch(mode=0o600)
        path.write_bytes(secret)
        return cls(secret)

    def sign(self, label: str, *parts: bytes) -> bytes:
        """Return the HMAC-SHA256 over the label and the parts, each preceded by its length."""
        digest = hmac.new(self._secret, label.encode(), hashlib.sha256)
        for part in parts:
            digest.update(len(part).to_bytes(4, "big"))
            digest.update(part)
        return digest.digest()


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """A message of the handshake."""


class Challenge(_Message, frozen=True):
    """The listener's first message: its version and a nonce."""

    version: str
    nonce: bytes


class Greeting(_Message, frozen=True):
    """The caller's reply to ``Challenge``: its identity and its proof."""

    version: str
    job: str
    identity: Identity
    nonce: bytes
    proof: bytes


class Welcome(_Message, frozen=True):
    """The listener's reply to a valid ``Greeting``: its identity and its proof."""

    identity: Identity
    proof: bytes


class HandshakeRefused(_Message, frozen=True):
    """The listener's reply to an invalid ``Greeting``, with the reason."""

    reason: str


Handshake = Challenge | Greeting | Welcome | HandshakeRefused


def new_life() -> int:
    """Return a random life for one run of a process; never 0."""
    return secrets.randbits(62) + 1


def challenge() -> Challenge:
    """Return a challenge with a random nonce."""
    return Challenge(version=VERSION, nonce=secrets.token_bytes(16))


def _signed(token: Token, label: str, *, job: str, identity: Identity, nonces: tuple[bytes, bytes]) -> bytes:
    return token.sign(label, job.encode(), msgspec.msgpack.encode(identity), *nonces)


def greet(received: Challenge, *, token: Token, job: str, identity: Identity) -> Greeting:
    """Return the caller's reply to a challenge."""
    nonce = secrets.token_bytes(16)
    proof = _signed(token, "caller", job=job, identity=identity, nonces=(received.nonce, nonce))
    return Greeting(version=VERSION, job=job, identity=identity, nonce=nonce, proof=proof)


def verify(greeting: Greeting, sent: Challenge, *, token: Token, job: str) -> None:
    """Verify a greeting.

    Raises:
        AuthenticationError: The caller is of another version or another job, or does not have the token.
    """
    expected = _signed(
        token, "caller", job=greeting.job, identity=greeting.identity, nonces=(sent.nonce, greeting.nonce)
    )
    if not hmac.compare_digest(expected, greeting.proof):
        raise AuthenticationError("the job's token is wrong or missing")
    if greeting.version != VERSION:
        raise AuthenticationError(f"Shoal {greeting.version} cannot join a job of Shoal {VERSION}: use one version")
    if greeting.job != job:
        raise AuthenticationError(f"this is job {job}, not {greeting.job}")


def welcome(greeting: Greeting, sent: Challenge, *, token: Token, identity: Identity) -> Welcome:
    """Return the listener's reply to a verified greeting."""
    proof = _signed(token, "listener", job=greeting.job, identity=identity, nonces=(sent.nonce, greeting.nonce))
    return Welcome(identity=identity, proof=proof)


def verify_welcome(received: Welcome, greeting: Greeting, sent: Challenge, *, token: Token) -> None:
    """Verify that the listener has the token.

    Raises:
        AuthenticationError: The listener does not have the token.
    """
    expected = _signed(
        token, "listener", job=greeting.job, identity=received.identity, nonces=(sent.nonce, greeting.nonce)
    )
    if not hmac.compare_digest(expected, received.proof):
        raise AuthenticationError("the process that listens there does not know the job's token")
