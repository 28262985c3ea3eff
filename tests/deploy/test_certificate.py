"""Etcd's certificate, checked without a connection."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from shoal.operator.etcd import certificate
from tests.deploy.rendered import DEPLOY

NOW = datetime(2030, 1, 1, tzinfo=UTC)
NAMES = certificate.names("shoal-etcd", "shoal-system", members=3)


@pytest.fixture(scope="module")
def made():
    return certificate.make(NAMES, now=NOW)


def test_it_has_every_name_by_which_the_manifests_call_etcd(made):
    text = "".join(path.read_text() for path in DEPLOY.rglob("*.yaml"))
    called = set(re.findall(r"https://([a-z0-9.-]+):23(?:79|80)", text)) - {"0.0.0.0"}
    called |= {f"shoal-etcd-{number}.shoal-etcd-members.shoal-system.svc" for number in range(3)}
    loaded = x509.load_pem_x509_certificate(made.certificate)
    known = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert len(called) == 4
    assert called <= set(known.get_values_for_type(x509.DNSName))


def test_it_and_its_authority_last_for_ten_years_by_clocks_that_differ(made):
    for pem in (made.certificate, made.authority):
        loaded = x509.load_pem_x509_certificate(pem)
        assert loaded.not_valid_before_utc < NOW - timedelta(minutes=30)
        assert certificate.ends(pem) == NOW + timedelta(days=3650)


def test_no_other_one_can_be_created(made):
    authority = x509.load_pem_x509_certificate(made.authority)
    loaded = x509.load_pem_x509_certificate(made.certificate)
    loaded.verify_directly_issued_by(authority)
    assert loaded.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    # The only key that is handed out is etcd's own.
    assert made.key.count(b"PRIVATE KEY") == 2
    assert b"PRIVATE" not in made.authority + made.certificate


def test_its_key_is_not_shown(made):
    assert "PRIVATE" not in repr(made)


def test_each_is_another(made):
    again = certificate.make(NAMES, now=NOW)
    assert not {made.key, made.certificate, made.authority} & {again.key, again.certificate, again.authority}
