"""Snapshot -> the front listener: what it takes, how it logs, and the filters a request meets."""

from __future__ import annotations

import socket

from extproc.config.snapshot import Snapshot
from extproc.envoy_config.access_log import attempt_log, request_logs
from extproc.envoy_config.filters import route_filter
from extproc.envoy_config.local_reply import local_reply_config
from extproc.envoy_config.resource import (
    MIB,
    EnvoyPaths,
    Json,
    Listen,
    any_of,
    buffer_limit_bytes,
    extension,
    file_source,
)
from extproc.envoy_config.routes import ROUTE_CONFIG
from extproc.envoy_config.secrets import listener_secret_name
from extproc.envoy_config.tracing import tracing
from extproc.envoy_config.usage import usage_filter

LISTENER = "gateway"
STAT_PREFIX = "gateway"
HANDSHAKE_TIMEOUT = "10s"
MAX_HEADERS_KIB = 64
MAX_HEADERS = 128
# 192.0.2.0/24 is reserved for documentation: nobody has the address, so every caller counts as external.
_NOBODY = {"address_prefix": "192.0.2.1", "prefix_len": 32}
_UNREAD_LIMIT = {
    "description": "TCP_USER_TIMEOUT, in milliseconds",
    "level": socket.IPPROTO_TCP,
    "name": 18,
    "int_value": 300_000,
    "state": "STATE_PREBIND",
}
"""How long a caller may take nothing of an answer: Envoy waits for ever to flush a connection that it wants to close.

Connections have it from the listening socket (https://man7.org/linux/man-pages/man7/tcp.7.html).
"""
_HTTP2_STREAM_WINDOW_BYTES = 64 * MIB
"""Above the most that one answer may hold in the judge (docs/envoy.md section 4)."""


def listener(snapshot: Snapshot, listen: Listen, paths: EnvoyPaths) -> Json:
    """Return the Listener resource."""
    chain: Json = {"filters": [_http_connection_manager(snapshot, paths)]}
    server = snapshot.server
    if server.tls_cert_file and server.tls_key_file:
        secret = listener_secret_name(server.tls_cert_file, server.tls_key_file)
        chain["transport_socket"] = _tls(secret, paths)
        chain["transport_socket_connect_timeout"] = HANDSHAKE_TIMEOUT
    return any_of(
        "envoy.config.listener.v3.Listener",
        name=LISTENER,
        address={"socket_address": {"address": listen.host, "port_value": listen.port}},
        per_connection_buffer_limit_bytes=buffer_limit_bytes(server),
        socket_options=[_UNREAD_LIMIT],
        filter_chains=[chain],
    )


def _http_connection_manager(snapshot: Snapshot, paths: EnvoyPaths) -> Json:
    traced = tracing(snapshot, paths)
    return extension(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=STAT_PREFIX,
        codec_type="AUTO",
        server_name="gateway",
        # A broken answer must reach the caller as broken at once; any longer time also cuts a good answer, when its
        # connection is to close and the caller pauses for that long.
        delayed_close_timeout="0s",
        rds={"route_config_name": ROUTE_CONFIG, "config_source": file_source(paths.rds)},
        use_remote_address=True,
        internal_address_config={"cidr_ranges": [_NOBODY]},
        always_set_request_id_in_response=True,
        normalize_path=True,
        merge_slashes=True,
        # A model's name may hold a slash, which SDKs escape; paths of endpoints are compared as they are.
        path_with_escaped_slashes_action="KEEP_UNCHANGED",
        common_http_protocol_options={
            "idle_timeout": "600s",
            "max_headers_count": MAX_HEADERS,
            "headers_with_underscores_action": "REJECT_REQUEST",
        },
        http2_protocol_options={
            "max_concurrent_streams": 1024,
            "initial_stream_window_size": _HTTP2_STREAM_WINDOW_BYTES,
            "initial_connection_window_size": 2 * _HTTP2_STREAM_WINDOW_BYTES,
            # A caller that vanished without a word does not keep its connection.
            "connection_keepalive": {"interval": "60s", "timeout": "20s"},
        },
        max_request_headers_kb=MAX_HEADERS_KIB,
        request_headers_timeout="15s",
        request_timeout="300s",
        stream_idle_timeout="300s",
        local_reply_config=local_reply_config(),
        access_log=request_logs(paths),
        **({} if traced is None else {"tracing": traced}),
        http_filters=[
            route_filter(),
            usage_filter(),
            extension(
                "envoy.filters.http.router",
                "envoy.extensions.filters.http.router.v3.Router",
                suppress_envoy_headers=True,
                upstream_log=[attempt_log()],
            ),
        ],
    )


def _tls(secret: str, paths: EnvoyPaths) -> Json:
    certificate = {"name": secret, "sds_config": file_source(paths.sds / f"{secret}.json")}
    return extension(
        "envoy.transport_sockets.tls",
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context={
            "tls_certificate_sds_secret_configs": [certificate],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
            "alpn_protocols": ["h2", "http/1.1"],
        },
    )
