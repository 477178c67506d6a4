"""Who may reach the admin API over TCP, and by which name: certificates on both sides.

Owns the reading of the three files and the name in a caller's certificate; leaves the listening to `admin_server.py`.
Invariant: files that do not belong together are never handed on, so a renewal that goes wrong changes nothing.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from extproc.settings import AdminListen, StartError


class AdminPem(NamedTuple):
    """What the TLS of the admin API is made of, as PEM."""

    cert: bytes
    key: bytes
    client_ca: bytes


def read_admin_tls(admin: AdminListen) -> AdminPem:
    """Read the certificate, its key and the callers' authority; StartError when they cannot be used."""
    for flag, path in (("cert", admin.cert), ("key", admin.key), ("client-ca", admin.client_ca)):
        if not path.is_file():
            fault = "is no regular file: name a PEM file" if path.exists() else "is not there"
            raise StartError(f"--admin-{flag} names {path}, which {fault}.")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An empty password: without one, a key that needs one would ask for it at the terminal.
        context.load_cert_chain(admin.cert, admin.key, password="")
        context.load_verify_locations(admin.client_ca)
        return AdminPem(admin.cert.read_bytes(), admin.key.read_bytes(), admin.client_ca.read_bytes())
    except OSError as error:
        raise StartError(
            f"The certificates of the admin API cannot be used: {error.strerror or error}. --admin-cert and "
            "--admin-key must be a PEM certificate and its key without a password, --admin-client-ca a PEM certificate."
        ) from None


def certificate_name(auth: Mapping[str, Iterable[bytes]]) -> str | None:
    """Return a caller's name, from what gRPC knows of its connection: None without TLS, "" without a name.

    The first subject alternative name, else the common name, as gRPC itself tells peers apart.
    """
    if b"ssl" not in auth.get("transport_security_type", ()):
        return None
    for key in ("x509_subject_alternative_name", "x509_common_name"):
        for name in auth.get(key, ()):
            return name.decode(errors="replace").strip()
    return ""
