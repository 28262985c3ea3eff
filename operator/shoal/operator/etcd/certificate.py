"""The certificate of etcd and its CA. Pure, apart from the randomness of keys.

The CA signs only this certificate, and its key is discarded at once: no second certificate can ever be signed, so no key has to
be guarded. Hence both are valid for ten years. Before they expire, a new CA and a new certificate replace them.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["Certificate", "ends", "make", "names"]

LIFE: Final = timedelta(days=3650)
_SKEW: Final = timedelta(hours=1)
"""Clocks differ, so certificates are valid from this long before they were created."""


@dataclass(frozen=True)
class Certificate:
    """A certificate with its CA and key, in PEM form.

    Attributes:
        authority: The CA certificate.
        certificate: The certificate of etcd.
        key: The private key of etcd's certificate; kept out of every repr.
    """

    authority: bytes
    certificate: bytes
    key: bytes = field(repr=False)


def names(service: str, namespace: str, *, members: int) -> list[str]:
    """Return the DNS names of etcd: of its Service, of its members, and localhost for clients in its pod."""
    asked = [service, *(f"{service}-{index}.{service}-members" for index in range(members))]
    return [*(f"{name}{rest}" for name in asked for rest in ("", f".{namespace}", f".{namespace}.svc")), "localhost"]


def make(names: list[str], *, now: datetime) -> Certificate:
    """Create a CA, and a certificate for these names; members of etcd also use it to authenticate to each other."""
    above, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "shoal etcd authority")])
    usage = {"content_commitment": False, "key_encipherment": False, "data_encipherment": False,
             "key_agreement": False, "encipher_only": False, "decipher_only": False}  # fmt: skip
    authority = (
        _begin(issuer, issuer, above.public_key(), now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=False, key_cert_sign=True, crl_sign=True, **usage), critical=True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(above.public_key()), critical=False)
        .sign(above, hashes.SHA256())
    )
    known = [*map(x509.DNSName, names), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    certificate = (
        _begin(subject, issuer, own.public_key(), now)
        .add_extension(x509.SubjectAlternativeName(known), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=True, key_cert_sign=False, crl_sign=False, **usage), critical=True
        )
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(above.public_key()), critical=False)
        .sign(above, hashes.SHA256())
    )
    return Certificate(
        authority.public_bytes(serialization.Encoding.PEM),
        certificate.public_bytes(serialization.Encoding.PEM),
        own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def ends(certificate: bytes) -> datetime:
    """Return when a certificate expires.

    Raises:
        ValueError: The text is no certificate.
    """
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc


def _begin(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + LIFE)
    )
