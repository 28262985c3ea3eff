"""Credentials of a process for etcd: files in a folder, as Kubernetes mounts a Secret."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from shoal.store.connection import Tls
from shoal.store.errors import StoreRefusedError

__all__ = ["Credentials"]

_AUTHORITY: Final = "ca.crt"


@dataclass(frozen=True, slots=True)
class Credentials:
    """An etcd user.

    Args:
        username: Name of the user.
        password: The user's password; not part of the repr.
        tls: Certificates to verify etcd with. Default: None, no TLS, or the system's authorities.
    """

    username: str
    password: str = field(repr=False)
    tls: Tls | None = None

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read the files ``username`` and ``password``, and ``ca.crt`` if it exists (etcd must then use TLS).

        ``ca.crt`` is read again for each new connection, so that it may be renewed; the other files are read once.

        Raises:
            StoreRefusedError: A file is missing, empty or cannot be read; the message names it.
        """
        folder = Path(folder)
        authority = folder / _AUTHORITY
        try:
            username, password = ((folder / name).read_text().strip() for name in ("username", "password"))
            tls = Tls(certificate_authority=authority) if authority.exists() else None
        except (OSError, UnicodeDecodeError) as error:
            raise StoreRefusedError(f"the credentials for etcd cannot be read: {error}") from error
        if not username or not password:
            raise StoreRefusedError(f"the credentials for etcd in {folder} are empty: write username and password")
        return cls(username, password, tls)
