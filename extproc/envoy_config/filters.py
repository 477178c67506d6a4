"""The ext_proc filters: the route filter of the listener and the two of every provider cluster.

The order of an upstream chain and the reasons for each setting are in docs/envoy.md, sections 2 to 4; its crash and
timer rules are not negotiable.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

from extproc.config.base_url import denied_networks
from extproc.config.snapshot import Provider, SecretRef
from extproc.core.endpoints import Kind
from extproc.envoy_config.matchers import (
    has_metadata,
    predicate,
    regex,
    request_header,
    response_header,
    skipped,
    status_class,
)
from extproc.envoy_config.resource import EnvoyPaths, Json, content_hash, extension, file_source
from extproc.wire import names

EXT_PROC = "envoy.filters.http.ext_proc"
_EXT_PROC_TYPE = "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor"
REFUSING_HOST, REFUSING_PORT = "127.0.0.1", 1
"""Where nobody listens: the endpoint of a cluster whose name does not resolve (docs/envoy.md section 8)."""
MESSAGE_TIMEOUT = "5s"
"""How long Envoy waits for one answer of extproc; a pause of its process is not a failure yet."""


def route_filter() -> Json:
    """Return the downstream filter that plans a request."""
    return _ext_proc(
        EXT_PROC,
        names.ROLE_ROUTE,
        "",
        {
            "request_header_mode": "SEND",
            "request_body_mode": "BUFFERED",
            "response_header_mode": "SKIP",
            "request_trailer_mode": "SKIP",
            "response_trailer_mode": "SKIP",
        },
    )


def upstream_filters(provider: Provider, foreign: Sequence[str], cluster: str, paths: EnvoyPaths) -> list[Json]:
    """Return the chain of one provider cluster; responses run through it backwards.

    The headers `foreign`, which other chains add, are dropped: the attempts of a request share one header map.
    """
    chain = [
        judge_filter(cluster),
        attempt_filter(cluster),
        _header_filter(provider, foreign),
    ]
    if provider.api_key is not None:
        chain.append(_credential_filter(provider, paths))
    # Wherever it stands, it acts when a host was chosen: before all others, and before a connection is made.
    return [*chain, _address_filter(allow_private=provider.allow_private_network), _codec()]


@cache
def _address_filter(*, allow_private: bool) -> Json:
    """Refuse addresses that no provider may have, whatever DNS says, before a connection is made to them.

    One document serves every provider, as there are but two; nobody changes a document once it is made.
    """
    networks = denied_networks(allow_private=allow_private)
    # By family: a host has one, and each network that need not be looked at is CPU of every attempt.
    families = [
        {"and_rules": {"rules": [_upstream_at(every), {"or_rules": {"rules": [_upstream_at(one) for one in some]}}]}}
        for every, some in (
            ("0.0.0.0/0", [network for network in networks if ":" not in network]),
            ("::/0", [network for network in networks if ":" in network]),
        )
    ]
    denied = {"or_rules": {"rules": families}}
    refusing = _upstream_at(f"{REFUSING_HOST}/32", REFUSING_PORT)
    policy = {
        "permissions": [{"and_rules": {"rules": [denied, {"not_rule": refusing}]}}],
        "principals": [{"any": True}],
    }
    return extension(
        names.ADDRESS_FILTER,
        "envoy.extensions.filters.http.rbac.v3.RBAC",
        rules={"action": "DENY", "policies": {"address": policy}},
    )


def _upstream_at(network: str, port: int | None = None) -> Json:
    address, _, length = network.partition("/")
    ports = {} if port is None else {"upstream_port_range": {"start": port, "end": port + 1}}
    return {
        "matcher": extension(
            "envoy.rbac.matchers.upstream_ip_port",
            "envoy.extensions.rbac.matchers.upstream_ip_port.v3.UpstreamIpPortMatcher",
            upstream_ip={"address_prefix": address, "prefix_len": int(length)},
            **ports,
        )
    }


def end_filters() -> list[Json]:
    """Return the chain of the cluster that only ever answers for a plan that is over."""
    return [attempt_ext_proc(names.CLUSTER_END), _codec()]


def judge_filter(cluster: str) -> Json:
    """Return the judge: responses only, skipped for an ordinary success of a request that asked for no stream."""
    judge = _ext_proc(
        "gateway.judge",
        names.ROLE_JUDGE,
        cluster,
        {
            "request_header_mode": "SKIP",
            "request_trailer_mode": "SKIP",
            "response_header_mode": "SEND",
            "response_body_mode": "FULL_DUPLEX_STREAMED",
            "response_trailer_mode": "SEND",
        },
    )
    # A media type is case-insensitive; an answer without one is most likely empty.
    ordinary = [
        predicate(status_class(), {"exact": "2xx"}),
        predicate(response_header("content-type"), regex(".+")),
        {"not_matcher": predicate(response_header("content-type"), regex("(?i)(text/event-stream|text/html).*"))},
        {"not_matcher": predicate(response_header("content-length"), {"exact": "0"})},
        {"not_matcher": has_metadata(names.METADATA, names.M_KIND, Kind.STREAM)},
    ]
    return skipped("gateway.judge", judge, {"and_matcher": {"predicate": ordinary}})


def attempt_filter(cluster: str) -> Json:
    """Return the attempt request: later attempts only."""
    first = predicate(request_header(names.H_ATTEMPT_COUNT), {"exact": "1"})
    return skipped("gateway.attempt", attempt_ext_proc(cluster), first)


def attempt_ext_proc(cluster: str) -> Json:
    """Return the attempt request filter without its matcher."""
    return _ext_proc(
        "gateway.attempt",
        names.ROLE_ATTEMPT,
        cluster,
        {
            "request_header_mode": "SEND",
            "request_body_mode": "BUFFERED",
            "response_header_mode": "SKIP",
            "request_trailer_mode": "SKIP",
            "response_trailer_mode": "SKIP",
        },
    )


def secret_name(provider: str, key: SecretRef, prefix: str) -> str:
    """Return the name of a provider's secret: a changed reference is another secret, never one changed in place."""
    return f"{provider}-{content_hash({'source': key.source, 'name': key.name, 'prefix': prefix})}"


