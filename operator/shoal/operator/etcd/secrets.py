"""The secrets of jobs: all are derived from one root key, none is random and none is read back.

So a deleted Secret is created again with the same content, every operator process derives the same secrets, and the operator
needs no right to read any Secret. The root key is in etcd; the first operator that starts creates it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from shoal.store import OPERATOR_KEY, Accounts, Credentials, JobKeys, Put, Store, StoreRefusedError, missing

__all__ = ["DerivedSecrets", "Users"]

_KEY_BYTES: Final = 32
_TIMEOUT_SECONDS: Final = 5.0
"""Timeout of the calls to etcd in a sync."""


@dataclass(frozen=True, kw_only=True)
class DerivedSecrets:
    """Derives jobs' secrets from the root key.

    Attributes:
        key: The root key; kept out of every repr.
        guarded: Whether etcd has authentication, so that each job needs its own user.
        authority: CA certificate of etcd, in PEM form. Empty: etcd has no TLS, or its CA is a public one.
    """

    key: bytes = field(repr=False)
    guarded: bool = False
    authority: str = field(default="", repr=False)

    @classmethod
    def open(cls, store: Store, credentials: Credentials | None) -> Self:
        """Read the root key from etcd, or create it there.

        Raises:
            StoreError: etcd is unreachable or refuses the call, or the value is no root key.
        """
        store.transact([missing(OPERATOR_KEY)], [Put(OPERATOR_KEY, secrets.token_bytes(_KEY_BYTES))])
        found = store.get(OPERATOR_KEY)
        if found is None or len(found.value) != _KEY_BYTES:
            raise StoreRefusedError(
                f"{OPERATOR_KEY} in etcd should hold {_KEY_BYTES} bytes; remove it, and jobs restart"
            )
        return cls(key=found.value, guarded=credentials is not None, authority=_authority(credentials))

    @property
    def versions(self) -> dict[str, str]:
        """Version of each Secret: changes with anything that the Secret is derived from, and reveals nothing of it."""
        return {
            "token": self._derived("version")[:16],
            "etcd": self._derived(f"version {self.guarded} {self.authority}")[:16],
        }

    def password(self, uid: str) -> str:
        """Return the password of a job's user in etcd."""
        return self._derived(f"etcd {uid}")

    def secrets(self, keys: JobKeys) -> Mapping[str, Mapping[str, str]]:
        """Return the contents of a job's Secrets, by purpose."""
        made = {"token": {"token": self._derived(f"token {keys.uid}")}}
        if self.guarded:
            authority = {"ca.crt": self.authority} if self.authority else {}
            made["etcd"] = {"username": keys.user, "password": self.password(keys.uid)} | authority
        return made

    def _derived(self, text: str) -> str:
        return hmac.new(self.key, text.encode(), hashlib.sha256).hexdigest()


class Users:
    """Jobs' users in etcd.

    A user that existed when this process started is not checked the first time: checking each of a thousand users would
    occupy etcd with password hashes for 60 s.

    Args:
        accounts: Manages users and roles of etcd.
    """

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts.within(_TIMEOUT_SECONDS)
        self._unchecked = set(self._accounts.users())

    def admit(self, keys: JobKeys, password: str) -> None:
        """Ensure that a job's user exists, with rights on the job's keys only. Blocks.

        Raises:
            StoreError: etcd is unreachable or refuses the call.
        """
        if keys.user in self._unchecked:
            self._unchecked.discard(keys.user)
            return
        self._accounts.ensure(keys.user, password, prefix=keys.prefix)


def _authority(credentials: Credentials | None) -> str:
    tls = credentials.tls if credentials is not None else None
    if tls is None or tls.certificate_authority is None:
        return ""
    try:
        return tls.certificate_authority.read_text()
    except OSError as error:
        raise StoreRefusedError(f"the certificate of etcd's authority cannot be read: {error}") from error
