"""The certificates of a cluster: one authority, and what it signs, made by ``openssl`` on elliptic curves (20 ms each)."""

from __future__ import annotations

import subprocess
from pathlib import Path

__all__ = ["make_authority", "make_client", "make_key", "make_server"]

# The machine's own openssl.cnf is not used, as its extensions differ between distributions.
CONFIGURATION = "[req]\ndistinguished_name = subject\nprompt = no\n[subject]\n"
CURVE = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


def make_authority(folder: Path) -> None:
    """Create ``ca.crt`` and ``ca.key``, valid for ten years."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "openssl.cnf").write_text(CONFIGURATION)
    _certify(folder, "ca", "/CN=shoal-tests", ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign"])


def make_server(folder: Path, name: str, addresses: list[str]) -> None:
    """Create a serving certificate for these host names and IP addresses."""
    names = ",".join(f"{'IP' if address[0].isdigit() else 'DNS'}:{address}" for address in addresses)
    _certify(folder, name, f"/CN={name}", [f"subjectAltName={names}", "extendedKeyUsage=serverAuth"], signed=True)


def make_client(folder: Path, name: str, *, user: str, group: str) -> None:
    """Create a client certificate: Kubernetes takes the user from CN and the group from O."""
    _certify(folder, name, f"/O={group}/CN={user}", ["extendedKeyUsage=clientAuth"], signed=True)


def make_key(folder: Path, name: str) -> None:
    """Create a key pair: service account tokens are signed with the private key and verified with the public one."""
    key = str(folder / f"{name}.key")
    _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-out", key)
    _openssl("pkey", "-in", key, "-pubout", "-out", str(folder / f"{name}.pub"))


def _certify(folder: Path, name: str, subject: str, extensions: list[str], *, signed: bool = False) -> None:
    authority = ["-CA", str(folder / "ca.crt"), "-CAkey", str(folder / "ca.key")] if signed else []
    added = [word for extension in extensions for word in ("-addext", extension)]
    into = ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.crt"), "-days", "3650"]
    configuration = ["-config", str(folder / "openssl.cnf")]
    _openssl("req", "-x509", *configuration, *CURVE, *authority, "-subj", subject, *added, *into)


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"openssl {arguments[0]} failed: {done.stderr.strip()[-500:]}")