def _ext_proc(name: str, role: str, cluster: str, mode: Json) -> Json:
    return extension(
        name,
        _EXT_PROC_TYPE,
        grpc_service={
            "envoy_grpc": {"cluster_name": names.CLUSTER_EXTPROC},
            "initial_metadata": [
                {"key": names.G_ROLE, "value": role},
                *([{"key": names.G_CLUSTER, "value": cluster}] if cluster else []),
            ],
        },
        processing_mode=mode,
        message_timeout=MESSAGE_TIMEOUT,
        failure_mode_allow=False,
        status_on_error={"code": 503},
        allow_content_length_header=True,
        mutation_rules={
            "allow_all_routing": {"value": True},
            "allow_envoy": {"value": True},
            "disallow_system": {"value": False},
        },
        metadata_options={
            "forwarding_namespaces": {"untyped": [names.METADATA, names.METADATA_PRIVATE]},
            "receiving_namespaces": {
                "untyped": [names.METADATA, names.METADATA_PRIVATE, names.METADATA_USAGE],
                "typed": [names.METADATA_PLAN],
            },
        },
    )


def foreign_headers(providers: Iterable[Provider]) -> list[str]:
    """Return the headers by which providers know their accounts: each chain drops them all, then sets its own."""
    found: set[str] = set()
    for one in providers:
        found |= {one.auth_header} | ({name for name, _ in one.headers} - names.SHARED_HEADERS)
    return sorted(found - set(names.CREDENTIAL_HEADERS))


def _header_filter(provider: Provider, foreign: Sequence[str]) -> Json:
    """Drop every credential and internal header on the way out, and what could steer us on the way back.

    The same of trailers, which HTTP/2 and chunked bodies have in both directions.
    """
    removed = [_remove_prefix(prefix) for prefix in names.INTERNAL_PREFIXES]
    removed += [{"remove": name} for name in (*names.CREDENTIAL_HEADERS, *foreign)]
    hidden = [_remove_prefix(prefix) for prefix in names.RESPONSE_PREFIXES]
    static = (("accept-encoding", "identity"), *provider.headers)
    return extension(
        "gateway.headers",
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
        mutations={
            "request_mutations": removed + [_set(name, value) for name, value in static],
            "request_trailers_mutations": removed,
            "response_trailers_mutations": hidden,
            "response_mutations": [
                *hidden,
                _set_formatted(names.H_ROUTE_MODE, f"%DYNAMIC_METADATA({names.METADATA}:{names.M_ROUTE_MODE})%"),
                _set_formatted(names.H_SERVED_BY, f"%DYNAMIC_METADATA({names.METADATA}:{names.M_SERVED_BY})%"),
            ],
        },
    )


def _credential_filter(provider: Provider, paths: EnvoyPaths) -> Json:
    if provider.api_key is None:
        raise ValueError("a provider without a key has no credential filter")
    name = secret_name(provider.name, provider.api_key, provider.auth_prefix)
    return extension(
        "gateway.credential",
        "envoy.extensions.filters.http.credential_injector.v3.CredentialInjector",
        overwrite=True,
        credential=extension(
            "envoy.http.injected_credentials.generic",
            "envoy.extensions.http.injected_credentials.generic.v3.Generic",
            credential={"name": name, "sds_config": file_source(paths.sds / f"{name}.json")},
            header=provider.auth_header,
        ),
    )


def _codec() -> Json:
    return extension(
        "envoy.filters.http.upstream_codec",
        "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec",
    )


def _set(name: str, value: str) -> Json:
    # To Envoy a literal percent sign is the start of a formatter.
    return _set_formatted(name, value.replace("%", "%%"))


def _set_formatted(name: str, value: str) -> Json:
    return {
        "append": {
            "header": {"key": name, "value": value},
            "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
        }
    }


def _remove_prefix(prefix: str) -> Json:
    return {"remove_on_match": {"key_matcher": {"prefix": prefix}}}
