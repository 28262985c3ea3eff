"""``python -m shoal.operator.etcd.setup``: creates in the cluster what etcd needs before its first use.

It creates two Secrets: ``shoal-etcd-server`` (etcd's certificate and its key) and ``shoal-etcd-operator`` (the operator's
password, and etcd's CA certificate). Then it enables etcd's authentication. Existing objects are kept. So it may run at any
time, twice at once, or be killed at any point; the next run does the rest.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import binascii
import functools
import logging
import secrets
import sys
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from shoal.kube import Kube, KubeConflictError, KubeError
from shoal.operator.etcd import certificate as setup_certificate
from shoal.store import Store, StoreError, StoreRefusedError, Tls

__all__ = ["OPERATOR", "SERVER", "SetupError", "main", "secrets_of"]

SERVER: Final = "shoal-etcd-server"
OPERATOR: Final = "shoal-etcd-operator"
_USER: Final = "root"
"""etcd requires its root user for the creation of users."""
_KEYS: Final = {SERVER: ("ca.crt", "tls.crt", "tls.key"), OPERATOR: ("username", "password", "ca.crt")}
_SERVICE: Final = "shoal-etcd"
_MEMBERS: Final = 3
"""Most members of the overlays in `deploy/`; a surplus name in the certificate does no harm."""
_PASSWORD_BYTES: Final = 32
_SOON: Final = timedelta(days=180)

log = logging.getLogger("shoal.setup")


class SetupError(Exception):
    """An existing object is not usable; the message names the fix."""


def main() -> int:
    """Run the set-up; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m shoal.operator.etcd.setup", description="Prepares etcd, once.")
    parser.add_argument("--namespace", default="shoal-system", help="namespace of etcd (shoal-system)")
    parser.add_argument("--etcd", required=True, metavar="ENDPOINT", help="endpoint of etcd for this process")
    parser.add_argument(
        "--timeout", type=float, default=300.0, metavar="SECONDS", help="how long etcd may be unreachable (300)"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    try:
        asyncio.run(_run(arguments.namespace, arguments.etcd, timeout_seconds=arguments.timeout))
    except (KubeError, StoreError, SetupError) as error:
        log.error("%s", error)  # noqa: TRY400 - a message for people
        return 1
    return 0


async def _run(namespace: str, etcd: str, *, timeout_seconds: float) -> None:
    async with await Kube.connect() as kube:
        operator = await secrets_of(kube, namespace, now=datetime.now(UTC))
    await asyncio.to_thread(_protect, etcd, operator, timeout_seconds)
    log.info("etcd at %s requires authentication", etcd)


async def secrets_of(kube: Kube, namespace: str, *, now: datetime) -> dict[str, bytes]:
    """Ensure that both Secrets exist.

    Returns:
        The content of the operator's Secret.

    Raises:
        KubeError: The API server refused a request, or was unreachable for longer than the client retries.
        SetupError: An existing Secret is not usable.
    """

    def certificate() -> dict[str, bytes]:
        made = setup_certificate.make(setup_certificate.names(_SERVICE, namespace, members=_MEMBERS), now=now)
        return {"ca.crt": made.authority, "tls.crt": made.certificate, "tls.key": made.key}

    server = await _ensure(kube, namespace, SERVER, certificate)
    _check_expiry(server["tls.crt"], now)

    def login() -> dict[str, bytes]:
        password = secrets.token_hex(_PASSWORD_BYTES).encode()
        return {"username": _USER.encode(), "password": password, "ca.crt": server["ca.crt"]}

    operator = await _ensure(kube, namespace, OPERATOR, login)
    if operator["ca.crt"] != server["ca.crt"]:
        raise SetupError(
            f"Secret {OPERATOR} has another ca.crt than {SERVER}; copy it from there (see docs/operations.md)"
        )
    return operator


async def _ensure(
    kube: Kube, namespace: str, name: str, contents: Callable[[], Mapping[str, bytes]]
) -> dict[str, bytes]:
    """Return the content of a Secret, which is created if it does not exist."""
    found = await kube.get("Secret", name, namespace=namespace)
    if found is not None:
        log.info("Secret %s exists", name)
        return _opened(name, found)
    made = contents()
    manifest = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/part-of": "shoal-system"}},
        "data": {key: base64.b64encode(value).decode() for key, value in made.items()},
    }
    try:
        await kube.create(manifest)
    except KubeConflictError:
        # Another run was faster, or the response to this run's request was lost: the existing Secret counts.
        found = await kube.get("Secret", name, namespace=namespace)
        if found is None:
            raise
        return _opened(name, found)
    log.info("Secret %s is created", name)
    return dict(made)


def _opened(name: str, manifest: Mapping[str, Any]) -> dict[str, bytes]:
    try:
        opened = {key: base64.b64decode(value, validate=True) for key, value in (manifest.get("data") or {}).items()}
    except binascii.Error as error:
        raise SetupError(f"Secret {name} cannot be read: {error}") from error
    missing = [key for key in _KEYS[name] if not opened.get(key)]
    if missing:
        raise SetupError(f"Secret {name} has no {' and no '.join(missing)}; delete it and run this again")
    return opened


def _check_expiry(certificate: bytes, now: datetime) -> None:
    try:
        end = setup_certificate.ends(certificate)
    except ValueError as error:
        raise SetupError(f"tls.crt in Secret {SERVER} is no certificate: {error}") from error
    if end - now < _SOON:
        log.warning("etcd's certificate ends on %s; see docs/operations.md for its renewal", end.date())


def _protect(etcd: str, operator: Mapping[str, bytes], timeout_seconds: float) -> None:
    with tempfile.NamedTemporaryFile(prefix="shoal-", suffix=".crt") as authority:
        authority.write(operator["ca.crt"])
        authority.flush()
        tls = Tls(certificate_authority=Path(authority.name))
        protect = functools.partial(Store.protect, etcd, tls=tls, timeout_seconds=timeout_seconds)
        try:
            protect(password=operator["password"].decode())
        except StoreRefusedError:
            # Another run may have enabled authentication between two calls: then the second attempt succeeds.
            protect(password=operator["password"].decode())


if __name__ == "__main__":
    sys.exit(main())
