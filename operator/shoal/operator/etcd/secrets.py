"""What only a job's own processes may know: derived from one key, never random and never read back.

So a Secret that somebody deleted is made again as it was, an operator that comes after another makes the same ones, and the
operator needs no right to read any Secret. The key lies in etcd, made by the first operator that comes.
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
_PATIENCE_SECONDS: Final = 5.0
"""How long a look waits for etcd."""


@dataclass(frozen=True, kw_only=True)
class DerivedSecrets:
    """Derives jobs' secrets.

    Attributes:
        key: The operator's; kept out of every repr.
        guarded: Whether etcd asks who is there, so that a job needs a user of its own.
        authority: Who vouches for etcd's certificate, in PEM form; empty: etcd speaks no TLS, or anybody trusts it.
    """

    key: bytes = field(repr=False)
    guarded: bool = False
    authority: str = field(default="", repr=False)

    @classmethod
    def open(cls, store: Store, credentials: Credentials | None) -> Self:
        """With the key that lies in etcd, or that is laid there now.

        Raises:
            StoreError: etcd is away or refuses, or the key is none.
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
        """By what a Secret is for: changes with anything that it is made of, and says nothing about it."""
        return {
            "token": self._derived("version")[:16],
            "etcd": self._derived(f"version {self.guarded} {self.authority}")[:16],
        }

    def password(self, uid: str) -> str:
        """Of a job's user in etcd."""
        return self._derived(f"etcd {uid}")

    def secrets(self, keys: JobKeys) -> Mapping[str, Mapping[str, str]]:
        """The contents of a job's Secrets, by what they are for."""
        made = {"token": {"token": self._derived(f"token {keys.uid}")}}
        if self.guarded:
            authority = {"ca.crt": self.authority} if self.authority else {}
            made["etcd"] = {"username": keys.user, "password": self.password(keys.uid)} | authority
        return made

    def _derived(self, text: str) -> str:
        return hmac.new(self.key, text.encode(), hashlib.sha256).hexdigest()


class Users:
    """Jobs' users in etcd.

    Who was there when this operator began is believed to be as it should the first time: looking at each of a thousand
    would keep etcd busy with passwords for a minute.

    Args:
        accounts: Etcd's.
    """

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts.within(_PATIENCE_SECONDS)
        self._believed = set(self._accounts.users())

    def admit(self, keys: JobKeys, password: str) -> None:
        """See that the job's user is there, with rights on the job's keys alone. Blocks.

        Raises:
            StoreError: etcd is away or refuses.
        """
        if keys.user in self._believed:
            self._believed.discard(keys.user)
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
