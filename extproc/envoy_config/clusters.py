"""Snapshot -> provider clusters, one per (provider, connect_timeout) in use, named by their content.

A cluster's name holds the hash of everything in it, so a cluster is never changed in place: a rejected update then
leaves the old ones whole (docs/envoy.md section 8). Also the gateway's own static clusters.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from extproc.config.snapshot import Provider, ResolvedModel, Server, Snapshot
from extproc.envoy_config.filters import REFUSING_HOST, REFUSING_PORT, end_filters, foreign_headers, upstream_filters
from extproc.envoy_config.resource import (
    LARGEST_BUFFER_BYTES,
    MIB,
    EnvoyPaths,
    Json,
    any_of,
    buffer_limit_bytes,
    content_hash,
    is_ip,
    seconds,
    upstream_tls,
)
from extproc.wire import names

_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_DEFAULT_PORTS = {"http": 80, "https": 443}
_NAME_HASH_PLACE = "cluster"
# Where files lie is not content: `render` and `serve` must give a cluster the same name.
_ANYWHERE = EnvoyPaths(
    cds=Path("cds"),
    rds=Path("rds"),
    lds=Path("lds"),
    sds=Path("sds"),
    access_log=Path("access_log"),
    admin_socket=Path("admin"),
    checks_socket=Path("checks"),
    extproc="extproc",
    logs="logs",
    ca_file=Path("ca"),
)
UNLIMITED = 1_000_000
LEAST_PENDING = 1024
"""Requests that may wait for a provider whatever its limits: Envoy never retries what overflows its breaker, so the
planner keeps to `max_pending` (core/in_flight.py) and this is only the net under it."""
_JUDGED_WINDOW_BYTES = 16 * MIB


def provider_clusters(snapshot: Snapshot, paths: EnvoyPaths) -> tuple[dict[tuple[str, str], str], list[Json]]:
    """Return which cluster serves each (provider, policy), and the cluster resources themselves."""
    by_pair: dict[tuple[str, str], str] = {}
    resources: dict[str, Json] = {}
    named: dict[tuple[str, float], str] = {}
    foreign = foreign_headers(snapshot.providers.values())
    for provider, policy in sorted(pairs_in_use(snapshot)):
        wanted = provider, snapshot.policies[policy].connect_timeout_s
        if wanted not in named:
            cluster = _provider_cluster(snapshot.server, snapshot.providers[provider], wanted[1], foreign, paths)
            named[wanted] = cluster["name"]
            resources[cluster["name"]] = cluster
        by_pair[provider, policy] = named[wanted]
    return by_pair, [resources[name] for name in sorted(resources)]


def pairs_in_use(snapshot: Snapshot) -> set[tuple[str, str]]:
    """Return every (provider, policy) that some request may need."""
    pairs: set[tuple[str, str]] = set()
    for model in snapshot.models.values():
        reachable = [ResolvedModel(model.name, model)]
        reachable += [r for name in (*model.fallback, *model.context_fallback) if (r := snapshot.resolve(name))]
        pairs |= {(target.provider, model.policy) for r in reachable for target in r.entry.targets}
    return pairs


def static_clusters(paths: EnvoyPaths) -> list[Json]:
    """Return the gateway's own clusters: extproc's two, the end of every plan, and the dead end without a plan.

    They stand in the bootstrap, which Envoy reads once, so they depend on no version.
    """
    limit_bytes = LARGEST_BUFFER_BYTES
    return [
        {
            "name": names.CLUSTER_STOP,
            "type": "STATIC",
            "connect_timeout": "1s",
            "load_assignment": {"cluster_name": names.CLUSTER_STOP},
        },
        {
            "name": names.CLUSTER_END,
            "type": "STATIC",
            "connect_timeout": "1s",
            "per_connection_buffer_limit_bytes": limit_bytes,
            "load_assignment": _assignment(names.CLUSTER_END, [own_address(paths.extproc)]),
            "circuit_breakers": _breakers(UNLIMITED, UNLIMITED),
            "typed_extension_protocol_options": {
                _HTTP_OPTIONS: any_of(
                    _HTTP_OPTIONS,
                    # The socket speaks HTTP/2: to HTTP/1 its greeting would be a protocol error.
                    explicit_http_config={"http2_protocol_options": {}},
                    http_filters=end_filters(),
                )
            },
        },
        _own_cluster(names.CLUSTER_EXTPROC, paths.extproc, limit_bytes),
        _own_cluster(names.CLUSTER_LOGS, paths.logs, limit_bytes),
    ]


def _own_cluster(name: str, address: str, limit_bytes: int) -> Json:
    """Return the cluster of one of extproc's gRPC services."""
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "per_connection_buffer_limit_bytes": limit_bytes,
        "load_assignment": _assignment(name, [own_address(address)]),
        "circuit_breakers": _breakers(UNLIMITED, UNLIMITED),
        "typed_extension_protocol_options": {
            _HTTP_OPTIONS: any_of(_HTTP_OPTIONS, explicit_http_config={"http2_protocol_options": {}})
        },
    }


