"""The handshake: both ends prove that they know the job's token, without sending it.

The listener challenges with a nonce; the caller greets with who it is, a nonce of its own, and an HMAC over all of it;
the listener welcomes with an HMAC of its own, so that a caller knows that it reached its job and not a stranger that
took the port. Version and job are compared here, once, and a difference is refused by name. The functions are pure;
``aio`` and ``sync`` carry the messages.
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
"""Version of Shoal; ends of different versions do not talk."""


class AuthenticationError(ConnectionError):
    """The other end is not of this job, or of another version; the message says which."""


class Identity(msgspec.Struct, frozen=True):
    """One run of one process: ``life`` is random, so that a successor of the same role and index is told apart."""

    role: Annotated[str, msgspec.Meta(max_length=20)]
    index: Annotated[int, msgspec.Meta(ge=0, le=2**31)]
    life: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]

    def __str__(self) -> str:
        """Role and number, as people say it."""
        return self.role if self.role in {"master", "observer"} else f"{self.role}-{self.index}"


class Token:
    """The job's shared secret; never printed."""

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
            ValueError: It holds fewer than 16 bytes.
        """
        return cls(Path(path).read_bytes().strip())

    @classmethod
    def create(cls, path: Path) -> Token:
        """Make a random token and keep it in a file that only its owner reads."""
        secret = secrets.token_hex(32).encode()
        path.touch(mode=0o600)
        path.write_bytes(secret)
        return cls(secret)

    def sign(self, label: str, *parts: bytes) -> bytes:
        """HMAC-SHA256 over the label and the parts, each with its length before it."""
        digest = hmac.new(self._secret, label.encode(), hashlib.sha256)
        for part in parts:
            digest.update(len(part).to_bytes(4, "big"))
            digest.update(part)
        return digest.digest()


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """A message of the handshake."""


class Challenge(_Message, frozen=True):
    """The listener's first word."""

    version: str
    nonce: bytes


class Greeting(_Message, frozen=True):
    """The caller's answer."""

    version: str
    job: str
    identity: Identity
    nonce: bytes
    proof: bytes


class Welcome(_Message, frozen=True):
    """The listener's proof."""

    identity: Identity
    proof: bytes


class HandshakeRefused(_Message, frozen=True):
    """The listener's no, with the reason."""

    reason: str


Handshake = Challenge | Greeting | Welcome | HandshakeRefused


def new_life() -> int:
    """A random number for one run of a process; never 0."""
    return secrets.randbits(62) + 1


def challenge() -> Challenge:
    """The listener's first word."""
    return Challenge(version=VERSION, nonce=secrets.token_bytes(16))


def _signed(token: Token, label: str, *, job: str, identity: Identity, nonces: tuple[bytes, bytes]) -> bytes:
    return token.sign(label, job.encode(), msgspec.msgpack.encode(identity), *nonces)


def greet(received: Challenge, *, token: Token, job: str, identity: Identity) -> Greeting:
    """The caller's answer to a challenge."""
    nonce = secrets.token_bytes(16)
    proof = _signed(token, "caller", job=job, identity=identity, nonces=(received.nonce, nonce))
    return Greeting(version=VERSION, job=job, identity=identity, nonce=nonce, proof=proof)


def verify(greeting: Greeting, sent: Challenge, *, token: Token, job: str) -> None:
    """Check a greeting.

    Raises:
        AuthenticationError: Another version, another job, or no knowledge of the token.
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
    """The listener's proof."""
    proof = _signed(token, "listener", job=greeting.job, identity=identity, nonces=(sent.nonce, greeting.nonce))
    return Welcome(identity=identity, proof=proof)


def verify_welcome(received: Welcome, greeting: Greeting, sent: Challenge, *, token: Token) -> None:
    """Check that the listener knows the token too.

    Raises:
        AuthenticationError: It does not.
    """
    expected = _signed(
        token, "listener", job=greeting.job, identity=received.identity, nonces=(sent.nonce, greeting.nonce)
    )
    if not hmac.compare_digest(expected, received.proof):
        raise AuthenticationError("who listens there does not know the job's token")
