from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from extproc.admin_tls import certificate_name, read_admin_tls
from extproc.settings import Address, AdminListen, StartError
from tests.support.certs import Authority


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory) -> AdminListen:
    authority = Authority(tmp_path_factory.mktemp("ca"))
    own = authority.sign("gateway", "IP:127.0.0.1")
    return AdminListen(Address("127.0.0.1", 0), own.cert, own.key, authority.cert)


def test_files_that_belong_together_are_read(admin: AdminListen) -> None:
    assert admin.client_ca.read_bytes() == read_admin_tls(admin).client_ca


def test_a_file_that_is_not_there_is_named_with_its_flag(admin: AdminListen) -> None:
    with pytest.raises(StartError, match=r"^--admin-key names /nowhere, which is not there\.$"):
        read_admin_tls(replace(admin, key=Path("/nowhere")))


def test_what_is_no_file_is_named_with_its_flag(admin: AdminListen, tmp_path: Path) -> None:
    for path in (Path("/dev/null"), tmp_path):
        sentence = f"--admin-client-ca names {path}, which is no regular file: name a PEM file."
        with pytest.raises(StartError, match=f"^{re.escape(sentence)}$"):
            read_admin_tls(replace(admin, client_ca=path))


def test_a_key_of_another_certificate_is_refused(admin: AdminListen, tmp_path: Path) -> None:
    other = Authority(tmp_path).sign("other")

    with pytest.raises(StartError, match="cannot be used"):
        read_admin_tls(replace(admin, key=other.key))


def test_an_authority_that_is_no_certificate_is_refused(admin: AdminListen, tmp_path: Path) -> None:
    text = tmp_path / "ca.pem"
    text.write_text("no certificate")

    with pytest.raises(StartError, match="cannot be used"):
        read_admin_tls(replace(admin, client_ca=text))


@pytest.mark.parametrize(
    ("auth", "name"),
    [
        ({"transport_security_type": [b"insecure"]}, None),
        ({}, None),
        ({"transport_security_type": [b"ssl"]}, ""),
        ({"transport_security_type": [b"ssl"], "x509_common_name": [b"ann"]}, "ann"),
        (
            {
                "transport_security_type": [b"ssl"],
                "x509_common_name": [b"ann"],
                "x509_subject_alternative_name": [b"ann@example.com", b"spiffe://x/ann"],
            },
            "ann@example.com",
        ),
        ({"transport_security_type": [b"ssl"], "x509_common_name": [b"\xffann "]}, "\ufffdann"),
    ],
)
def test_a_caller_is_named_by_its_certificate(auth: dict[str, list[bytes]], name: str | None) -> None:
    """None: a caller on the Unix socket, who may say any name; "": a certificate that names nobody."""
    assert name == certificate_name(auth)
