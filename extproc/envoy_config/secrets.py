"""Provider keys and the front certificate as Envoy secrets: read, written to `sds/`, and held nowhere else.

The value passes through here on its way from environment or file to the SDS file; it is never logged, compared or
kept. A reference that leads to nothing usable gets a placeholder, because Envoy rejects a cluster whose secret file is
missing; its provider is then ineligible in planning.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import NamedTuple

from extproc.config.snapshot import Provider, SecretRef, Server, Snapshot
from extproc.envoy_config.filters import secret_name
from extproc.envoy_config.named_files import read_named_file, why_unusable
from extproc.envoy_config.resource import Json, any_of, content_hash

PLACEHOLDER = "missing-key"


class KeyMissingError(Exception):
    """A reference leads to nothing that can be a key; the words say why, to stand behind its name."""


class Secrets(NamedTuple):
    """SDS documents by file name, and what is wrong with the key of each provider that has no usable one."""

    files: Mapping[str, Json]
    missing_keys: Mapping[str, str]


def read_secrets(snapshot: Snapshot, environ: Mapping[str, str]) -> Secrets:
    """Read what a snapshot's references lead to now.

    Raises OSError (an `ssl.SSLError` among them) when the listener's certificate cannot be used: without it nobody
    could be served.
    """
    documents = _listener_secret(snapshot.server)
    missing: dict[str, str] = {}
    for provider in snapshot.providers.values():
        if provider.api_key is None:
            continue
        try:
            value = read_key(provider.api_key, environ)
        except KeyMissingError as fault:
            missing[provider.name], value = str(fault), PLACEHOLDER
        name, document = _secret(provider, provider.api_key, value)
        documents[f"{name}.json"] = document
    return Secrets(documents, missing)


def _listener_secret(server: Server) -> dict[str, Json]:
    """Return the certificate's document, inline: however its files are replaced, Envoy sees both change at once."""
    if not server.tls_cert_file or not server.tls_key_file:
        return {}
    files = server.tls_cert_file, server.tls_key_file
    chain, key = (read_named_file(name).decode("ascii", "replace") for name in files)
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


def read_key(reference: SecretRef, environ: Mapping[str, str]) -> str:
    """Return a key's value without surrounding white space; raises KeyMissingError."""
    value = _referred(reference, environ).strip()
    if not value:
        raise KeyMissingError("is not set" if reference.source == "env" else "is empty")
    if len(value.splitlines()) > 1:
        raise KeyMissingError("contains a line break inside")
    if not value.isprintable():
        raise KeyMissingError("contains a character that no header can carry")
    return value


def _referred(reference: SecretRef, environ: Mapping[str, str]) -> str:
    if reference.source == "env":
        return environ.get(reference.name, "")
    try:
        return read_named_file(reference.name).decode("utf-8")
    except UnicodeDecodeError:
        raise KeyMissingError("is not text") from None
    except OSError as error:
        raise KeyMissingError(why_unusable(error)) from None


def _secret(provider: Provider, reference: SecretRef, value: str) -> tuple[str, Json]:
    name = secret_name(provider.name, reference, provider.auth_prefix)
    resource = any_of(
        "envoy.extensions.transport_sockets.tls.v3.Secret",
        name=name,
        generic_secret={"secret": {"inline_string": provider.auth_prefix + value}},
    )
    return name, {"version_info": name, "resources": [resource]}
