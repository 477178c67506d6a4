"""The few shapes that every Envoy resource is built from: typed configs, durations, file sources, our own sizes.

Resources are plain JSON-ready dicts; a contract test reads them back through Envoy's typed API and the binary itself.
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from extproc.config.snapshot import Server

Json = dict[str, Any]

MIB = 1024 * 1024
JUDGED_LIMIT_BYTES = 32 * MIB
"""At most this much of one answer passes the judge (docs/envoy.md section 4)."""
LARGEST_BUFFER_BYTES = 1024 * MIB + 8 * MIB
"""What the largest `max_body` that a config may ask for needs."""
HEAP_LIMIT_BYTES = 2048 * MIB
"""Where Envoy's overload manager stops taking requests."""
MAX_CONNECTIONS = 20_000
"""Connections of callers at one time; one more is closed at once."""


@dataclass(frozen=True, slots=True)
class EnvoyPaths:
    """Where one Envoy finds its files and sockets; every path as Envoy sees it.

    `extproc` and `logs`, where extproc takes ext_proc streams and access logs, are Unix socket paths, or `host:port`
    for an extproc on another machine of the pod or compose network.
    """

    cds: Path
    rds: Path
    lds: Path
    sds: Path
    access_log: Path
    admin_socket: Path
    checks_socket: Path
    extproc: str
    logs: str
    ca_file: Path


@dataclass(frozen=True, slots=True)
class Listen:
    """The front listener's address."""

    host: str
    port: int


def any_of(type_name: str, **fields: Any) -> Json:
    """Return a typed_config of `envoy.`-relative or full type name."""
    return {"@type": f"type.googleapis.com/{type_name}", **fields}


def extension(name: str, type_name: str, **fields: Any) -> Json:
    """Return an extension: a name and its typed_config."""
    return {"name": name, "typed_config": any_of(type_name, **fields)}


def seconds(value: float) -> str:
    """Return a duration in protobuf's JSON form."""
    return f"{value:.9f}".rstrip("0").rstrip(".") + "s"


def file_source(path: Path) -> Json:
    """Return a config source that is a file, reread when its directory is written to."""
    return {
        "resource_api_version": "V3",
        "path_config_source": {"path": str(path), "watched_directory": {"path": str(path.parent)}},
    }


def buffer_limit_bytes(server: Server) -> int:
    """Return the buffer limit of listener and clusters: above every body and every judged answer."""
    return max(2 * JUDGED_LIMIT_BYTES, server.max_body_bytes + 8 * MIB)


def upstream_tls(host: str, ca_file: str, alpn: list[str], **more: Any) -> Json:
    """Return the transport socket that trusts `ca_file` and takes nobody but `host`, a name or an address.

    An address stands in a certificate as one, and is never sent as server name (RFC 6066 section 3). Envoy's exact
    DNS matcher knows wildcard certificates. `more` goes into the common TLS context.
    """
    san_type = "IP_ADDRESS" if is_ip(host) else "DNS"
    common = {
        "validation_context": {
            "trusted_ca": {"filename": ca_file},
            "match_typed_subject_alt_names": [{"san_type": san_type, "matcher": {"exact": host}}],
        },
        "alpn_protocols": alpn,
        **more,
    }
    sni = {} if is_ip(host) else {"sni": host}
    return extension(
        "envoy.transport_sockets.tls",
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        common_tls_context=common,
        **sni,
    )


def is_ip(host: str) -> bool:
    """Tell whether a host is an address and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def content_hash(resource: Json) -> str:
    """Return the hash that names a resource's content: 10 hex digits."""
    return hashlib.sha256(orjson.dumps(resource, option=orjson.OPT_SORT_KEYS)).hexdigest()[:10]
