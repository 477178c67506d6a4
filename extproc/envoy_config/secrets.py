"""Provider keys and the front certificate as Envoy secrets: read, written to `sds/`, and held nowhere else.

The value passes through here on its way from environment or file to the SDS file; it is never logged, compared or
kept. A reference that leads nowhere gets a placeholder, because Envoy rejects a cluster whose secret file is missing;
its provider is then ineligible in planning.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from extproc.config.snapshot import Provider, SecretRef, Server, Snapshot
from extproc.envoy_config.filters import secret_name
from extproc.envoy_config.resource import Json, any_of, content_hash

PLACEHOLDER = "missing-key"


class Secrets(NamedTuple):
    """SDS documents by file name, and the providers whose reference led nowhere."""

    files: Mapping[str, Json]
    missing_keys: frozenset[str]


def read_secrets(snapshot: Snapshot, environ: Mapping[str, str]) -> Secrets:
    """Read what a snapshot's references lead to now.

    Raises OSError (an `ssl.SSLError` among them) when the listener's certificate cannot be used: without it nobody
    could be served.
    """
    documents = _listener_secret(snapshot.server)
    missing: set[str] = set()
    for provider in snapshot.providers.values():
        if provider.api_key is None:
            continue
        value = read_key(provider.api_key, environ)
        if value is None:
            missing.add(provider.name)
        name, document = _secret(provider, provider.api_key, value or PLACEHOLDER)
        documents[f"{name}.json"] = document
    return Secrets(documents, frozenset(missing))


def _listener_secret(server: Server) -> dict[str, Json]:
    """Return the certificate's document, inline: however its files are replaced, Envoy sees both change at once."""
    if not server.tls_cert_file or not server.tls_key_file:
        return {}
    files = server.tls_cert_file, server.tls_key_file
    chain, key = (Path(name).read_text(encoding="ascii", errors="replace") for name in files)
    # Envoy would go on with the old certificate and tell nobody: whether the two belong together is seen here.
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*files, password="")
    name = listener_secret_name(*files)
    resource = any_of(
        "envoy.extensions.transport_sockets.tls.v3.Secret",
        name=name,
        tls_certificate={"certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": key}},
    )
    return {f"{name}.json": {"version_info": name, "resources": [resource]}}


def listener_secret_name(cert_file: str, key_file: str) -> str:
    """Return the name of the front certificate: other files are another secret, never one changed in place."""
    return f"gateway-listener-{content_hash({'cert': cert_file, 'key': key_file})}"


def read_key(reference: SecretRef, environ: Mapping[str, str]) -> str | None:
    """Return a key's value without surrounding white space, None when there is none."""
    if reference.source == "env":
        value = environ.get(reference.name, "")
    else:
        try:
            value = Path(reference.name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None
    value = value.strip()
    return value if value and value.isprintable() else None


def _secret(provider: Provider, reference: SecretRef, value: str) -> tuple[str, Json]:
    name = secret_name(provider.name, reference, provider.auth_prefix)
    resource = any_of(
        "envoy.extensions.transport_sockets.tls.v3.Secret",
        name=name,
        generic_secret={"secret": {"inline_string": provider.auth_prefix + value}},
    )
    return name, {"version_info": name, "resources": [resource]}