def own_address(address: str) -> Json:
    """Return a socket path or host:port as an Envoy address."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():
        return _socket_address(host.strip("[]"), int(port))
    return {"pipe": {"path": address}}


def _provider_cluster(
    server: Server, provider: Provider, connect_timeout_s: float, foreign: list[str], paths: EnvoyPaths
) -> Json:
    nameless = _cluster_named(_NAME_HASH_PLACE, server, provider, connect_timeout_s, foreign, _ANYWHERE)
    name = f"{provider.name}-{content_hash(nameless)}"
    return _cluster_named(name, server, provider, connect_timeout_s, foreign, paths)


def _cluster_named(
    name: str, server: Server, provider: Provider, connect_timeout_s: float, foreign: list[str], paths: EnvoyPaths
) -> Json:
    host_address = _socket_address(provider.host, provider.port)
    is_address = is_ip(provider.host)
    cluster: Json = {
        "name": name,
        "connect_timeout": seconds(connect_timeout_s),
        "per_connection_buffer_limit_bytes": buffer_limit_bytes(server),
        "load_assignment": _assignment(
            name, [host_address, _socket_address(REFUSING_HOST, REFUSING_PORT)], _authority(provider)
        ),
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "circuit_breakers": _breakers(provider.max_connections, max(2 * provider.max_pending, LEAST_PENDING)),
        "typed_extension_protocol_options": {
            _HTTP_OPTIONS: any_of(
                _HTTP_OPTIONS,
                **_http_versions(provider),
                http_filters=upstream_filters(provider, foreign, name, paths),
            )
        },
    }
    if is_address:
        cluster["type"] = "STATIC"
    else:
        cluster |= {
            "type": "STRICT_DNS",
            "dns_lookup_family": "V4_PREFERRED",
            "respect_dns_ttl": True,
            "dns_refresh_rate": "30s",
            "dns_failure_refresh_rate": {"base_interval": "1s", "max_interval": "10s"},
        }
    if provider.scheme == "https":
        cluster["transport_socket"] = _tls(provider, paths)
    return cluster


def _authority(provider: Provider) -> str:
    """Return the Host of requests to a provider: with its port unless the scheme implies it."""
    host = f"[{provider.host}]" if ":" in provider.host else provider.host
    return host if provider.port == _DEFAULT_PORTS[provider.scheme] else f"{host}:{provider.port}"


def _http_versions(provider: Provider) -> Json:
    """HTTP/2 where TLS lets the provider offer it, else HTTP/1.1."""
    if provider.scheme != "https":
        return {"explicit_http_config": {"http_protocol_options": {}}}
    http2 = {
        "initial_stream_window_size": _JUDGED_WINDOW_BYTES,
        "initial_connection_window_size": 2 * _JUDGED_WINDOW_BYTES,
    }
    return {"auto_config": {"http_protocol_options": {}, "http2_protocol_options": http2}}


def _tls(provider: Provider, paths: EnvoyPaths) -> Json:
    own: Json = {}
    if provider.tls.client_cert_file and provider.tls.client_key_file:
        own["tls_certificates"] = [
            {
                "certificate_chain": {"filename": provider.tls.client_cert_file},
                "private_key": {"filename": provider.tls.client_key_file},
            }
        ]
    ca_file = provider.tls.ca_file or str(paths.ca_file)
    return upstream_tls(provider.host, ca_file, ["h2", "http/1.1"], **own)


def _assignment(name: str, addresses: Iterable[Json], hostname: str = "") -> Json:
    """One endpoint a priority: the second is used only while the first has no address at all."""
    endpoints = []
    for priority, address in enumerate(addresses):
        endpoint: Json = {"address": address}
        if hostname:
            endpoint["hostname"] = hostname
        endpoints.append({"priority": priority, "lb_endpoints": [{"endpoint": endpoint}]})
    return {"cluster_name": name, "endpoints": endpoints}


def _breakers(max_connections: int, max_pending: int) -> Json:
    max_requests = max_connections + max_pending
    threshold = {
        "max_connections": max_connections,
        "max_pending_requests": max_pending,
        "max_requests": max_requests,
        # Counted where the first attempt failed, however long the next one takes at another provider: running out
        # of them would surface failovers as errors (docs/envoy.md section 8).
        "max_retries": max(max_requests, UNLIMITED),
    }
    return {"thresholds": [{"priority": "DEFAULT", **threshold}]}


def _socket_address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}
